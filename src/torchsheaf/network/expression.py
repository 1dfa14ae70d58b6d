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
    and are not live. `pending` is the kind of an operation with several results, until one is
    taken out of it.
    """

    leaf: Any
    operations: tuple[Operation, ...] = ()
    parents: tuple[str, ...] = ()
    live: bool = False
    pending: Kind | None = None


def merged(used: Sequence[Expression]) -> tuple[Operation, ...]:
    """The operations of several expressions, each once."""
    return tuple({op.name: op for e in used for op in e.operations}.values())
