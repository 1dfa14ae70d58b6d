"""Data parallel: the gradients of the global batch, from the local sums of every process."""

import torch
import torch.distributed as dist
from torch import Tensor

from torchsheaf.train.rule import LocalGradients


def is_parallel() -> bool:
    """Whether a default process group of more than one process is running."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def reduce_gradients(local: LocalGradients) -> LocalGradients:
    """Add sums and counts over the processes of the default group; the identity without one.

    Sums, not means, are added, so unequal shards count by their size. For the edge rule the result
    equals one process on the concatenated batch when every shard is a whole number of groups.
    Cost: one all-reduce of all gradients of one dtype, flattened, and one of the count.
    """
    if not is_parallel():
        return local
    names = sorted(local.sums)
    # in float64: bfloat16 has no 999, float16 nothing above 65504
    place = local.sums[names[0]].device
    count = torch.tensor(local.count, dtype=torch.float64, device=place)
    dist.all_reduce(count)
    summed: dict[str, Tensor] = {}
    for dtype in dict.fromkeys(local.sums[n].dtype for n in names):
        parts = {n: local.sums[n] for n in names if local.sums[n].dtype == dtype}
        flat = torch.cat([t.reshape(-1) for t in parts.values()])
        dist.all_reduce(flat)
        pieces = flat.split([t.numel() for t in parts.values()])
        summed |= {
            n: piece.view(t.shape) for (n, t), piece in zip(parts.items(), pieces, strict=True)
        }
    return LocalGradients(float(count), summed)
