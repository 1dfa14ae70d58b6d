"""What every operation's numbers need: their range, and which formats have a kernel for them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from torchsheaf.precision.dataflow import Dataflow
from torchsheaf.precision.execute import AssignedRun, run_exact
from torchsheaf.precision.formats import Format
from torchsheaf.precision.masking import ALL_READERS, masked_scores
from torchsheaf.precision.operators import CONTRACTION, model_of
from torchsheaf.precision.profile import Profile


@dataclass(frozen=True, slots=True)
class Range:
    """Largest and smallest non-zero finite magnitude; whether ±infinity is a legitimate value.

    masked: the largest magnitude among scores that may overflow to −∞ (see `masking`), which the
    other fields leave out.
    """

    largest: float
    smallest: float
    infinite: bool
    masked: float = 0.0

    def join(self, other: "Range") -> "Range":
        """The range of both."""
        return Range(
            max(self.largest, other.largest),
            min(self.smallest, other.smallest),
            self.infinite or other.infinite,
            max(self.masked, other.masked),
        )

    def fits(self, form: Format, margin: float) -> bool:
        """Whether all of it, `margin` times enlarged, is within the format's range."""
        past = self.infinite or self.masked * margin > form.largest
        return self.largest * margin <= form.largest and (form.has_infinity or not past)


def range_of(x: Tensor, masked: Tensor | None = None) -> Range:
    """The range of one tensor; `masked` is True where it may overflow to −∞."""
    magnitude = x.detach().abs()
    finite = torch.isfinite(magnitude)
    masked = torch.zeros_like(finite) if masked is None else masked
    aside, kept = magnitude[finite & masked], magnitude[finite & ~masked]
    nonzero = kept[kept > 0]
    return Range(
        float(kept.max()) if kept.numel() else 0.0,
        float(nonzero.min()) if nonzero.numel() else math.inf,
        bool(torch.isinf(magnitude).any()),
        float(aside.max()) if aside.numel() else 0.0,
    )


def measure_ranges(flow: Dataflow, inputs: Sequence[Any]) -> dict[tuple[str, str], Range]:
    """`ranges_in` of the float64 run on these inputs."""
    return ranges_in(flow, run_exact(flow, inputs, keep=True).values)


def ranges_in(flow: Dataflow, values: Mapping[str, Any]) -> dict[tuple[str, str], Range]:
    """(value, `ALL_READERS`) → range of every floating value among the values of a run.

    A value with masked scores has a range of its own for each reader that masks them.
    """
    found: dict[tuple[str, str], Range] = {}
    masks = masked_scores(flow, values)
    for name, value in values.items():
        first = value[0] if isinstance(value, tuple | list) and value else value
        if name in flow.source and isinstance(first, Tensor):
            found[name, ALL_READERS] = range_of(first, masks.get((name, ALL_READERS)))
    for (name, reader), masked in masks.items():
        if reader != ALL_READERS:
            found[name, reader] = range_of(values[name], masked)
    return found


def needed_range(flow: Dataflow, ranges: Mapping[tuple[str, str], Range]) -> dict[str, Range]:
    """For every choosing call, the joint range of its operands and its result."""
    needs = {}
    calls = flow.calls
    for name in flow.choices:
        whole = ranges[name, ALL_READERS]
        for n in calls[name].operands:
            part = ranges.get((n, name)) or ranges.get((n, ALL_READERS))
            whole = whole.join(part) if part else whole
        needs[name] = replace(whole, largest=whole.largest * model_of(calls[name]).gain)
    return needs


_KERNELS: dict[tuple[str, str, str], bool] = {}


def has_kernel(flow: Dataflow, name: str, form: Format, values: Mapping[str, Any]) -> bool:
    """Whether torch runs this call in this format on this machine: tried once per operator."""
    call = flow.calls[name]
    device = next((v.device.type for v in values.values() if isinstance(v, Tensor)), "cpu")
    key = (call.target, form.name, device)
    if key not in _KERNELS:
        run = AssignedRun(
            flow, [values[n] for n in flow.graph.inputs], dict.fromkeys(flow.choices, form)
        )
        read = [n for n in call.operands if n not in flow.graph.constants]
        run.values = {n: _as(values[n], form) for n in read}
        try:
            run.step(call)
            _KERNELS[key] = True
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, NotImplementedError, TypeError):
            _KERNELS[key] = False
    return _KERNELS[key]


def _as(value: Any, form: Format) -> Any:
    if isinstance(value, tuple | list):
        return type(value)(_as(v, form) for v in value)
    floating = isinstance(value, Tensor) and value.is_floating_point()
    return value.to(form.result.carrier) if floating else value


def allowed_formats(
    flow: Dataflow,
    formats: Sequence[Format],
    needs: Mapping[str, Range],
    values: Mapping[str, Any],
    profile: Profile,
    margin: float,
) -> dict[str, dict[str, str]]:
    """For every choosing call, each format with "" where it is allowed or the reason against it."""
    verdicts: dict[str, dict[str, str]] = {}
    for name in flow.choices:
        call = flow.calls[name]
        verdicts[name] = {}
        for f in formats:
            reason = ""
            if f.name == "tf32" and call.packet not in CONTRACTION:
                reason = "tf32 is a mode of matrix products"
            elif not profile.supports(call, f):
                reason = f"profile {profile.name!r} has no {f.name} kernel for {call.packet}"
            elif not needs[name].fits(f, margin):
                reach = max(needs[name].largest, 0.0 if f.has_infinity else needs[name].masked)
                infinite = needs[name].infinite and not f.has_infinity
                why = "holds infinities" if infinite else f"reaches {reach:.4g}"
                reason = f"{why}; {f.name} ends at {f.largest:.5g} (margin ×{margin:g})"
            elif not f.is_emulated and not has_kernel(flow, name, f, values):
                reason = f"torch has no {f.name} kernel for {call.packet} here"
            verdicts[name][f.name] = reason
    return verdicts
