"""How much each rounding moves the output: adjoints of a few random probes.

To first order the output error is Σ_i J_i·δ_i over all local roundings δ_i. With independent
roundings of variance ulp²/12, E‖error‖² = Σ_i ‖J_i‖² var_i, and for a random sign vector r,
E (rᵀJ_i)² = ‖J_i‖² (Hutchinson). One reverse sweep gives rᵀJ_i for every i at once.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torchsheaf.cochain import is_finite
from torchsheaf.draws import random_signs
from torchsheaf.network.aten import AtenCall, substitute
from torchsheaf.precision.dataflow import SINK, Dataflow, Edge
from torchsheaf.precision.differentiable import DIFFERENTIABLE
from torchsheaf.precision.execute import keywords, view_of
from torchsheaf.precision.formats import Format, binade, format_of
from torchsheaf.precision.masking import new_infinities
from torchsheaf.precision.operators import model_of, usual_terms_of


@dataclass(frozen=True, eq=False)
class Sensitivity:
    """Mean-square output error that each rounding causes, one number per probe.

    kernel[call][format]: rounding of the call's own result. weight[call][format]: its weights
    rounded to the format. cast[operand, call][format]: an operand rounded to the format.
    Every entry is a tensor (probes,), already divided by the number of output elements.
    """

    formats: tuple[str, ...]
    probes: int
    elements: int
    kernel: Mapping[str, Mapping[str, Tensor]]
    weight: Mapping[str, Mapping[str, Tensor]]
    cast: Mapping[tuple[str, str], Mapping[str, Tensor]]
    dtype: torch.dtype


@dataclass
class Tape:
    """A forward pass with a tap on every place where a rounding can happen.

    overflows: where the result of a call is infinite though its operands are finite.
    """

    outputs: list[Tensor]
    results: dict[str, list[Tensor]]
    operands: dict[Edge, Tensor]
    weights: dict[Edge, Tensor]
    terms: dict[str, int]
    overflows: dict[str, Tensor]

    @property
    def taps(self) -> list[Tensor]:
        """Every tapped tensor, in a fixed order."""
        own = [t for parts in self.results.values() for t in parts]
        return own + list(self.operands.values()) + list(self.weights.values())


def record(flow: Dataflow, inputs: Sequence[Any], dtype: torch.dtype) -> Tape:
    """Run the graph in `dtype` and keep what the adjoint needs: one tap per rounding.

    A value with several readers is tapped once per reader, so that a cast for one reader is
    weighed by that reader's path alone; a weight is a separate leaf for every reader.
    """
    return _Recorder(flow, inputs, dtype).run()


class _Recorder:
    def __init__(self, flow: Dataflow, inputs: Sequence[Any], dtype: torch.dtype) -> None:
        self.flow, self.dtype = flow, dtype
        self.calls = flow.calls
        self.readers = {n: len(r) for n, r in flow.graph.consumers().items()}
        for n in flow.graph.outputs:
            self.readers[n] = self.readers.get(n, 0) + 1
        self.edges = {(e.operand, e.consumer): e for e in flow.edges}
        self.values: dict[str, Any] = {}
        for name, x in zip(flow.graph.inputs, inputs, strict=True):
            floating = isinstance(x, Tensor) and x.is_floating_point()
            self.values[name] = x.to(dtype).detach().requires_grad_() if floating else x
        self.tape = Tape([], {}, {}, {}, {}, {})

    def run(self) -> Tape:
        with torch.enable_grad():
            for c in self.flow.graph.calls:
                self.step(c)
            for n in self.flow.graph.outputs:
                if n in self.flow.source:
                    self.tape.outputs.append(self.operand(n, SINK))
        return self.tape

    def step(self, c: AtenCall) -> None:
        kind = self.flow.kinds[c.name]
        if kind == "structural" and self.flow.is_constant(c.name):
            return
        if c.packet == "_to_copy" and c.is_floating and c.operands[0] in self.flow.source:
            self.values[c.name] = self.values[c.operands[0]]
            return
        choosing = kind in ("rounding", "select")

        def value(n: str) -> Any:
            return self.operand(n, c.name) if choosing else self.plain(n)

        kernel = DIFFERENTIABLE.get(c.packet, c.call) if choosing else c.call
        result = kernel(*substitute(c.args, value), **keywords(c, value, self.dtype))
        if choosing:
            parts = result if isinstance(result, tuple | list) else [result]
            floating = [p for p in parts if isinstance(p, Tensor) and p.is_floating_point()]
            for p in floating:
                # Made of integers alone: a leaf, whose rounding moves the output all the same.
                p.requires_grad_()
            self.tape.results[c.name] = [p for p in floating if p.requires_grad][:1] + [
                p for p in floating[1:] if p.requires_grad and c.packet == "var_mean"
            ]
            self.tape.terms[c.name] = usual_terms_of(c, self.flow.shapes)
            born = new_infinities(c, value, floating[0].detach(), self.dtype)
            if kind == "rounding" and born is not None:
                self.tape.overflows[c.name] = born
        self.values[c.name] = result

    def plain(self, n: str) -> Any:
        if n in self.values:
            return self.values[n]
        return self.view(n, self.flow.graph.constants[self.flow.source.get(n, n)])

    def view(self, n: str, leaf: Tensor) -> Any:
        """A constant or an exact view of one, of `leaf` in the place of the constant."""
        source, constants = self.flow.source.get(n, n), self.flow.graph.constants
        return view_of(self.flow, n, lambda m: leaf if m == source else constants[m], self.dtype)

    def operand(self, n: str, reader: str) -> Any:
        edge = self.edges.get((n, reader))
        if edge is None:
            return self.plain(n)
        if self.flow.is_constant(n):
            if edge not in self.tape.weights:
                leaf = self.flow.graph.constants[edge.source].to(self.dtype).detach()
                self.tape.weights[edge] = leaf.requires_grad_()
            return self.view(n, self.tape.weights[edge])
        if edge not in self.tape.operands:
            value = self.values[n]
            self.tape.operands[edge] = value.view_as(value) if self.readers[n] > 1 else value
        return self.tape.operands[edge]


def random_sweeps(tape: Tape, count: int, generator: torch.Generator) -> Iterator[list[Tensor]]:
    """`count` independent vectors of ±1 over all outputs."""
    for _ in range(count):
        yield [random_signs(o, generator) for o in tape.outputs]


def unit_vectors(tape: Tape) -> Iterator[list[Tensor]]:
    """Every output element in turn: the full adjoint, one sweep per element."""
    for i, o in enumerate(tape.outputs):
        for k in range(o.numel()):
            seeds = _nothing(tape)
            seeds[i].view(-1)[k] = 1.0
            yield seeds


def _nothing(tape: Tape) -> list[Tensor]:
    """Zeros of the outputs' shapes; contiguous, however the outputs lie in memory."""
    return [torch.zeros(t.shape, dtype=t.dtype, device=t.device) for t in tape.outputs]


