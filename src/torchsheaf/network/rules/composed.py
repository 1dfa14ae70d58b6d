"""Operations that are read as a composition of others."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from torchsheaf.network.rules.table import functional, overload, rule_for


def _beside(a: Tensor, b: Tensor) -> Tensor:
    """Both on a new last axis."""
    shape = torch.broadcast_shapes(a.shape, b.shape)
    return torch.stack([t if t.shape == shape else t.expand(shape) for t in (a, b)], -1)


def _larger(a: Tensor, b: Tensor) -> Tensor:
    return _beside(a, b).amax(-1)


def _smaller(a: Tensor, b: Tensor) -> Tensor:
    return _beside(a, b).amin(-1)


def _clamp(x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    x = x if low is None else _larger(x, low)
    return x if high is None else _smaller(x, high)


def _cdist(a: Tensor, b: Tensor, p: float = 2.0, mode: int | None = None) -> Tensor:
    """Torch's own kernel has a first derivative only, and no forward mode."""
    return torch.linalg.vector_norm(a.unsqueeze(-2) - b.unsqueeze(-3), p, -1)


COMPOSED: dict[Any, Callable[..., Tensor]] = {
    torch.ops.aten.maximum.default: _larger,
    torch.ops.aten.max.other: _larger,
    torch.ops.aten.fmax.default: _larger,
    torch.ops.aten.minimum.default: _smaller,
    torch.ops.aten.min.other: _smaller,
    torch.ops.aten.fmin.default: _smaller,
    torch.ops.aten.clamp.Tensor: _clamp,
    torch.ops.aten.cdist.default: _cdist,
    # torch's own reverse mode has the wrong sign where a length is negative
    torch.ops.aten.polar.default: lambda a, b: torch.complex(a * b.cos(), a * b.sin()),
}
"""By ATen operation: the same values, to rounding, from operations that have rules."""


def compositions(operations: Iterable[str]) -> dict[Any, Callable[..., Any]]:
    """What torch composes operations without a rule of, where it knows that of all of these.

    `operations` are names such as "aten.huber_loss.default". The result is for
    `ExportedProgram.run_decompositions`: with all others that have no rule, since one may be
    composed of another. {} where one of them is refused for another reason.
    """
    known = torch.export.default_decompositions()
    names = {_out_of_place(name) for name in operations if name.startswith("aten.")}
    table = {op: known[op] for op in list(known) if rule_for(str(op)) is None}
    table |= {op: made for op, made in _WHERE_REFUSED.items() if str(op) in names}
    composed = {str(op) for op in table}
    return table if names and all(n in composed or _is_composite(n) for n in names) else {}


def _one_by_one(
    extreme: Callable[..., Tensor], x: Tensor, dim: Sequence[int] = (), keepdim: bool = False
) -> Tensor:
    """An extreme over several axes: of the extremes along each; one axis is left as it is."""
    axes = sorted({d % x.ndim for d in (dim or range(x.ndim))}, reverse=True)
    if len(axes) < 2:
        return NotImplemented
    for axis in axes:
        x = extreme(x, axis, keepdim)
    return x


_WHERE_REFUSED: dict[Any, Callable[..., Tensor]] = {
    torch.ops.aten.amax.default: partial(_one_by_one, torch.amax),
    torch.ops.aten.amin.default: partial(_one_by_one, torch.amin),
}
"""Operations that have a rule for some of their arguments."""


def _is_composite(name: str) -> bool:
    """Whether torch has no kernel of its own for it (swapdims, hsplit): decomposed in any case."""
    found = overload(name)
    return found is not None and rule_for(name) is None and bool(found._can_decompose())


def _out_of_place(name: str) -> str:
    found = overload(name)
    return name if found is None else str(functional(found))
