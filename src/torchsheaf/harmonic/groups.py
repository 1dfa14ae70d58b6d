"""Columns that move together: joined where windows tie, and levelled."""

import torch
from torch import Tensor


def join(leader: Tensor, columns: Tensor, chosen: Tensor, fixed: Tensor) -> Tensor:
    """The finest grouping that keeps `leader`'s groups and unites each window's chosen columns.

    `leader` (batch, n): each column's leader, itself where it is alone. `columns` (W, K): the
    columns that a window reads; `chosen` (batch, W, K): which of them are united. A `fixed`
    (batch, n) column leads its group; further fixed columns of the group stay alone. Cost:
    O(batch · n + united columns) per round of label propagation, few rounds.

    >>> own = torch.arange(4)[None]
    >>> pairs, chosen = torch.tensor([[0, 1], [1, 3]]), torch.ones(1, 2, 2, dtype=torch.bool)
    >>> join(own, pairs, chosen, torch.zeros(1, 4, dtype=torch.bool)).tolist()
    [[0, 0, 2, 0]]
    """
    n = leader.shape[1]
    own = torch.arange(n, device=leader.device).expand_as(leader)
    # labels are columns; fixed ones are n lower, so that the least label of a group is theirs
    label = torch.where(fixed, own - n, own)
    sample, window = (chosen.sum(-1) > 1).nonzero(as_tuple=True)
    where, others = columns[window] + n * sample[:, None], ~chosen[sample, window]
    for _ in range(n):  # every round settles the least unsettled label of each group
        before = label
        seen = label.flatten()[where].masked_fill(others, n)
        least = seen.amin(-1, keepdim=True).expand_as(seen).masked_fill(others, n)
        label = label.flatten().scatter_reduce(0, where.flatten(), least.flatten(), "amin")
        label = label.reshape(leader.shape)
        label = label.scatter_reduce(1, leader, label, "amin")  # what joins one joins its group
        label = torch.minimum(label, label.gather(1, leader))
        label = torch.minimum(label, label.gather(1, label % n))
        if torch.equal(label, before):
            break
    return torch.where(fixed, own, label % n)


def level(values: Tensor, leader: Tensor, fixed: Tensor) -> Tensor:
    """Each group at its mean, or at the value of its fixed leader; `(batch, n)`."""
    count = torch.zeros_like(values).scatter_add(1, leader, torch.ones_like(values))
    mean = torch.zeros_like(values).scatter_add(1, leader, values) / count.clamp_min(1)
    mean = torch.where((count == 1) | fixed, values, mean)
    return mean.gather(1, leader)
