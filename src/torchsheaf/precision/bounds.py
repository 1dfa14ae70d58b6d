"""Bounds on the output error of one assignment on one input: rigorous, and first-order worst case.

The rigorous bound (U1) is a theorem about every execution whose kernels obey the models in
`operators`: it follows |x̂ − x| ≤ E through the graph, around the float64 values, without dropping
second-order terms. The first-order worst case (U2) is Σ |J|·e, the adjoint's magnitude times the
largest local error: sound up to products of errors, and to masks and indices that flip.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torchsheaf.network.aten import AtenCall, Ref, substitute
from torchsheaf.precision.bound_rules import rule_of
from torchsheaf.precision.dataflow import Dataflow, Edge
from torchsheaf.precision.execute import (
    Assignment,
    Caster,
    held_format,
    keywords,
    run_exact,
)
from torchsheaf.precision.flips import Flips, rounded_number
from torchsheaf.precision.formats import FORMATS, Format, format_of
from torchsheaf.precision.masking import ALL_READERS, masked_scores, new_infinities
from torchsheaf.precision.operators import model_of, terms_of
from torchsheaf.precision.sensitivity import adjoint, record, unit_vectors

# The float64 values themselves are rounded: bounds are widened by this, relative.
WIDEN = 1.0 + 1e-10
# They put the numbers of a row in order, so that a bound does not stay with its number.
_ORDERING = {"sort", "topk", "min", "max"}
# A number among their arguments is an operand like any other: the kernel rounds it to float32 …
_WITH_NUMBERS = {"add", "sub", "rsub", "mul", "div", "pow"}
# … or, these on CPUs, to the type of the other operand.
_IN_ITS_TYPE = {"add", "sub", "rsub", "pow"}
# Whole numbers among their operands say what goes where; elsewhere they are numbers.
_WITH_INDICES = {"scatter_add", "index_put", "_embedding_bag"}


@dataclass(frozen=True, eq=False)
class ErrorBound:
    """Bounds per output tensor, and the local error of every operation, cast and weight.

    unbounded: labels of operations through which the bound is infinite: without a rule, or reading
    an index, a mask or another result of a comparison that a rounding may change.
    """

    outputs: tuple[Tensor, ...]
    local: Mapping[str, Tensor]
    casts: Mapping[Edge, Tensor]
    weights: Mapping[Edge, Tensor]
    unbounded: tuple[str, ...]

    @property
    def largest(self) -> float:
        """The bound in the max norm over all outputs."""
        return max((float(o.max()) for o in self.outputs if o.numel()), default=0.0)


def rigorous_bound(flow: Dataflow, inputs: Sequence[Any], assignment: Assignment) -> ErrorBound:
    """Elementwise bound on |executed − exact| at the outputs (U1), for these inputs.

    Holds for every execution whose kernels obey the models of `operators` (checked on a machine by
    `torchsheaf precision conformance`). Infinite where a value may leave its format, or depends on
    a comparison that may turn out otherwise. Cost: some five forward passes in float64.
    """
    return BoundWalk(flow, inputs, assignment, isolate=False).run()


def local_errors(flow: Dataflow, inputs: Sequence[Any], assignment: Assignment) -> ErrorBound:
    """The largest error that every operation, cast and weight makes by itself."""
    return BoundWalk(flow, inputs, assignment, isolate=True).run()


def first_order_worst(flow: Dataflow, inputs: Sequence[Any], assignment: Assignment) -> Tensor:
    """A_k = Σ_i |J_ki|·e_i for every output element k (U2), as one flat tensor.

    Cost: one reverse sweep in float64 per output element.
    """
    own = local_errors(flow, inputs, assignment)
    tape = record(flow, inputs, torch.float64)
    weights: list[Tensor | None] = []
    for name, parts in tape.results.items():
        e = own.local.get(name)
        weights += [e if i == 0 else None for i, _ in enumerate(parts)]
    weights += [own.casts.get(edge) for edge in tape.operands]
    weights += [own.weights.get(edge) for edge in tape.weights]
    bounds = []
    for seeds in unit_vectors(tape):
        total = 0.0
        for g, e in zip(adjoint(tape, seeds), weights, strict=True):
            if g is not None and e is not None:
                moved = g.abs() * e.expand_as(g)
                total += float(torch.where(g == 0, 0.0, moved).sum())  # 0·∞ is 0 here
        bounds.append(total)
    # Delivery rounds nothing: an output is widened to the model's dtype, or kept as it is.
    return torch.tensor(bounds, dtype=torch.float64) * WIDEN


class BoundWalk:
    """Carries (value, bound) through the graph, call by call.

    values: every value of the float64 run. bounds: for the floating ones, E with |x̂ − x| ≤ E in
    every execution of `assignment`. local, casts, weights: the errors that each operation, cast and
    weight adds. isolate: operands are taken as exact, so that `bounds` stays 0 and `local` holds
    what every operation errs by itself.
    """

    def __init__(
        self, flow: Dataflow, inputs: Sequence[Any], assignment: Assignment, isolate: bool
    ) -> None:
        self.flow, self.inputs = flow, inputs
        self.assignment, self.isolate = assignment, isolate
        self.calls = flow.calls
        double = Caster(torch.float64)
        self.values: dict[str, Any] = {
            n: double(x) for n, x in zip(flow.graph.inputs, inputs, strict=True)
        }
        self.values |= {n: double(t) for n, t in flow.graph.constants.items()}
        self.bounds: dict[str, Any] = {
            n: torch.zeros_like(v)
            for n, v in self.values.items()
            if isinstance(v, Tensor) and v.is_floating_point()
        }
        self.local: dict[str, Tensor] = {}
        self.casts: dict[Edge, Tensor] = {}
        self.weights: dict[Edge, Tensor] = {}
        self.unbounded: list[str] = []
        self.flips = Flips(
            self.values, self.bounds,
            lambda n: held_format(flow, assignment, flow.source[n]),
        )  # fmt: skip
        self.edges = {(e.operand, e.consumer): e for e in flow.edges}

    def run(self) -> ErrorBound:
        with torch.no_grad():
            for c in self.flow.graph.calls:
                self.step(c)
        outputs = tuple(self.bounds[n] * WIDEN for n in self.flow.graph.outputs if n in self.bounds)
        return ErrorBound(outputs, self.local, self.casts, self.weights, tuple(self.unbounded))

    def step(self, c: AtenCall) -> None:
        kind = self.flow.kinds[c.name]
        if c.packet == "_to_copy" and c.is_floating and c.operands[0] in self.bounds:
            self.values[c.name] = self.values[c.operands[0]]
            self.bounds[c.name] = self.bounds[c.operands[0]]
            return
        value = c.call(
            *substitute(c.args, self.values.__getitem__),
            **keywords(c, self.values.__getitem__, torch.float64),
        )
        self.values[c.name] = value
        if kind == "structural":
            form = self.flips.held(c.name)
            bound = self.exact(c, {n: self.bounds.get(n) for n in c.operands}, form)
            self.keep(c, bound)
        elif kind == "select":
            moved = {n: self.operand(n, c) for n in c.operands}
            form = FORMATS[self.assignment[c.name]]
            bound = self.exact(c, {n: m[1] if m else None for n, m in moved.items()}, form)
            self.keep(c, torch.zeros_like(bound) if self.isolate else bound)
            self.local[c.name] = torch.zeros_like(bound)
        elif kind == "rounding":
            self.round(c, value)
        else:
            self.flips.note(c)

    def keep(self, c: AtenCall, bound: Any) -> None:
        """The bound of a floating result, wider where it reads what a rounding may change."""
        self.bounds[c.name], lost = self.flips.widen(c, bound)
        if lost:
            self.unbounded.append(self.flow.labels.get(c.name, c.name))

    def exact(self, c: AtenCall, bounds: Mapping[str, Any], form: Format) -> Any:
        """Exact calls permute, copy or select numbers, and their bounds with them.

        A number that is written between them is rounded to the format in which they lie.
        """
        if c.packet in ("relu", "neg", "abs"):
            return bounds[c.operands[0]]
        if c.packet in ("maximum", "minimum"):
            return torch.maximum(*(bounds[n] for n in c.operands))

        def value(n: str) -> Any:
            b = bounds.get(n)
            return self.values[n] if b is None else b

        args, kwargs = list(c.args), dict(c.kwargs)
        if c.packet in ("masked_fill", "constant_pad_nd"):
            args[2:3] = [a if isinstance(a, Ref) else rounded_number(a, form) for a in args[2:3]]
        if c.packet == "amin":
            return torch.ops.aten.amax.default(*substitute(tuple(args), value))
        if c.packet in _ORDERING:
            return self.ordered(c, bounds[c.operands[0]])
        return c.call(*substitute(tuple(args), value), **_kwargs_of(kwargs, value))

    def ordered(self, c: AtenCall, bound: Tensor) -> Any:
        """The k-th largest of a row moves by at most what any number of the row moves."""
        result = self.values[c.name]
        first = result[0] if isinstance(result, tuple | list) else result
        dims = [a for a in c.args[1:] if type(a) is int]
        if c.packet == "topk":
            dims = dims[1:]
        dim = dims[0] if dims else c.kwargs.get("dim", -1)
        worst = (
            bound.max() if first.ndim == 0 else bound.amax(dim, keepdim=bound.ndim == first.ndim)
        )
        moved = worst.expand_as(first).clone()
        return moved if first is result else (moved, *result[1:])

    def operand(self, n: str, c: AtenCall) -> tuple[Any, Any] | None:
        """(value, bound) of an operand after its cast into the format of the call."""
        if n not in self.bounds:
            return None
        edge, form = self.edges[n, c.name], FORMATS[self.assignment[c.name]]
        if edge.source in self.flow.graph.constants:
            own = self.weight_error(edge, form)
            viewed = self.harmless(n, c, self.view(n, own, form))
            return self.values[n], viewed if not self.isolate else torch.zeros_like(viewed)
        held = held_format(self.flow, self.assignment, edge.source)
        value, bound = self.values[n], self.bounds[n]
        own = torch.zeros_like(value)
        if not form.holds(held):
            if edge.source in self.flow.graph.inputs:
                own = _moved(form.round(value).double(), value)
            else:
                size = torch.nan_to_num(value.abs(), posinf=0.0)
                wide = size if self.isolate else size + bound
                own = form.unit * wide + form.spacing / 2
                own = torch.where(wide >= form.overflow, math.inf, own)
                own = torch.where(torch.isinf(value), 0.0, own)
            own = self.harmless(n, c, own)
        self.casts[edge] = own
        return value, torch.zeros_like(bound) if self.isolate else bound + own

    def whole(self, n: str, c: AtenCall, form: Format) -> Any:
        """Whole numbers as a kernel reads them: converted to the type in which it computes."""
        value = self.values[n]
        if c.packet in _WITH_INDICES or not isinstance(value, Tensor):
            return value
        exact = value.double()
        if c.packet == "_to_copy":  # the conversion is the call's own rounding
            return exact, torch.zeros_like(exact)
        return exact, _moved(value.to(form.carrier).double(), exact)

    def weight_error(self, edge: Edge, form: Format) -> Tensor:
        tensor = self.flow.graph.constants[edge.source]
        own = torch.zeros(tensor.shape, dtype=torch.float64, device=tensor.device)
        if not form.holds(format_of(tensor.dtype)):
            own = _moved(form.round(tensor).double(), tensor.double())
        self.weights[edge] = own
        return own

    def harmless(self, n: str, c: AtenCall, own: Tensor) -> Tensor:
        """Without the error of masked scores that became −∞: theirs reaches no output."""
        past = torch.isinf(own)
        masked = self.masked.get((n, c.name)) if past.any() else None
        return own if masked is None else torch.where(past & masked, 0.0, own)

    @functools.cached_property
    def masked(self) -> Mapping[tuple[str, str], Tensor]:
        values = run_exact(self.flow, self.inputs, keep=True).values
        return masked_scores(self.flow, values)

    def view(self, n: str, own: Tensor, form: Format) -> Any:
        """The bound of an exact view of a constant that errs by `own`."""
        if n in self.flow.graph.constants:
            return own
        c = self.calls[n]
        if c.packet == "_to_copy":
            return self.view(c.operands[0], own, form)
        bounds = {m: self.view(m, own, form) for m in c.operands if m in self.flow.source}
        return self.exact(c, bounds, form)

    def round(self, c: AtenCall, value: Any) -> None:
        first = value[0] if isinstance(value, tuple | list) else value
        form = FORMATS[self.assignment[c.name]]

        def moved(n: str) -> Any:
            pair = self.operand(n, c)
            return self.whole(n, c, form) if pair is None else pair

        rule, args = rule_of(c.packet, c.call), substitute(c.args, moved)
        if rule is None:
            self.unbounded.append(self.flow.labels[c.name])
            spread, inside = torch.full_like(first, math.inf), torch.zeros_like(first)
        else:
            kwargs = _rule_kwargs(c, moved)
            if c.packet in _WITH_NUMBERS and form.bits <= 24:
                held = "fp32" if form.is_emulated or c.packet not in _IN_ITS_TYPE else form.name
                args = tuple(_as_rounded(a, FORMATS[held]) for a in args)
                kwargs = {k: _as_factor(v, FORMATS[held]) for k, v in kwargs.items()}
            spread, inside = rule(*args, **kwargs)
        own = self.own(c, form, first, spread, inside)
        spread, own = self.at_infinity(c, first, spread, own)
        own = self.overflowed(c, form, first, spread, own)
        self.local[c.name] = own
        total = torch.zeros_like(own) if self.isolate else spread + own
        total = torch.nan_to_num(total, nan=math.inf, posinf=math.inf)
        self.keep(c, (total, *value[1:]) if isinstance(value, tuple | list) else total)

    def overflowed(
        self, c: AtenCall, form: Format, y: Tensor, spread: Tensor, own: Tensor
    ) -> Tensor:
        """The kernel's own error, infinite where the result may lie past the range of its format.

        A masked score may: it becomes −∞, and nobody sees it.
        """
        most = (torch.nan_to_num(y.abs(), posinf=0.0) + spread + own) * model_of(c).gain
        past = (most >= form.result.overflow) & torch.isfinite(y) & torch.isfinite(own)
        if not past.any():
            return own
        masked = self.masked.get((c.name, ALL_READERS)) if form.result.has_infinity else None
        return torch.where(past if masked is None else past & ~masked, math.inf, own)

    def at_infinity(
        self, c: AtenCall, y: Tensor, spread: Tensor, own: Tensor
    ) -> tuple[Tensor, Tensor]:
        """±∞ is rounded exactly, and −∞ + s stays −∞; what overflowed may be anything."""
        infinite = torch.isinf(y)
        if not infinite.any():
            return spread, own
        born = new_infinities(c, self.values.__getitem__, y, torch.float64)
        own = torch.where(infinite, 0.0, own)
        if c.packet in ("add", "sub", "rsub"):
            spread = torch.where(infinite, 0.0, spread)
        return spread, own if born is None else torch.where(born, math.inf, own)

    def own(self, c: AtenCall, form: Format, y: Tensor, spread: Tensor, inside: Tensor) -> Tensor:
        """c·u·(|y| + P) + γ·S + δ of the kernel's model."""
        model = model_of(c)
        n = terms_of(c, self.flow.shapes) if model.accumulates else 1
        size = torch.nan_to_num(y.abs(), posinf=0.0) + spread
        return model.local(form, n, size, inside)


