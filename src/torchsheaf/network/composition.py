"""The linear part of a whole node: its operations' differentials, chained."""

import operator
from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torchsheaf.network.differential import (
    Differential,
    Pointwise,
    Relabelling,
    Selected,
    Tangent,
)
from torchsheaf.network.gates import CurvedGate
from torchsheaf.network.operation import Operation
from torchsheaf.network.rules import Kind, Site


@dataclass(frozen=True)
class Composition(Differential):
    """The linear part of a node: its operations' differentials, chained."""

    parts: dict[str, Differential]
    parents: tuple[str, ...]
    stops: frozenset[str] = frozenset()
    """The operations through which autograd would send no gradient."""

    @property
    def entrywise(self) -> bool:
        """Whether every operation inside acts on each entry alone: J is diagonal."""
        return all(
            isinstance(part, Pointwise)
            or (isinstance(part, Selected) and isinstance(part.gate, CurvedGate))
            for part in self.parts.values()
        )

    def push(self, tangents: Mapping[str, Tensor]) -> Tensor:
        if len(self.parts) == 1:
            return next(iter(self.parts.values())).push(tangents)
        scope = dict(tangents)
        for name, part in self.parts.items():
            scope[name] = part.push(scope)
        return scope[next(reversed(self.parts))]

    def pull(self, cotangent: Tensor) -> dict[str, Tensor]:
        return self.pull_tapped(cotangent)[0]

    def backpropagate(self, cotangent: Tensor) -> dict[str, Tensor]:
        """Jᵀg as autograd has it: without what would pass a detach. Parents beyond one are absent.

        A derivative of the loss as written, not of the function that the node computes.
        """
        if not self.stops:
            return self.pull(cotangent)
        return self._pull_from({next(reversed(self.parts)): cotangent}, self.stops)[0]

    def pull_into(self, operand: str, g: Tensor) -> dict[str, Tensor]:
        """Carry a cotangent of one of the values inside down to the parents."""
        if operand in self.parents:
            return {operand: g}
        return self._pull_from({operand: g})[0]

    def push_into(self, operand: str, tangents: Mapping[str, Tensor]) -> Tensor:
        """Carry tangents of the parents up to one of the values inside."""
        scope = dict(tangents)
        for name, part in self.parts.items():
            if operand in scope:
                break
            scope[name] = part.push(scope)
        return scope[operand]

    def pull_tapped(self, cotangent: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Jᵀg by parent, and the cotangent that arrives at each operation's output."""
        if not self.parts:  # a map of held integers alone (an embedding): no tangent enters
            return {}, {}
        if len(self.parts) == 1:
            name, part = next(iter(self.parts.items()))
            return part.pull(cotangent), {name: cotangent}
        return self._pull_from({next(reversed(self.parts)): cotangent})

    def _pull_from(
        self, arriving: dict[str, Any], stops: Container[str] = ()
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        result: dict[str, Tensor] = {}
        for name in reversed(self.parts):
            if name not in arriving or name in stops:
                continue
            for operand, g in self.parts[name].pull(arriving[name]).items():
                store = arriving if operand in self.parts else result
                store[operand] = _accumulate(store.get(operand), g)
        return result, arriving


def is_complex(value: Any) -> bool:
    """Whether it is a tensor of complex numbers."""
    return isinstance(value, Tensor) and value.is_complex()


def _accumulate(total: Any, g: Any) -> Any:
    if total is None:
        return g
    if isinstance(total, tuple | list):
        return tuple(_accumulate(t, s) for t, s in zip(total, g, strict=True))
    return total + g


def differential(
    op: Operation,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    scope: Mapping[str, Any],
    selections: Mapping[str, Tensor],
) -> Differential:
    """The differential of one operation at its resolved arguments."""
    operands = {name: scope[name] for name in op.operands}
    gate = op.rule.gate_of(args, kwargs) if op.operands else None
    if gate is not None:
        z = scope[op.operands[0]]
        selection = selections[op.name] if op.name in selections else gate.select(z)
        return Selected(op.operands[0], gate, selection, z)
    site = Site(op, args, kwargs, operands)
    if op.rule.shortcut is not None and not any(map(is_complex, args)):  # they are of real numbers
        short = op.rule.shortcut(site)
        if short is not None:
            return short
    if op.target is operator.getitem:
        return _Item(op.operands[0], args[1], len(args[0]), tuple(args[0]))
    linear = op.rule.kind is Kind.RESHAPE
    return Relabelling(site.function, operands) if linear else Tangent(site.function, operands)


@dataclass(frozen=True)
class _Item(Differential):
    """One entry of a tuple-valued operation (split, chunk, unbind)."""

    operand: str
    index: int
    length: int
    entries: tuple[Tensor, ...]

    def push(self, tangents: Mapping[str, Any]) -> Tensor:
        return tangents[self.operand][self.index]

    def pull(self, cotangent: Tensor) -> dict[str, Any]:
        zeros = [torch.zeros_like(e) for e in self.entries]
        zeros[self.index] = cotangent
        return {self.operand: tuple(zeros)}
