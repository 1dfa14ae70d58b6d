"""Masks, indices and other values that are no floating numbers: where a rounding may change them.

They are computed from rounded numbers too. A comparison is certain where the gap of its operands is
larger than what they may move; everything else only where its operands do not move at all.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from torchsheaf.network.aten import AtenCall
from torchsheaf.precision.formats import Format

COMPARISONS = {"gt", "ge", "lt", "le", "eq", "ne"}
_FINITENESS = {"isinf", "isnan", "isfinite"}


class Flips:
    """name → where the value may differ from that of the float64 run; absent where it cannot.

    values, bounds: those of a walk, filled while it goes on. held: the format in which a floating
    value lies.
    """

    def __init__(
        self, values: Mapping[str, Any], bounds: Mapping[str, Any], held: Callable[[str], Format]
    ) -> None:
        self.values, self.bounds, self.held = values, bounds, held
        self.where: dict[str, Tensor] = {}

    def note(self, c: AtenCall) -> None:
        """Keep where the result of a call, which is no floating number, may differ."""
        result = self.values[c.name]
        if not isinstance(result, Tensor):
            return
        moving = [n for n in c.operands if n in self.bounds and bool((self._bound(n) > 0).any())]
        if any(n in self.where for n in c.operands):
            found = torch.ones_like(result, dtype=torch.bool)
        elif not any(n in self.bounds for n in c.operands):
            return
        elif c.packet in COMPARISONS:
            found = self._close(c).expand(result.shape)
        elif c.packet in _FINITENESS:
            found = torch.isinf(self._bound(c.operands[0]))
        else:
            found = torch.full_like(result, bool(moving), dtype=torch.bool)
        if found.any():
            self.where[c.name] = found

    def _bound(self, n: str) -> Tensor:
        bound = self.bounds[n]
        first: Tensor = bound[0] if isinstance(bound, tuple | list) else bound
        return first

    def _close(self, c: AtenCall) -> Tensor:
        """Where the operands of a comparison are no further apart than they may move."""
        sides, moved = [], []
        formats = [self.held(n) for n in c.operands if n in self.bounds]
        for a in c.args[:2]:
            name = getattr(a, "name", "")
            if name:
                sides.append(torch.as_tensor(self.values[name], dtype=torch.float64))
                moved.append(self._bound(name) if name in self.bounds else torch.zeros(()))
            else:
                sides.append(torch.as_tensor(float(a), dtype=torch.float64))
                moved.append(torch.tensor(max(rounded_number(a, f) for f in formats)))
        apart, reach = (sides[0] - sides[1]).abs(), moved[0].double() + moved[1].double()
        return ~(apart > reach) & (reach > 0)

    def widen(self, c: AtenCall, bound: Any) -> tuple[Any, bool]:
        """The bound of a floating result, and whether it is infinite for what the call reads.

        A choice between two numbers by a doubtful mask errs by their distance at most.
        """
        doubtful = [n for n in c.operands if n in self.where]
        if not doubtful:
            return bound, False
        condition, *sides = (getattr(a, "name", a) for a in c.args)
        if c.packet == "where" and doubtful == [condition] and len(sides) == 2:
            one, two = (self.values[n] if isinstance(n, str) else n for n in sides)
            moved = [self._bound(n) for n in sides if n in self.bounds]
            wide = (one - two).abs() + bound + sum(m.to(bound) for m in moved)
            return torch.where(self.where[condition], wide, bound), False
        first = bound[0] if isinstance(bound, tuple | list) else bound
        lost = torch.full_like(first, math.inf)
        return (lost if first is bound else (lost, *bound[1:])), True


def rounded_number(number: Any, form: Format) -> float:
    """How far a number in the code moves when it is rounded to a format."""
    if not isinstance(number, int | float) or not math.isfinite(number):
        return 0.0
    rounded = float(form.round(torch.tensor(float(number), dtype=torch.float64)))
    moved = abs(rounded - number)
    return moved if math.isfinite(moved) else math.inf
