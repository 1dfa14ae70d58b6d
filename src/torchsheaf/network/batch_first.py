"""Gates where the batch is not the first axis: relabelled around, so that they see it first.

What is known of a gate is per sample: its pattern, its ties, its breakpoints. All of that is batch
first, as stalks are.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from torchsheaf.network.errors import UnsupportedModel
from torchsheaf.network.gates import ExtremeGate, Gate, ScalarGate, SlopeGate, WindowGate
from torchsheaf.network.layout import Layout
from torchsheaf.network.operation import Operation, Value


def is_back(operation: Operation, layout: Layout) -> bool:
    """Whether an operation does nothing but leave batch first for that layout."""
    return getattr(operation.target, "__self__", None) == layout and (
        operation.target == operation.target.__self__.back  # type: ignore[attr-defined]
    )


def placed(
    operations: Sequence[Operation], inside: Layout, outside: Layout
) -> tuple[Operation, ...]:
    """A map that ends in a gate, with the gate on batch first values; its value is as before.

    `inside` is the layout of the gate's operand, `outside` that of its value.
    """
    *before, last = operations
    rule, (operand,) = last.rule, last.operands
    source = next((op for op in before if op.name == operand), None)
    if source is not None and is_back(source, inside):  # there and back again
        before.remove(source)
        (operand,) = source.operands
    else:
        forth = inside.operations(operand, operand)[0]
        before, operand = [*before, forth], forth.name

    def function(z: Tensor, *others: Any, **named: Any) -> Tensor:
        return outside.forth(last.target(inside.back(z), *others, **named))

    def gate(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Gate:
        z = inside.back(args[0])
        assert rule.gate is not None
        return batch_first(rule.gate((z, *args[1:]), kwargs), inside, z)

    ruled = replace(rule, gate=gate) if rule.gate else rule  # kinks are the same wherever z lies
    args = (Value(operand), *last.args[1:])
    moved = Operation(last.name, function, args, last.kwargs, (operand,), ruled)
    back = () if outside.is_batch_first else (outside.operations(last.name, last.name)[1],)
    return (*before, moved, *back)


def batch_first(gate: Gate, layout: Layout, z: Tensor) -> Gate:
    """The gate as it acts on `layout.forth(z)`.

    Raises `UnsupportedModel` for a registered gate that is none of the library's.
    """
    if isinstance(gate, ScalarGate):
        return gate
    if isinstance(gate, SlopeGate):
        return SlopeGate(layout.forth(gate.below.expand_as(z))[:1])
    if isinstance(gate, ExtremeGate):
        return replace(gate, dims=tuple(layout.moved(d % z.ndim) for d in gate.dims))
    if isinstance(gate, WindowGate):
        return WindowGate(_of_any_lead(gate), gate.spatial)
    raise UnsupportedModel(
        f"a {type(gate).__name__} cannot be read where the batch is not the first axis; transpose "
        "its operand in the model's forward"
    )


def _of_any_lead(gate: WindowGate) -> Any:
    """Pooling over the last axes, whatever number of axes stand before them."""

    def pool(z: Tensor) -> tuple[Tensor, Tensor]:
        lead, spatial = z.shape[: z.ndim - gate.spatial], z.shape[z.ndim - gate.spatial :]
        maxima, taken = gate.pool(z.reshape(-1, 1, *spatial))
        return maxima.reshape(*lead, *maxima.shape[2:]), taken.reshape(*lead, *taken.shape[2:])

    return pool
