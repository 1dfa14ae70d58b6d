"""Data parallel: the gradients of the global batch, from the local sums of every process."""

import torch
import torch.distributed as dist
from torch import Tensor

from torchsheaf.train.rule import LocalGradients


def reduce_gradients(local: LocalGradients) -> LocalGradients:
    """Add sums and counts over the processes of the default group; the identity without one.

    Sums, not means, are added, so unequal shards count by their size. For the edge rule the units
    are groups: results equal one process on the concatenated batch when every shard is a whole
    number of groups. Cost: one all-reduce of all gradients, flattened.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return local
    names = sorted(local.gradients)
    first = local.gradients[names[0]]
    counts = torch.tensor([local.counts[n] for n in names], dtype=first.dtype, device=first.device)
    flat = torch.cat([*(local.gradients[n].reshape(-1) for n in names), counts])
    dist.all_reduce(flat)
    out: dict[str, Tensor] = {}
    start = 0
    for name in names:
        size = local.gradients[name].numel()
        out[name] = flat[start : start + size].reshape(local.gradients[name].shape)
        start += size
    return LocalGradients(out, dict(zip(names, flat[start:].tolist(), strict=True)))
