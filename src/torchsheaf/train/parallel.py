"""Data parallel: the gradients of the global batch, from the local sums of every process."""

import torch
import torch.distributed as dist

from torchsheaf.train.rule import LocalGradients


def is_parallel() -> bool:
    """Whether a default process group of more than one process is running."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def reduce_gradients(local: LocalGradients) -> LocalGradients:
    """Add sums and counts over the processes of the default group; the identity without one.

    Sums, not means, are added, so unequal shards count by their size. For the edge rule the result
    equals one process on the concatenated batch when every shard is a whole number of groups.
    Cost: one all-reduce of all gradients, flattened.
    """
    if not is_parallel():
        return local
    names = sorted(local.sums)
    first = local.sums[names[0]]
    flat = torch.cat([*(local.sums[n].reshape(-1) for n in names), first.new_tensor([local.count])])
    dist.all_reduce(flat)
    *parts, count = flat.split([*(local.sums[n].numel() for n in names), 1])
    shaped = {n: p.view(local.sums[n].shape) for n, p in zip(names, parts, strict=True)}
    return LocalGradients(float(count), shaped)
