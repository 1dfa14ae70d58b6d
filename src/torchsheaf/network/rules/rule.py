"""What one entry of the rule table says about an ATen operation."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from torch.utils._pytree import tree_leaves

from torchsheaf.network.differential import Differential
from torchsheaf.network.gates import Gate, GateFactory, Kinks
from torchsheaf.network.operation import Operation, Value


class Kind(StrEnum):
    """What an operation is; of an edge: the kind of the operation at its head."""

    AFFINE = "affine"
    GATE = "gate"
    JOIN = "join"
    SMOOTH = "smooth"
    RESHAPE = "reshape"


@dataclass(frozen=True, slots=True)
class Site:
    """One operation at a state: its resolved arguments, and the activations among them by name."""

    operation: Operation
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    operands: Mapping[str, Any]

    def name_at(self, position: int) -> str | None:
        """The operand's name where that argument is an activation, else None."""
        given = self.operation.args
        arg = given[position] if position < len(given) else None
        return arg.name if isinstance(arg, Value) and arg.name in self.operands else None

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """What was given by position or by name, else the default."""
        return argument(self.args, self.kwargs, position, name, default)

    def function(self, *values: Any) -> Any:
        """The operation as a function of its operands, everything else bound."""
        new = dict(zip(self.operands, values, strict=True))

        def bind(symbolic: Any, resolved: Any) -> Any:
            if isinstance(symbolic, Value):
                return new.get(symbolic.name, resolved)
            if isinstance(symbolic, list | tuple):
                return type(symbolic)(bind(s, r) for s, r in zip(symbolic, resolved, strict=True))
            return resolved

        op = self.operation
        named = {k: bind(v, self.kwargs[k]) for k, v in op.kwargs.items()}
        return op.target(*(bind(s, r) for s, r in zip(op.args, self.args, strict=True)), **named)


Shortcut = Callable[[Site], Differential | None]
"""A cheap differential of the operation at a site, or None where it does not apply."""

Refusal = Callable[[tuple[Any, ...], Mapping[str, Any]], str | None]
"""(args, kwargs) → why the operation cannot be read with these arguments, or None."""


@dataclass(frozen=True)
class Rule:
    """How to read one ATen operation.

    `kind` holds when one activation enters. `linear_in`: the argument positions in which it is
    affine on its own (a single activation there makes it affine). `additive`: it is jointly affine
    in all activations (add, cat), so a join of this kind has constant blocks. `constant`: only the
    shape of its argument matters (zeros_like); `shaped_by`: only that of the arguments at these
    positions (expand_as). `refuse` returns a reason when these arguments
    cannot be read (dropout in training mode, say). `stops`: autograd sends no gradient through it,
    though the map has a derivative (detach). `kinks`: where the slope of a smooth operation jumps.
    """

    kind: Kind
    linear_in: tuple[int, ...] = ()
    additive: bool = False
    gate: GateFactory | None = None
    shortcut: Shortcut | None = None
    refuse: Refusal | None = None
    constant: bool = False
    stops: bool = False
    shaped_by: tuple[int, ...] = ()
    kinks: Kinks | None = None

    def gate_of(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Gate | None:
        """The gate, or the smooth map with kinks, that it is at these arguments; else None."""
        if self.gate is not None:
            return self.gate(args, kwargs)
        return self.kinks(args, kwargs) if self.kinks else None

    def kind_of(self, operation: Operation) -> Kind:
        """A join when several activations enter; affine when one enters an affine position."""
        if self.kind is Kind.RESHAPE:
            return Kind.RESHAPE
        if len(operation.operands) > 1:
            return Kind.JOIN
        if self.additive or not operation.operands:
            return Kind.AFFINE
        if self.linear_in:
            places = occurrences(operation, operation.operands[0])
            return Kind.AFFINE if len(places) == 1 and places[0] in self.linear_in else Kind.SMOOTH
        return self.kind


def occurrences(operation: Operation, name: str) -> list[int]:
    """Positions of the arguments in which a value occurs, once per occurrence."""
    places = [*enumerate(operation.args), *((-1, v) for v in operation.kwargs.values())]
    leaves = [(i, leaf) for i, arg in places for leaf in tree_leaves(arg)]
    return [i for i, leaf in leaves if isinstance(leaf, Value) and leaf.name == name]


def argument(
    args: Sequence[Any], kwargs: Mapping[str, Any], position: int, name: str, default: Any = None
) -> Any:
    """What an operation was given by position or by name, else its default."""
    return args[position] if len(args) > position else kwargs.get(name, default)


def training_flag(position: int, name: str, what: str) -> Refusal:
    """Refuse an operation whose training flag is set."""

    def refuse(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str | None:
        if argument(args, kwargs, position, name) is True:
            return (
                f"{what} in training mode is not a function of its input: call model.eval() first"
            )
        return None

    return refuse
