"""From the tables to a number: the predicted error of an assignment, its interval, its blame."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from scipy.special import stdtrit
from torch import Tensor

from torchsheaf.network.aten import substitute
from torchsheaf.precision.dataflow import SINK, Dataflow
from torchsheaf.precision.execute import AssignedRun, Assignment, Caster, held_format, keywords
from torchsheaf.precision.formats import FORMATS, Format, format_of
from torchsheaf.precision.measure import batch_of, by_sample, difference, norm_of
from torchsheaf.precision.sensitivity import Sensitivity


@dataclass(frozen=True)
class Prediction:
    """Predicted error: `value` in the budget's norm for the worst sample, `rms` over all outputs.

    low, high: a 95% interval for `rms`, from the spread of the probes alone. spread: relative
    standard deviation of the probes. factor: value / rms, from the shape of the known errors.
    """

    norm: str
    value: float
    rms: float
    low: float
    high: float
    spread: float
    factor: float

    def __float__(self) -> float:
        return self.value


@dataclass(frozen=True)
class Share:
    """What one operation adds to the output error; `error` sums to the total over operations."""

    operation: str
    kind: str
    format: str
    share: float
    error: float
    kernel: float
    weights: float
    casts: float


def contributions(
    flow: Dataflow, table: Sensitivity, assignment: Assignment
) -> dict[str, dict[str, Tensor]]:
    """Mean-square output error per call and probe: kernel, weights, casts, and those of inputs."""
    zero = torch.zeros(table.probes, dtype=torch.float64)
    parts = {}
    for c in flow.choices:
        f = assignment[c]
        parts[c] = {
            "kernel": table.kernel.get(c, {}).get(f, zero),
            "weights": table.weight.get(c, {}).get(f, zero),
            "casts": zero,
            "inputs": zero,
        }
    for e in flow.edge_list(constant=False):
        if e.consumer == SINK:
            continue
        if not FORMATS[assignment[e.consumer]].holds(held_format(flow, assignment, e.source)):
            entry = table.cast.get((e.operand, e.consumer), {})
            part = parts[e.consumer]
            kind = "inputs" if e.source in flow.graph.inputs else "casts"
            part[kind] = part[kind] + entry.get(assignment[e.consumer], zero)
    return parts


@dataclass(frozen=True)
class KnownShift:
    """What rounding the weights and inputs alone does: known before anything is run low.

    square: mean-square output error; factor: worst-sample norm over rms; bend: how far twice the
    shift of halved roundings is from the shift (0 for a linear response).
    """

    square: float
    factor: float
    bend: float


class _Shifted(AssignedRun):
    """A run in one wide dtype on weights and inputs rounded as the assignment rounds them."""

    def __init__(
        self, flow: Dataflow, inputs: Sequence[Any], assignment: Assignment, fraction: float,
        dtype: torch.dtype,
    ) -> None:  # fmt: skip
        super().__init__(flow, inputs, {c: FORMATS[f] for c, f in assignment.items()})
        self.fraction, self.dtype = fraction, dtype
        self.values = {n: Caster(dtype)(x) for n, x in self.values.items()}

    def operand(self, name: str, form: Format) -> Any:
        if name not in self.flow.source:
            return self.plain(name)
        if self.flow.is_constant(name):
            return self.weight(name, form)
        value = self.values[name]
        if self.flow.source[name] not in self.flow.graph.inputs:
            return value
        return self.blend(value, form)

    def blend(self, value: Tensor, form: Format) -> Tensor:
        rounded = form.round(value).to(self.dtype)
        # An infinity stays itself: ∞ − ∞ is no shift, and neither is 0·∞.
        if self.fraction == 0.0:
            return value
        return torch.where(rounded == value, value, value + self.fraction * (rounded - value))

    def stored(self, name: str, form: Format | None) -> Tensor:
        tensor = self.flow.graph.constants[name]
        if not tensor.is_floating_point():
            return tensor
        wide = tensor.to(self.dtype)
        if form is None or form.holds(format_of(tensor.dtype)):
            return wide
        return self.blend(wide, form)

    def step(self, c: Any) -> None:
        kind = self.flow.kinds[c.name]
        if kind in ("rounding", "select"):
            form = self.formats[c.name]

            def value(n: str) -> Any:
                return self.operand(n, form)

            self.values[c.name] = c.call(
                *substitute(c.args, value), **keywords(c, value, self.dtype)
            )
        else:
            super().step(c)

    def sample(self) -> Tensor:
        for c in self.flow.graph.calls:
            self.step(c)
        outputs = [self.plain(n) for n in self.flow.graph.outputs if n in self.flow.source]
        return by_sample(outputs, batch_of([self.values[n] for n in self.flow.graph.inputs]))


def known_shift(
    flow: Dataflow, inputs: Sequence[Any], assignment: Assignment, norm: str,
    dtype: torch.dtype = torch.float32,
) -> KnownShift:  # fmt: skip
    """Three forward passes in `dtype`: exact, weights and inputs rounded, and half as much."""
    with torch.no_grad():
        runs = [_Shifted(flow, inputs, assignment, w, dtype).sample() for w in (0.0, 0.5, 1.0)]
    exact, half, full = runs
    shift, halved = difference(full, exact), difference(half, exact)
    exact = exact.masked_fill(torch.isinf(exact), 0.0)
    square = float(shift.square().mean())
    if not math.isfinite(square):
        return KnownShift(math.nan, 1.0, math.inf)
    rms = math.sqrt(square)
    # Below a few roundings of the run itself the shift is noise.
    noise = 2.0 ** (-20 if dtype == torch.float32 else -48) * float(exact.square().mean().sqrt())
    factor = float(norm_of(shift, exact, norm).max()) / rms if rms > noise else math.nan
    bend = float((2 * halved - shift).square().mean().sqrt()) / rms if rms > noise else 0.0
    return KnownShift(square if rms > noise else 0.0, factor, bend)


def default_factor(norm: str, elements: int, scale: float) -> float:
    """Worst-sample norm over rms for errors without structure: √(2 ln 2K) for the max norm."""
    if norm == "max":
        return math.sqrt(2 * math.log(2 * max(elements, 2)))
    return 1.0 if norm == "rms" else 1.0 / max(scale, 1e-300)


def predict(
    flow: Dataflow,
    table: Sensitivity,
    assignment: Assignment,
    norm: str,
    shift: KnownShift | None = None,
    scale: float = 1.0,
) -> Prediction:
    """Predicted error of an assignment; weights and inputs enter by their known shift if given."""
    parts = contributions(flow, table, assignment)
    random = torch.zeros(table.probes, dtype=torch.float64)
    known = torch.zeros(table.probes, dtype=torch.float64)
    for p in parts.values():
        random = random + p["kernel"] + p["casts"]
        known = known + p["weights"] + p["inputs"]
    raw = random + known
    if shift is not None and math.isfinite(shift.square):
        known = torch.full_like(known, shift.square)
    totals = random + known
    average = max(float(totals.mean()), 0.0)
    m = table.probes
    deviation = float(totals.std()) if m > 1 else 0.0
    half = float(stdtrit(m - 1, 0.975)) * deviation / math.sqrt(m) if m > 1 else 0.0
    rms = math.sqrt(average)
    factor = default_factor(norm, table.elements, scale)
    if shift is not None and math.isfinite(shift.factor):
        factor = shift.factor
    return Prediction(
        norm,
        rms * factor,
        rms,
        math.sqrt(max(average - half, 0.0)),
        math.sqrt(average + half),
        _spread(raw),
        factor,
    )


def _spread(totals: Tensor) -> float:
    """Relative standard deviation of the probes."""
    average = float(totals.mean())
    return float(totals.std()) / average if len(totals) > 1 and average > 0 else 0.0


def blame(
    flow: Dataflow, table: Sensitivity, assignment: Assignment, prediction: Prediction
) -> list[Share]:
    """Share of the predicted output error per operation, largest first; errors sum to the total.

    Variances add, so an operation's share is its part of the mean square, and its error is that
    share of `prediction.value`.
    """
    parts = contributions(flow, table, assignment)
    squares = {c: {k: float(v.mean()) for k, v in p.items()} for c, p in parts.items()}
    total = sum(sum(p.values()) for p in squares.values())
    shares = []
    for c, p in squares.items():
        share = sum(p.values()) / total if total > 0 else 0.0
        unit = prediction.value / total if total > 0 else 0.0
        shares.append(
            Share(
                flow.labels[c], flow.calls[c].packet, assignment[c], share,
                share * prediction.value, p["kernel"] * unit, p["weights"] * unit,
                (p["casts"] + p["inputs"]) * unit,
            )
        )  # fmt: skip
    return sorted(shares, key=lambda s: -s.share)