def _moved(rounded: Tensor, value: Tensor) -> Tensor:
    """How far a rounding moved known numbers; infinite where they overflowed."""
    moved = torch.where(rounded == value, 0.0, (rounded - value).abs())
    return torch.nan_to_num(moved, nan=math.inf, posinf=math.inf)


def _as_rounded(number: Any, form: Format) -> Any:
    """A number in the code with the error of its rounding; as it is where there is none."""
    if type(number) not in (int, float):
        return number
    moved = rounded_number(number, form)
    return tuple(torch.tensor([number, moved], dtype=torch.float64)) if moved else number


def _as_factor(alpha: Any, form: Format) -> Any:
    """A factor of a term of a sum; the kernel rounds that product too."""
    if type(alpha) not in (int, float) or abs(alpha) == 1:
        return alpha
    moved = rounded_number(alpha, form)
    moved += form.unit * (abs(alpha) + moved)
    return tuple(torch.tensor([alpha, moved], dtype=torch.float64))


def _kwargs_of(kwargs: dict[str, Any], value: Any) -> dict[str, Any]:
    return {k: v for k, v in substitute(kwargs, value).items() if k != "dtype"}


def _rule_kwargs(c: AtenCall, value: Any) -> dict[str, Any]:
    kept = {k: v for k, v in c.kwargs.items() if k in ("alpha", "beta", "rounding_mode")}
    if c.packet in ("mean", "sum"):
        kept = {k: v for k, v in c.kwargs.items() if k != "dtype"}
    return dict(substitute(kept, value))


def reference_bound(flow: Dataflow, inputs: Sequence[Any]) -> float:
    """Rigorous bound on the error of the float64 reference itself, in the max norm."""
    return rigorous_bound(flow, inputs, dict.fromkeys(flow.choices, "fp64")).largest