def adjoint(tape: Tape, seeds: list[Tensor]) -> list[Tensor | None]:
    """rᵀJ at every tap, for one vector r over the outputs: one reverse sweep."""
    pairs = [(o, s) for o, s in zip(tape.outputs, seeds, strict=True) if o.requires_grad]
    if not pairs or not tape.taps:
        return [None] * len(tape.taps)
    return list(
        torch.autograd.grad(
            [o for o, _ in pairs],
            tape.taps,
            [s for _, s in pairs],
            retain_graph=True,
            allow_unused=True,
        )
    )


def variance_scale(call: AtenCall | None, form: Format, terms: int) -> float:
    """A rounding's variance over the square of the value's binade (that of emin at least).

    2^(2(1 − bits))/12, the variance of a uniform error of one unit in the last place, and what the
    kernel of `call`, with `terms` partial sums, has on top.
    """
    scale = 4.0 ** (1 - form.bits) / 12
    if call is not None:
        model = model_of(call)
        if model.drifts and form.bits < 24 and not form.is_emulated:
            # n roundings of partial sums s_k: Σ s_k² = n/2·s_n² for a random walk, n/3 for a drift.
            return scale * (1.0 + terms / 2.0)
        scale *= model.narrow**2 if form.bits < 24 else 1.0
        if model.accumulates and form.bits >= 24:
            # A random walk of roundings over some 32 partial sums; the 4 is fitted to the zoo.
            scale *= 4.0 * (1.0 + terms / 32.0)
    return scale


