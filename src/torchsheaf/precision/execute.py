"""Run a graph with a format per operation: what everything else is measured against."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torchsheaf.network.aten import AtenCall, substitute
from torchsheaf.precision.dataflow import Dataflow
from torchsheaf.precision.formats import Format, find_format, format_of
from torchsheaf.precision.operators import CONTRACTION

Assignment = Mapping[str, str]


@dataclass(frozen=True, eq=False)
class Execution:
    """Outputs of one run (tensors, in the model's order) and, where asked for, every value."""

    outputs: tuple[Tensor, ...]
    values: Mapping[str, Any]


def uniform(flow: Dataflow, form: str) -> dict[str, str]:
    """The assignment that gives every operation one format (tf32: contractions only)."""
    if form == "tf32":
        calls = flow.calls
        return {c: "tf32" if calls[c].packet in CONTRACTION else "fp32" for c in flow.choices}
    return dict.fromkeys(flow.choices, form)


def held_format(flow: Dataflow, assignment: Mapping[str, str | Format], source: str) -> Format:
    """The format in which the numbers of a call, an input or a constant lie in memory."""
    if source in assignment:
        return find_format(assignment[source]).result
    if source in flow.graph.constants:
        return format_of(flow.graph.constants[source].dtype)
    return format_of(flow.graph.input_meta[source][1])


def run_exact(
    flow: Dataflow, inputs: Sequence[Any], dtype: torch.dtype | None = torch.float64,
    keep: bool = False, change: Callable[[str, Any], Any] | None = None,
) -> Execution:  # fmt: skip
    """Run every call in one dtype on the given weights and inputs: the reference in float64.

    dtype: None runs the calls as the model makes them. change: what becomes of the result of a
    call, given its name and the result.
    """
    cast = Caster(dtype)
    values: dict[str, Any] = dict(zip(flow.graph.inputs, map(cast, inputs), strict=True))
    values |= {n: cast(t) for n, t in flow.graph.constants.items()}
    left = _countdown(flow)
    for c in flow.graph.calls:
        if dtype is not None and c.packet == "_to_copy" and c.is_floating:
            values[c.name] = values[c.operands[0]].to(dtype)
        else:
            values[c.name] = c.call(
                *substitute(c.args, values.__getitem__), **keywords(c, values.__getitem__, dtype)
            )
        if change is not None:
            values[c.name] = change(c.name, values[c.name])
        if not keep:
            _release(c, left, values)
    return Execution(tuple(values[n] for n in flow.graph.outputs), values if keep else {})


def run_assigned(
    flow: Dataflow, inputs: Sequence[Any], assignment: Assignment, keep: bool = False
) -> Execution:
    """Run every operation in its assigned format, operands cast to it, result rounded to it.

    Native formats run in the machine's own kernels; emulated ones (fp8, tf32) run in float32
    kernels between roundings. What is returned has the dtype that the model itself returns.
    """
    run = AssignedRun(flow, inputs, {c: find_format(f) for c, f in assignment.items()})
    left = _countdown(flow)
    for c in flow.graph.calls:
        run.step(c)
        if not keep:
            _release(c, left, run.values)
    outputs = tuple(run.output(n) for n in flow.graph.outputs)
    return Execution(outputs, run.values if keep else {})


def _countdown(flow: Dataflow) -> dict[str, int]:
    left = {n: len(readers) for n, readers in flow.graph.consumers().items()}
    for n in flow.graph.outputs:
        left[n] = left.get(n, 0) + 1
    return left


def _release(c: AtenCall, left: dict[str, int], values: dict[str, Any]) -> None:
    for n in c.operands:
        left[n] -= 1
        if left[n] == 0:
            values.pop(n, None)


class AssignedRun:
    """The state of one assigned execution: values as they are held, casts made once each.

    `step` executes one call; `operand` is what a call reads of a value, `weight` of a constant, in
    the format of the call; `output` is what is returned of a value.
    """

    def __init__(self, flow: Dataflow, inputs: Sequence[Any], formats: dict[str, Format]) -> None:
        self.flow = flow
        self.formats = formats
        self.calls = flow.calls
        self.values: dict[str, Any] = dict(zip(flow.graph.inputs, inputs, strict=True))
        self.weights: dict[tuple[str, str], Any] = {}

    def step(self, c: AtenCall) -> None:
        kind = self.flow.kinds[c.name]
        if kind in ("rounding", "select"):
            form = self.formats[c.name]
            value = self.call(c, lambda n: self.operand(n, form), form.carrier)
            self.values[c.name] = round_nest(value, form)
        elif kind == "structural" and self.flow.is_constant(c.name):
            return  # evaluated on demand, in the format of whoever reads the weight
        elif c.packet == "_to_copy" and c.is_floating:
            self.values[c.name] = self.values[c.operands[0]]
        else:
            self.values[c.name] = self.call(c, self.plain, None)

    def call(self, c: AtenCall, value: Callable[[str], Any], dtype: torch.dtype | None) -> Any:
        return c.call(*substitute(c.args, value), **keywords(c, value, dtype))

    def plain(self, name: str) -> Any:
        if name in self.values:
            return self.values[name]
        if name in self.flow.graph.constants:
            return self.flow.graph.constants[name]
        return self.weight(name, None)

    def operand(self, name: str, form: Format) -> Any:
        if name not in self.flow.source:
            return self.plain(name)
        if self.flow.is_constant(name):
            return self.weight(name, form)
        value = self.values[name]
        if form.holds(held_format(self.flow, self.formats, self.flow.source[name])):
            return value.to(form.carrier)
        return form.round(value)

    def weight(self, name: str, form: Format | None) -> Any:
        """A constant, or an exact view of one, stored in the format of its reader."""
        key = (name, form.name if form else "")
        if key not in self.weights and name in self.flow.graph.constants:
            self.weights[key] = self.stored(name, form)
        elif key not in self.weights:
            self.weights[key] = view_of(self.flow, name, lambda n: self.weight(n, form), None)
        return self.weights[key]

    def stored(self, name: str, form: Format | None) -> Tensor:
        """A constant in the carrier of a format, rounded where the format does not hold it."""
        tensor = self.flow.graph.constants[name]
        if form is None or not tensor.is_floating_point():
            return tensor
        exact = form.holds(format_of(tensor.dtype))
        return tensor.to(form.carrier) if exact else form.round(tensor)

    def output(self, name: str) -> Tensor:
        value = self.plain(name)
        dtype = self.calls[name].dtype if name in self.calls else None
        if dtype is None or not dtype.is_floating_point or self.flow.is_constant(name):
            return value
        # A result that is wider than the model's own output is delivered as it is.
        return value.to(dtype) if format_of(dtype).bits > format_of(value.dtype).bits else value


def view_of(
    flow: Dataflow, name: str, leaf: Callable[[str], Any], dtype: torch.dtype | None
) -> Any:
    """The exact views between a constant and its reader, of what `leaf` gives for constants."""
    if name in flow.graph.constants:
        return leaf(name)
    c = flow.calls[name]
    if c.packet == "_to_copy" and c.is_floating:
        return view_of(flow, c.operands[0], leaf, dtype)

    def value(n: str) -> Any:
        return view_of(flow, n, leaf, dtype)

    return c.call(*substitute(c.args, value), **keywords(c, value, dtype))


class Caster:
    """Floating tensors to one dtype; everything else, and everything for None, as it is."""

    def __init__(self, dtype: torch.dtype | None) -> None:
        self.dtype = dtype

    def __call__(self, value: Any) -> Any:
        floating = isinstance(value, Tensor) and value.is_floating_point()
        return value.to(self.dtype) if floating and self.dtype is not None else value


def keywords(c: AtenCall, value: Callable[[str], Any], dtype: torch.dtype | None) -> dict[str, Any]:
    """The call's keywords, with a floating `dtype` replaced by the one it is run in."""
    kwargs: dict[str, Any] = substitute(dict(c.kwargs), value)
    asked = kwargs.get("dtype")
    if dtype is not None and asked is not None and asked.is_floating_point:
        kwargs["dtype"] = dtype
    return kwargs


def round_nest(value: Any, form: Format) -> Any:
    """Round what a kernel returned onto the grid of an emulated format; native results pass."""
    if isinstance(value, tuple | list):
        return type(value)(round_nest(v, form) for v in value)
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    if form.is_emulated and form.rounds_result:
        return form.round(value)
    return value.to(form.carrier) if form.rounds_result else value
