"""Bytes that an assignment keeps: weights by format, and the peak of live activations."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torchsheaf.precision.dataflow import SINK, Dataflow
from torchsheaf.precision.execute import Assignment, held_format
from torchsheaf.precision.formats import FORMATS, format_of


@dataclass(frozen=True)
class Memory:
    """Bytes of stored weights (each weight once per format that reads it) and peak activations.

    weights_fp32, activations_fp32: the same for the model as it came. by_format: weight bytes.
    """

    weights: int
    activations: int
    weights_fp32: int
    activations_fp32: int
    by_format: Mapping[str, int]

    @property
    def total(self) -> int:
        """Weights and peak activations together."""
        return self.weights + self.activations

    @property
    def saved(self) -> float:
        """Share of the original model's bytes that the assignment saves."""
        return 1.0 - self.total / max(1, self.weights_fp32 + self.activations_fp32)


def count_memory(flow: Dataflow, assignment: Assignment) -> Memory:
    """Memory of an assignment by counting: sizes of stored tensors, liveness in execution order."""
    stored: dict[tuple[str, str], int] = {}
    original: dict[str, int] = {}
    for e in flow.edges:
        if e.source not in flow.graph.constants:
            continue
        origin = flow.graph.origins.get(e.source, e.source)
        tensor = flow.graph.constants[e.source]
        original[origin] = tensor.nbytes
        form = FORMATS[assignment[e.consumer]] if e.consumer != SINK else format_of(tensor.dtype)
        wide = form.holds(format_of(tensor.dtype))
        kept = format_of(tensor.dtype) if wide else form
        stored[origin, kept.name] = tensor.numel() * kept.bytes
    by_format: dict[str, int] = {}
    for (_, name), size in stored.items():
        by_format[name] = by_format.get(name, 0) + size
    return Memory(
        sum(stored.values()),
        peak_activations(flow, assignment),
        sum(original.values()),
        peak_activations(flow, dict.fromkeys(flow.choices, "fp32")),
        by_format,
    )


def peak_activations(flow: Dataflow, assignment: Assignment) -> int:
    """Largest sum of live results, views counted with what they look at, casts not counted."""
    last: dict[str, int] = {}
    for i, c in enumerate(flow.graph.calls):
        for n in c.operands:
            if n in flow.source:
                last[flow.source[n]] = i
    for n in flow.graph.outputs:
        if n in flow.source:
            last[flow.source[n]] = len(flow.graph.calls)
    live: dict[str, int] = {}
    peak = 0
    for i, c in enumerate(flow.graph.calls):
        if c.name in assignment:
            size = math.prod(flow.shapes[c.name])
            live[c.name] = size * held_format(flow, assignment, c.name).bytes
        peak = max(peak, sum(live.values()))
        for n in [n for n in live if last.get(n, -1) <= i]:
            del live[n]
    return peak