def analyse(
    flow: Dataflow,
    inputs: Sequence[Any],
    formats: Sequence[Format],
    *,
    probes: int | str = 4,
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float32,
) -> Sensitivity:
    """Tables of the mean-square output error per rounding, from `probes` random adjoints.

    probes: how many, or "full" for one sweep per output element (exact, and costly).
    Cost: one forward and `probes` reverse sweeps in `dtype`; float64 where float32 overflows.
    """
    generator = generator or torch.Generator().manual_seed(0)
    tape = record(flow, inputs, dtype)
    finite = all(is_finite(o) for o in tape.outputs) and not tape.overflows
    if not finite and dtype == torch.float32:
        return analyse(
            flow, inputs, formats, probes=probes, generator=generator, dtype=torch.float64
        )
    elements = sum(o.numel() for o in tape.outputs)
    if probes == "full":
        sweeps: Iterator[list[Tensor]] = unit_vectors(tape)
    else:
        sweeps = random_sweeps(tape, int(probes), generator)
    table = _Table(flow, tape, formats)
    count = 0
    for seeds in sweeps:
        table.add(adjoint(tape, seeds))
        count += 1
    return table.finish(count, elements, probes == "full", dtype)


def analyse_output(
    flow: Dataflow, inputs: Sequence[Any], formats: Sequence[Format], index: int,
    dtype: torch.dtype = torch.float32,
) -> Sensitivity:  # fmt: skip
    """The exact table of one output element (flat index over all outputs): one reverse sweep."""
    tape = record(flow, inputs, dtype)
    seeds = _nothing(tape)
    for seed in seeds:
        if index < seed.numel():
            seed.view(-1)[index] = 1.0
            break
        index -= seed.numel()
    table = _Table(flow, tape, formats)
    table.add(adjoint(tape, seeds))
    return table.finish(1, 1, False, dtype)


def _weighted(squared: Tensor, weight: Tensor) -> Tensor:
    """Σ g²·w, where 0·∞ = 0: what does not reach the output, or is not moved, adds nothing."""
    nothing = (squared == 0) | (weight == 0)
    return (squared * weight).masked_fill(nothing, 0.0).sum(dtype=torch.float64)


# Formats with the scale of their variance, and what each number weighs in units of it.
_Group = tuple[dict[str, float], Tensor]


