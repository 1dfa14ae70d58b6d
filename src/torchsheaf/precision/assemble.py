"""Dataflow + sensitivity + ranges + profile → AssignmentProblem."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from torchsheaf.precision.dataflow import SINK, Dataflow
from torchsheaf.precision.formats import FORMATS, Format, format_of
from torchsheaf.precision.problem import AssignmentProblem, Cast, Row
from torchsheaf.precision.profile import Profile
from torchsheaf.precision.sensitivity import Sensitivity, analyse


def input_label(name: str) -> str:
    """The pseudo-operation that stands for an input of the model."""
    return f"input {name}"


def end_label(flow: Dataflow, source: str) -> str:
    """The operation or pseudo-operation at the source end of an edge."""
    return flow.labels.get(source) or input_label(source)


def find_pins(flow: Dataflow, pins: Mapping[str, str], formats: Sequence[str]) -> dict[str, str]:
    """User pins (label, module path or operator → format) as one format per operation.

    A longer, more specific key wins. Raises `ValueError` where a key names nothing.
    """
    pinned: dict[str, str] = {}
    ranked = sorted(pins.items(), key=lambda item: (len(flow.find(item[0])) * -1, len(item[0])))
    for key, fmt in ranked:
        found = flow.find(key)
        if not found:
            names = ", ".join(sorted(flow.labels.values())[:12])
            raise ValueError(f"pins: {key!r} names no operation; the labels begin with {names}")
        if fmt not in formats:
            raise ValueError(f"pins: {key!r} asks for {fmt!r}, which is not among {list(formats)}")
        pinned |= {flow.labels[c]: fmt for c in found}
    return pinned


def tied_weights(flow: Dataflow) -> tuple[tuple[str, ...], ...]:
    """Operations that read one stored weight: they share its format, so that it is stored once."""
    readers: dict[str, dict[str, None]] = {}
    for e in flow.edge_list(constant=True):
        if e.consumer != SINK:
            origin = flow.graph.origins.get(e.source, e.source)
            readers.setdefault(origin, {})[flow.labels[e.consumer]] = None
    return tuple(tuple(r) for r in readers.values() if len(r) > 1)


def stalks_of(
    flow: Dataflow, verdicts: Mapping[str, Mapping[str, str]], pins: Mapping[str, str]
) -> dict[str, tuple[str, ...]]:
    """Formats that every operation may use, with the pseudo-operations for inputs and output."""
    stalks: dict[str, tuple[str, ...]] = {}
    for name, (_, dtype) in flow.graph.input_meta.items():
        if dtype.is_floating_point:
            stalks[input_label(name)] = (format_of(dtype).name,)
    for c in flow.choices:
        label = flow.labels[c]
        allowed = tuple(f for f, reason in verdicts[c].items() if not reason)
        stalks[label] = tuple(f for f in allowed if f == pins[label]) if label in pins else allowed
    if any(e.consumer == SINK for e in flow.edge_list(constant=False)):
        stalks[SINK] = (sink_format(flow).name,)
    return stalks


def sink_format(flow: Dataflow) -> Format:
    """The format in which the model returns its outputs."""
    dtypes = {c.dtype for c in flow.graph.calls if c.name in flow.graph.outputs and c.is_floating}
    wide = max((format_of(d) for d in dtypes if d is not None), key=lambda f: f.bits, default=None)
    return wide or FORMATS["fp32"]


def mean(table: Mapping[str, Tensor] | None, form: str) -> float:
    """The probe mean of one table entry, 0 where there is none."""
    return float(table[form].mean()) if table and form in table else 0.0


def casts_of(
    flow: Dataflow, stalks: Mapping[str, tuple[str, ...]], profile: Profile
) -> tuple[Cast, ...]:
    """One cast per edge between operations, priced by the profile."""
    casts = []
    for e in flow.edge_list(constant=False):
        source, consumer = end_label(flow, e.source), flow.labels.get(e.consumer, SINK)
        size = math.prod(flow.shapes[e.operand])
        cost = {}
        for s in stalks[source]:
            for t in stalks[consumer]:
                held, wanted = FORMATS[s].result, FORMATS[t]
                delivered = consumer == SINK and held.bits > wanted.bits
                cost[s, t] = 0.0 if delivered else profile.cast(held, wanted, size)
        casts.append(Cast(source, consumer, e.operand, cost))
    return tuple(casts)


def error_tables(
    flow: Dataflow, table: Sensitivity, stalks: Mapping[str, tuple[str, ...]]
) -> tuple[dict[str, dict[str, float]], dict[int, dict[tuple[str, str], float]]]:
    """Mean-square output error per operation and format, and per cast and pair of formats."""
    unary = {}
    for c in flow.choices:
        label = flow.labels[c]
        unary[label] = {
            f: mean(table.kernel.get(c), f) + mean(table.weight.get(c), f) for f in stalks[label]
        }
    pair: dict[int, dict[tuple[str, str], float]] = {}
    for i, e in enumerate(flow.edge_list(constant=False)):
        if e.consumer == SINK:
            continue
        entry = table.cast.get((e.operand, e.consumer))
        values = {}
        for s in stalks[end_label(flow, e.source)]:
            for t in stalks[flow.labels[e.consumer]]:
                if not FORMATS[t].holds(FORMATS[s].result):
                    value = mean(entry, t)
                    if value != 0.0:
                        values[s, t] = value
        if values:
            pair[i] = values
    return unary, pair


def assemble(
    flow: Dataflow,
    table: Sensitivity,
    stalks: Mapping[str, tuple[str, ...]],
    profile: Profile,
    limit: float,
    ties: tuple[tuple[str, ...], ...] = (),
) -> AssignmentProblem:
    """The problem with one budget row: mean-square output error ≤ limit."""
    floating = set(flow.source)
    cost: dict[str, dict[str, float]] = {}
    for v, stalk in stalks.items():
        cost[v] = dict.fromkeys(stalk, 0.0)
    for c in flow.choices:
        label, call = flow.labels[c], flow.calls[c]
        cost[label] = {
            f: profile.operation(call, FORMATS[f], flow.shapes, floating) for f in stalks[label]
        }
    unary, pair = error_tables(flow, table, stalks)
    row = Row("mean-square output error", limit, unary, pair)
    return AssignmentProblem(dict(stalks), cost, casts_of(flow, stalks, profile), (row,), ties)


def weigh(
    flow: Dataflow, batch: Sequence[Any], formats: Sequence[Format],
    assembled: Callable[[Sensitivity], AssignmentProblem], *, probes: int | str,
    generator: torch.Generator | None, dtype: torch.dtype,
) -> tuple[Sensitivity, AssignmentProblem]:  # fmt: skip
    """Sensitivities in `dtype`, or in float64 where it loses their squares, and their problem.

    Raises `ValueError` where float64 loses them too.
    """
    for wide in dict.fromkeys((dtype, torch.float64)):
        table = analyse(flow, batch, formats, probes=probes, generator=generator, dtype=wide)
        problem = assembled(table)
        terms = problem.rows[0].terms
        # Nothing but zeros is what squares that underflow look like.
        if all(map(math.isfinite, terms)) and (any(terms) or wide == torch.float64):
            return table, problem
    raise ValueError(
        "the errors of this network on these inputs have squares that overflow float64, so no "
        "error model holds them; scale the inputs or the weights down"
    )
