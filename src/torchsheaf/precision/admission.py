"""What a plan refuses of a model and its inputs, and what it says about itself at the end."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from torchsheaf.cochain import is_finite
from torchsheaf.network.aten import AtenCall
from torchsheaf.precision.bounds import reference_bound
from torchsheaf.precision.dataflow import Dataflow
from torchsheaf.precision.execute import run_exact, uniform
from torchsheaf.precision.formats import Format
from torchsheaf.precision.measure import Measurement
from torchsheaf.precision.predict import predict
from torchsheaf.precision.price import NoSection
from torchsheaf.precision.ranges import Range, needed_range, ranges_in
from torchsheaf.precision.sensitivity import Sensitivity
from torchsheaf.precision.tighten import Attempt


def refuse_nonfinite(flow: Dataflow, batches: Sequence[tuple[Any, ...]]) -> None:
    """`ValueError` naming the weight or input that holds a NaN, or an input that is infinite."""
    for name, tensor in flow.graph.constants.items():
        if tensor.is_floating_point() and bool(torch.isnan(tensor).any()):
            origin = flow.graph.origins.get(name, name)
            raise ValueError(f"weight {origin!r} contains NaN; restore or re-initialise it")
    for batch in batches:
        for name, x in zip(flow.graph.inputs, batch, strict=True):
            if isinstance(x, Tensor) and not is_finite(x):
                raise ValueError(f"input {name!r} contains NaN or infinity; pass finite numbers")


def refuse_no_output(flow: Dataflow) -> None:
    """`ValueError` where nothing that the model returns can carry an error."""
    if not any(n in flow.source and math.prod(flow.shapes[n]) for n in flow.graph.outputs):
        raise ValueError("model returns no floating-point tensor with elements; a budget needs one")


def refuse_undefined(flow: Dataflow, values: Mapping[str, Any]) -> None:
    """`ValueError` naming the first operation that is NaN in float64, where an output is."""
    if any(_holds_nan(values[n]) for n in flow.graph.outputs):
        first = next((c for c in flow.choices if _holds_nan(values[c])), flow.graph.outputs[0])
        raise ValueError(
            f"{flow.labels.get(first, first)!r} gives NaN in float64 on these inputs, and so does "
            "the model; pass inputs on which it is defined"
        )


def _holds_nan(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return any(map(_holds_nan, value))
    floating = isinstance(value, Tensor) and value.is_floating_point()
    return floating and bool(torch.isnan(value).any())


def joint_ranges(
    flow: Dataflow, batches: Sequence[tuple[Any, ...]]
) -> tuple[dict[str, Range], Mapping[str, Any]]:
    """What every choosing call needs of a range, over all batches; and the values of the first.

    Raises `ValueError` where the output is NaN on one of them. Cost: one float64 run per batch.
    """
    whole: dict[str, Range] = {}
    first: Mapping[str, Any] = {}
    for batch in batches:
        values = run_exact(flow, batch, keep=True).values
        refuse_undefined(flow, values)
        first = first or values
        for name, r in needed_range(flow, ranges_in(flow, values)).items():
            whole[name] = whole[name].join(r) if name in whole else r
    return whole, first


def refuse_empty(
    flow: Dataflow,
    stalks: Mapping[str, tuple[str, ...]],
    verdicts: Mapping[str, Mapping[str, str]],
    pins: Mapping[str, str],
) -> None:
    """`NoSection` naming every operation that no format is left for, with the reasons."""
    empty = [c for c in flow.choices if not stalks[flow.labels[c]]]
    if empty:
        lines = []
        for c in empty[:8]:
            label = flow.labels[c]
            why = [f"{f}: {r}" for f, r in verdicts[c].items() if r]
            pinned = f" (pinned to {pins[label]})" if label in pins else ""
            lines.append(f"{label}{pinned}: " + "; ".join(why))
        raise NoSection(
            "empty stalk", "no format is left for these operations:\n  " + "\n  ".join(lines)
        )


def groups(flow: Dataflow, together: Sequence[Sequence[str]]) -> tuple[tuple[str, ...], ...]:
    """User groups as ties of labels; `ValueError` where a key names nothing."""
    ties = []
    for group in together:
        members: dict[str, None] = {}
        for key in group:
            found = flow.find(key)
            if not found:
                raise ValueError(f"together: {key!r} names no operation")
            members |= {flow.labels[c]: None for c in found}
        ties.append(tuple(members))
    return tuple(t for t in ties if len(t) > 1)


def over_budget(tried: Sequence[Attempt], budget: float, norm: str, margin: float) -> NoSection:
    """The error for when even the most precise section measures over the budget."""
    best = min((a.measured for a in tried), key=lambda m: m.value, default=None)
    measured = f"{best.value:.4g}" if best else "nothing that could be run"
    reachable = best.value / margin if best and math.isfinite(best.value) else None
    # Rounded up, so that the number can be written as it stands.
    raised = f" to {reachable * 1.001:.4g}" if reachable else ""
    refusal = NoSection(
        "budget",
        f"no section meets the budget {budget:.4g} ({norm}, {margin:.0%} of it on calibration "
        f"inputs): the best of {len(tried)} that were run measures {measured}; "
        f"add a wider format, raise the budget{raised} or drop pins",
        best,
    )
    refusal.reachable = reachable
    return refusal


def flags(
    best: Attempt, tried: Sequence[Attempt], flow: Dataflow, formats: Sequence[Format]
) -> tuple[str, ...]:
    """What should not be trusted about this plan, in sentences."""
    found = []
    ratio = best.predicted.rms / best.measured.rms if best.measured.rms > 0 else 1.0
    narrow = {f.name for f in formats if f.bits < 24} & set(best.section.values())
    if narrow and not 0.8 <= ratio <= 1.25:
        found.append(f"the prediction is off here: predicted/measured rms is {ratio:.2f}")
    short = max((_shortfall(a) for a in tried), default=0.0)
    if short > 1.5:
        found.append(
            f"a section that was tried measured {short:.2g} times its predicted worst sample: the "
            "estimate is local and this network is not linear over these roundings"
        )
    worst = max((a.predicted.spread for a in tried), default=0.0)
    if worst > 0.12:
        found.append(
            f"the probes differ by {worst:.0%}: few directions of the output carry the error "
            "(sharp attention, few outputs); the estimate is uncertain: rely on what is measured"
        )
    bend = max((a.shift.bend for a in tried), default=0.0)
    if bend > 0.1:
        found.append(
            f"the response bends by {bend:.0%} within the roundings: the first-order estimate is "
            "not reliable for the narrowest formats"
        )
    emulated = sorted({f.name for f in formats if f.is_emulated} & set(best.section.values()))
    if emulated:
        found.append(f"{', '.join(emulated)}: emulated here (rounding around float32 kernels)")
    compared = [c.name for c in flow.graph.calls if _steps(flow, c)]
    if compared:
        found.append(
            f"{len(compared)} comparisons or whole parts of floating values "
            f"({', '.join(compared[:3])}): "
            "a rounding that flips one is not in the prediction"
        )
    return tuple(found)


def doubt(measured: Measurement, allowed: float) -> tuple[str, ...]:
    """The sentence for a budget (as an rms error) that the reference itself may not keep."""
    expected = measured.reference_estimate
    if not expected > allowed:
        return ()
    return (
        f"the float64 reference itself is expected to err by {expected:.2g} rms, which is over the "
        "budget: the plan reproduces the reference, not the exact output",
    )


def _shortfall(a: Attempt) -> float:
    """Measured over predicted for the worst sample, where it is above the noise of float32."""
    narrow = any(f in ("bf16", "fp16") or f.startswith("fp8") for f in a.section.values())
    return a.measured.value / a.predicted.value if narrow and a.predicted.value > 0 else 0.0


_COMPARISONS = {"gt", "ge", "lt", "le", "argmax", "argmin", "topk", "sort", "sign"}
_WHOLE = {"round", "floor", "ceil", "trunc"}


def _steps(flow: Dataflow, c: AtenCall) -> bool:
    """Whether the result of a call jumps as the floating values that it reads move."""
    if not any(n in flow.source and not flow.is_constant(n) for n in c.operands):
        return False
    whole = c.packet in _WHOLE or (c.packet == "_to_copy" and not c.is_floating)
    return whole or c.packet in _COMPARISONS or bool(c.kwargs.get("rounding_mode"))


def with_reference(
    flow: Dataflow, batches: Sequence[tuple[Any, ...]], m: Measurement, table: Sensitivity
) -> Measurement:
    """The measurement with what is known about the error of its float64 reference."""
    estimate = predict(flow, table, uniform(flow, "fp64"), "rms").rms
    bound = max(reference_bound(flow, b) for b in batches)
    return replace(m, reference_bound=bound, reference_estimate=estimate)
