"""What the reader knows of a traced value before it becomes a vertex."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torchsheaf.network.operation import Operation
from torchsheaf.network.rules import Kind


@dataclass(frozen=True)
class Expression:
    """A traced value: a leaf, plus the relabellings (and constants) folded on top of it.

    `live`: an activation enters, so a tangent may. Integers made from integer inputs have parents
    and are not live. `pending` is the kind and name of an operation with several results, until
    one is taken out of it.
    """

    leaf: Any
    operations: tuple[Operation, ...] = ()
    parents: tuple[str, ...] = ()
    live: bool = False
    pending: tuple[Kind, str] | None = None


def merged(used: Sequence[Expression]) -> tuple[Operation, ...]:
    """The operations of several expressions, each once."""
    return tuple({op.name: op for e in used for op in e.operations}.values())


def kind_of_all(operations: Sequence[Operation], kind: Kind, *, several: bool) -> tuple[Kind, bool]:
    """The kind of a map that ends in an operation of that kind, and whether it is affine in pieces.

    More than relabellings may be folded in front: masks, complex numbers, steps of a normalisation,
    gates in the fused form. `several`: whether the map has several real parents.
    """
    *before, last = [
        op for op in operations if op.operands and op.rule.kind is not Kind.RESHAPE
    ] or [operations[-1]]
    inner = [op for op in before if op.rule.gate is None]
    pieces = all(op.rule.additive or op.rule.kind_of(op) is Kind.AFFINE for op in inner)
    if kind is Kind.RESHAPE:
        kind = last.rule.kind_of(last)
    constant = kind in (Kind.AFFINE, Kind.GATE) or (kind is Kind.JOIN and last.rule.additive)
    if inner and kind is not Kind.GATE:
        kind = Kind.JOIN if several else kind if pieces and constant else Kind.SMOOTH
    return kind, constant and pieces
