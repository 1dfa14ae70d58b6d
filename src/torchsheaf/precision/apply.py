"""An assignment as a module that really runs in these formats."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from torchsheaf.network.rewrite import Conversions, Step, build_module
from torchsheaf.precision.dataflow import SINK, Dataflow
from torchsheaf.precision.execute import Assignment, held_format
from torchsheaf.precision.formats import FORMATS, Format, format_of, round_tf32


def steps_into(form: Format, held: Format) -> tuple[Step, ...]:
    """Conversions that bring numbers held in one format into the kernel of another."""
    if form.holds(held):
        return () if form.carrier == held.carrier else (form.carrier,)
    if not form.rounds_result:
        widen: tuple[Step, ...] = () if held.carrier == torch.float32 else (torch.float32,)
        return (*widen, round_tf32)
    return (form.storage,) if form.storage == form.carrier else (form.storage, form.carrier)


def conversions(flow: Dataflow, assignment: Assignment) -> Conversions:
    """Every cast that an assignment makes, and every weight as it is stored."""
    operands: dict[tuple[str, str], tuple[Step, ...]] = {}
    weights: dict[tuple[str, str], tuple[str, Tensor, tuple[Step, ...]]] = {}
    outputs: dict[str, tuple[Step, ...]] = {}
    calls = flow.calls
    for e in flow.edges:
        if e.consumer == SINK:
            if not flow.is_constant(e.operand):
                held = held_format(flow, assignment, e.source)
                call = calls.get(e.operand)
                wanted = format_of(call.dtype) if call and call.dtype else held
                if wanted.bits > held.bits:
                    outputs[e.operand] = (wanted.storage,)
            continue
        form = FORMATS[assignment[e.consumer]]
        if flow.is_constant(e.operand):
            weights[e.source, e.consumer] = _stored(flow, e.source, form)
        else:
            operands[e.operand, e.consumer] = steps_into(
                form, held_format(flow, assignment, e.source)
            )
    results: dict[str, tuple[Step, ...]] = {}
    for c in flow.choices:
        form = FORMATS[assignment[c]]
        if form.is_emulated and form.rounds_result:
            results[c] = (form.storage, form.carrier)
    passes = frozenset(
        c.name
        for c in flow.graph.calls
        if c.packet == "_to_copy" and flow.kinds[c.name] == "structural"
    )
    dtypes = {c: FORMATS[f].carrier for c, f in assignment.items()}
    return Conversions(operands, _on_tuples(flow, results), outputs, weights, dtypes, passes)


def _on_tuples(
    flow: Dataflow, results: Mapping[str, tuple[Step, ...]]
) -> dict[str, tuple[Step, ...]]:
    """A call that returns a tuple is rounded where its first element is taken."""
    moved: dict[str, tuple[Step, ...]] = {}
    for name, steps in results.items():
        takers = [
            c.name
            for c in flow.graph.calls
            if c.packet == "getitem" and c.operands == (name,) and c.is_floating
        ]
        moved |= dict.fromkeys(takers or [name], steps)
    return moved


def _stored(flow: Dataflow, name: str, form: Format) -> tuple[str, Tensor, tuple[Step, ...]]:
    tensor = flow.graph.constants[name]
    if form.holds(format_of(tensor.dtype)):
        steps: tuple[Step, ...] = () if tensor.dtype == form.carrier else (form.carrier,)
        return name, tensor, steps
    rounded = form.round(tensor)
    if not form.rounds_result:
        return f"{name}__{form.name}", rounded, ()
    load: tuple[Step, ...] = () if form.storage == form.carrier else (form.carrier,)
    return f"{name}__{form.name}", rounded.to(form.storage), load


def apply_assignment(flow: Dataflow, assignment: Assignment) -> nn.Module:
    """A GraphModule that runs the assignment: explicit casts, weights stored in their formats.

    Takes the traced inputs (same shapes), returns the model's own output structure. It can be
    exported and compiled. Emulated formats (fp8, tf32) round and compute in float32.
    """
    return build_module(flow.graph, conversions(flow, assignment)).eval()


def stored_bytes(module: nn.Module) -> int:
    """Bytes of a module's parameters and buffers, shared storage counted once."""
    seen: dict[tuple[int, int], int] = {}
    for t in [*module.parameters(), *module.buffers()]:
        seen[t.data_ptr(), t.nbytes] = t.nbytes
    return sum(seen.values())