class _Table:
    """Accumulates Σ_i (rᵀJ_i)² var_i(format) per tap and probe."""

    def __init__(self, flow: Dataflow, tape: Tape, formats: Sequence[Format]) -> None:
        self.flow, self.tape, self.formats = flow, tape, formats
        self.rows: list[tuple[str, Any, list[_Group]]] = []
        for name, parts in tape.results.items():
            for part in parts:
                self.rows.append(("kernel", name, self.rounding(name, part.detach())))
        for edge, value in tape.operands.items():
            key = edge.operand, edge.consumer
            if edge.consumer == SINK:
                self.rows.append(("none", key, []))
            elif edge.source in flow.graph.inputs:
                self.rows.append(("cast", key, self.known(value.detach())))
            else:
                scales = {f: variance_scale(None, f, 1) for f in formats}
                self.rows.append(("cast", key, self.by_floor(value.detach(), scales)))
        for edge, leaf in tape.weights.items():
            self.rows.append(("weight", edge.consumer, self.known(leaf.detach())))
        self.sums: list[dict[str, list[float]]] = [{f.name: [] for f in formats} for _ in self.rows]

    def rounding(self, name: str, result: Tensor) -> list[_Group]:
        """What rounding the result of a call weighs."""
        c = self.flow.calls[name]
        if self.flow.kinds[name] == "select":
            return []
        if c.packet == "_to_copy":  # integers, which are known beforehand
            return self.known(result, exact=False)
        terms = self.tape.terms[name]
        scales = {f.result: variance_scale(c, f.result, terms) for f in self.formats}
        return self.by_floor(result, scales, self.tape.overflows.get(name))

    def by_floor(
        self, value: Tensor, scales: Mapping[Format, float], overflow: Tensor | None = None
    ) -> list[_Group]:
        """binade² of the value, clamped once per distinct subnormal threshold.

        0 for ±∞, which every format holds, unless it stands for a number that overflowed.
        """
        squared = binade(value.reshape(-1))
        handed = torch.isinf(value) if overflow is None else torch.isinf(value) & ~overflow
        exact = handed.reshape(-1) if handed.any() else None
        groups: dict[float, dict[str, float]] = {}
        for f, scale in scales.items():
            groups.setdefault(max(2.0**f.emin, 2.0**-126), {})[f.name] = scale
        found = []
        for floor, members in groups.items():
            weight = torch.clamp(squared, min=floor).square_()
            found.append((members, weight if exact is None else weight.masked_fill_(exact, 0.0)))
        return found

    def known(self, value: Tensor, exact: bool = True) -> list[_Group]:
        """(round(x) − x)² for numbers that are known beforehand: weights, inputs and integers.

        exact: the value's own dtype is that of the numbers, so that wider formats hold them.
        """
        groups = []
        for f in self.formats:
            if not exact or not f.holds(format_of(value.dtype)):
                delta = (f.round(value).to(value.dtype) - value).reshape(-1)
                groups.append(({f.name: 1.0}, torch.nan_to_num(delta).square_()))
        return groups

    def add(self, adjoints: list[Tensor | None]) -> None:
        found: list[Tensor] = []
        for (_, _, groups), g in zip(self.rows, adjoints, strict=True):
            squared = None if g is None or not groups else g.reshape(-1).square()
            if squared is not None:
                found += [_weighted(squared, weight) for _, weight in groups]
        totals = iter(torch.stack(found).tolist() if found else ())  # waits once per probe
        for (kind, _, groups), sums, g in zip(self.rows, self.sums, adjoints, strict=True):
            done: dict[str, float] = {}
            for scales, _ in groups:
                total = 0.0 if g is None else next(totals)
                done |= {name: total * scale for name, scale in scales.items()}
            for f in self.formats:
                held = f.result.name if kind == "kernel" else f.name
                sums[f.name].append(done.get(held, 0.0))

    def finish(self, count: int, elements: int, full: bool, dtype: torch.dtype) -> Sensitivity:
        tables: dict[str, dict[Any, dict[str, Tensor]]]
        tables = {"kernel": {}, "weight": {}, "cast": {}, "none": {}}
        for (kind, key, _), sums in zip(self.rows, self.sums, strict=True):
            entry = tables[kind].setdefault(key, {})
            for f in self.formats:
                column = torch.tensor(sums[f.name], dtype=torch.float64)
                value = column.sum().reshape(1) if full else column
                entry[f.name] = entry.get(f.name, 0.0) + value / elements
        kernel, weight, cast = tables["kernel"], tables["weight"], tables["cast"]
        names = tuple(f.name for f in self.formats)
        return Sensitivity(names, 1 if full else count, elements, kernel, weight, cast, dtype)
