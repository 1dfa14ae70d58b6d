"""Operations that are read as a composition of others."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def _beside(a: Tensor, b: Tensor) -> Tensor:
    """Both on a new last axis."""
    shape = torch.broadcast_shapes(a.shape, b.shape)
    return torch.stack([t if t.shape == shape else t.expand(shape) for t in (a, b)], -1)


COMPOSED: dict[Any, Callable[..., Tensor]] = {
    torch.ops.aten.maximum.default: lambda a, b: _beside(a, b).amax(-1),
    torch.ops.aten.max.other: lambda a, b: _beside(a, b).amax(-1),
    torch.ops.aten.minimum.default: lambda a, b: _beside(a, b).amin(-1),
    torch.ops.aten.min.other: lambda a, b: _beside(a, b).amin(-1),
}
"""By ATen operation: the same values, entry for entry, from operations that have rules."""
