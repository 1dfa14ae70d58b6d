"""When "this format is impossible here" may be said: four kinds of proof, each re-checkable.

overflow: a value that the computation holds lies past the format's largest number, and ∞ in its
place, carried on exactly, puts the output over the budget. grid: the exact output lies further than
the budget from every number of the format, so no algorithm whose output is stored in it meets it.
cell: two inputs round to the same numbers and their exact outputs differ by more than twice the
budget, so no algorithm that sees rounded inputs meets it. witness: the uniform run itself is over.
Curvature, and topology, prove nothing here.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from torchsheaf.arguments import whole_number
from torchsheaf.network.aten import AtenGraph, ExportedProgram
from torchsheaf.precision.admission import refuse_no_output, refuse_nonfinite, refuse_undefined
from torchsheaf.precision.arguments import error_budget, read_model, runnable
from torchsheaf.precision.bounds import BoundWalk, reference_bound
from torchsheaf.precision.dataflow import Dataflow
from torchsheaf.precision.execute import run_assigned, run_exact, uniform
from torchsheaf.precision.formats import FORMATS, Format, find_format, format_of
from torchsheaf.precision.masking import ALL_READERS, masked_scores
from torchsheaf.precision.measure import difference, floating_outputs

Miss = tuple[float, float, float]
"""An error, what came and what is exact."""


@dataclass(frozen=True)
class Proof:
    """One reason why a uniform format misses the budget; `numbers` is the evidence.

    kind: "overflow", "grid", "cell" or "witness". scope: what exactly is excluded.
    """

    kind: str
    format: str
    budget: float
    scope: str
    text: str
    numbers: dict[str, float]

    def recheck(self) -> bool:
        """The arithmetic of the proof again, in exact rationals, from the evidence alone."""
        form, n = FORMATS[self.format], {k: _fraction(v) for k, v in self.numbers.items()}
        if self.kind == "overflow":
            threshold = Fraction(form.largest) + Fraction(2) ** (form.emax - form.bits)
            past = n["value"] - n["reference_bound"] >= threshold
            return past and n["error"] - n["output_bound"] > Fraction(self.budget)
        if self.kind == "grid":
            gap = grid_distance(n["output"], form) - n["reference_bound"]
            return gap > Fraction(self.budget)
        if self.kind == "cell":
            spread = abs(n["output_one"] - n["output_two"]) / 2 - n["reference_bound"]
            return spread > Fraction(self.budget)
        return n["error"] - n["reference_bound"] > Fraction(self.budget)


@dataclass(frozen=True)
class Refutation:
    """Proofs that a uniform format misses the budget on these inputs (for cells, on inputs that
    round to the same numbers); empty means not refuted.
    """

    format: str
    budget: float
    proofs: tuple[Proof, ...]

    @property
    def refuted(self) -> bool:
        """Whether there is any proof."""
        return bool(self.proofs)

    def __str__(self) -> str:
        if not self.proofs:
            return f"uniform {self.format} is not refuted at budget {self.budget:g}"
        return "\n".join(p.text for p in self.proofs)


def _fraction(x: float) -> Fraction:
    # An infinite run is over every budget; a huge rational stands for it.
    return Fraction(x) if math.isfinite(x) else Fraction(2) ** 2000


def grid_distance(value: Fraction, form: Format) -> Fraction:
    """Distance of a rational from the nearest number of a format, exactly."""
    size = abs(value)
    if size >= Fraction(form.largest):
        return size - Fraction(form.largest)
    exponent = form.emin
    if size > 0:
        guess = size.numerator.bit_length() - size.denominator.bit_length()
        if Fraction(2) ** guess > size:
            guess -= 1
        exponent = max(guess, form.emin)
    step = Fraction(2) ** (exponent - form.bits + 1)
    rest = size % step
    return min(rest, step - rest)


@torch.inference_mode(False)  # cells are looked for along derivatives
def refute(
    model: nn.Module | ExportedProgram | AtenGraph, inputs: Any, format: str, budget: float, *,
    sweeps: int = 8,
) -> Refutation:  # fmt: skip
    """Look for proofs that running the model uniformly in `format` misses the budget (max norm).

    inputs: a tensor (batch, *shape) or a tuple of the model's inputs. A proof is an inequality
    between exact numbers: error − reference_bound > budget (witness), the same for the distance of
    an output from the format's grid (grid) and for half the distance of two outputs whose inputs
    round alike (cell), or |value| − reference_bound ≥ the format's overflow threshold (overflow: if
    the run that is exact but for that range is over the budget, and the run itself is not within).
    Outputs that are inputs as they came are never rounded, and prove nothing.

    Raises `ValueError` for a bad argument (`TypeError` for a model or inputs of another kind) and
    `UnsupportedModel` for a model that cannot be traced or has a kernel without a model.
    Cost: one export; one run as it is and one in the format; three float64 runs and the bound of
    the reference (some five); `sweeps` reverse sweeps and two more float64 runs for each; where a
    cell is found, two bounds more.

    >>> x = torch.full((1, 1), 12.0)
    >>> refute(torch.nn.Tanh(), x, "fp16", budget=1e-3).refuted
    False
    >>> large = torch.nn.Linear(1, 1, bias=False)
    >>> _ = torch.nn.init.constant_(large.weight, 6000.0)  # 72000 is past 65504
    >>> proofs = refute(large, x, "fp16", budget=1e-3).proofs
    >>> "overflow" in {p.kind for p in proofs} and all(p.recheck() for p in proofs)
    True
    """
    form, budget = find_format(format), error_budget(budget)
    sweeps = whole_number("sweeps", sweeps, 0)
    flow = read_model(model, inputs)
    inputs = runnable(flow, inputs)
    refuse_no_output(flow)
    refuse_nonfinite(flow, [inputs])
    walk = BoundWalk(flow, inputs, dict.fromkeys(flow.choices, "fp64"), isolate=False)
    bounds = walk.run()
    refuse_undefined(flow, walk.values)
    exact = _exact(flow, inputs)
    ran = _uniform_error(flow, inputs, exact, form)
    found = [
        _overflow(flow, inputs, exact, walk, bounds.largest, form, budget, ran),
        _grid(flow, walk, bounds.outputs, form, budget),
        _cell(flow, inputs, form, budget, sweeps),
        _witness(bounds.largest, form, budget, ran),
    ]
    proofs = tuple(p for p in found if p is not None and p.recheck())
    return Refutation(form.name, budget, proofs)


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, tuple | list) else value


def _overflow(
    flow: Dataflow, inputs: tuple[Any, ...], exact: Sequence[Tensor], walk: BoundWalk,
    slack: float, form: Format, budget: float, ran: Miss | None,
) -> Proof | None:  # fmt: skip
    best: tuple[float, float, str] | None = None
    masks = masked_scores(flow, walk.values)
    for c in flow.choices:
        value, bound = _first(walk.values[c]), _first(walk.bounds[c])
        counts = torch.isfinite(value)
        if (c, ALL_READERS) in masks:  # their overflow harms nobody
            counts &= ~masks[c, ALL_READERS]
        low = torch.where(counts, value.abs() - bound, -math.inf).reshape(-1)
        i = int(low.argmax()) if low.numel() else -1
        if i >= 0 and float(low[i]) >= form.result.overflow and (not best or low[i] > best[0]):
            size = abs(float(value.reshape(-1)[i]))
            best = (float(low[i]), size, c)
    if best is None or (ran is not None and ran[0] <= budget):
        return None  # a run within the budget shows that it does not matter
    floor, top, c = best
    label, missed = flow.labels[c], _largest_error(_limited(flow, inputs, form), exact)
    if missed is None or missed[0] - slack <= budget:
        return None
    return Proof(
        "overflow",
        form.name,
        budget,
        f"every run that is exact but for the range of {form.name}",
        f"overflow: the exact result of {label} reaches {top:.6g}; {form.name} ends at "
        f"{form.largest:.6g} and rounds {form.overflow:.6g} and more past it; that alone moves an "
        f"output by {missed[0]:.6g}",
        {
            "value": top,
            "reference_bound": top - floor,
            "error": missed[0],
            "output_bound": slack,
        },
    )


def _limited(flow: Dataflow, inputs: tuple[Any, ...], form: Format) -> list[Tensor]:
    """Outputs of the float64 run in which every result past the format's range overflows."""
    held, choices = form.result, set(flow.choices)

    def change(name: str, value: Any) -> Any:
        if name not in choices:
            return value
        if isinstance(value, tuple | list):
            return (change(name, value[0]), *value[1:])
        lost = value.sign() * (math.inf if held.has_infinity else math.nan)
        return torch.where(value.abs() >= held.overflow, lost, value)

    return floating_outputs(run_exact(flow, inputs, change=change))


def _grid(
    flow: Dataflow, walk: BoundWalk, bounds: Sequence[Tensor], form: Format, budget: float
) -> Proof | None:
    names = [n for n in flow.graph.outputs if n in walk.bounds]
    best: tuple[float, float, float] | None = None
    for n, bound in zip(names, bounds, strict=True):
        if not bound.numel() or flow.source[n] not in flow.choices:
            continue
        y, e = walk.values[n].reshape(-1), bound.reshape(-1)
        rounded = form.result.round(y).double()
        gap = torch.where(torch.isfinite(rounded), (y - rounded).abs(), -math.inf) - e
        i = int(gap.argmax())
        if best is None or float(gap[i]) > best[0]:
            best = (float(gap[i]), float(y[i]), float(e[i]))
    if best is None or best[0] <= budget:
        return None
    far, output, slack = best
    return Proof(
        "grid",
        form.name,
        budget,
        f"every algorithm whose output is stored in {form.name}",
        f"off the grid: an exact output is {output:.9g} (±{slack:.1g}), at least {far:.6g} from "
        f"every {form.name} number; the budget is {budget:.6g}",
        {"output": output, "reference_bound": slack},
    )


def _rounded_inputs(flow: Dataflow, form: Format) -> list[int]:
    """Positions of the inputs that the uniform run reads in this format only, and rounds."""
    chosen, found = uniform(flow, form.name), []
    compared = {
        flow.source.get(n)
        for c in flow.graph.calls
        if flow.kinds[c.name] == "discrete"
        for n in c.operands
    }
    for i, name in enumerate(flow.graph.inputs):
        if name not in flow.source or form.holds(format_of(flow.graph.input_meta[name][1])):
            continue
        readers = {e.consumer for e in flow.edges if e.source == name}
        if name not in compared and all(chosen.get(r) == form.name for r in readers):
            found.append(i)
    return found


def _cell(
    flow: Dataflow, inputs: tuple[Any, ...], form: Format, budget: float, sweeps: int
) -> Proof | None:
    floating = _rounded_inputs(flow, form)
    if not floating:
        return None
    base = {i: form.round(inputs[i]).double() for i in floating}
    best: tuple[float, float, float] | None = None
    where: list[list[Any]] = []
    for signs in _directions(flow, inputs, floating, sweeps):
        ends, places = [], []
        for side in (1.0, -1.0):
            moved = list(inputs)
            for i in floating:
                # A hair inside the cell, so that both ends round to the same number.
                width = form.ulp(base[i]) * 0.249
                moved[i] = (base[i] + side * width * signs[i]).to(inputs[i].dtype).double()
                if not torch.equal(form.round(moved[i]).double(), base[i]):
                    moved[i] = base[i]
            places.append(moved)
            ends.append(torch.cat([o.reshape(-1) for o in _exact(flow, moved)]))
        gap = torch.nan_to_num((ends[0] - ends[1]).abs(), nan=0.0, posinf=0.0)
        k = int(gap.argmax())
        if best is None or float(gap[k]) > best[0]:
            best, where = (float(gap[k]), float(ends[0][k]), float(ends[1][k])), places
    if best is None or best[0] / 2 <= budget:
        return None
    bound = max(reference_bound(flow, place) for place in where)
    apart, one, two = best
    return Proof(
        "cell",
        form.name,
        budget,
        f"every algorithm that sees its inputs rounded to {form.name}",
        f"one rounding cell: two inputs that {form.name} cannot tell apart have exact outputs "
        f"{one:.9g} and {two:.9g}; any algorithm errs by {apart / 2:.6g} on one of them, and the "
        f"budget is {budget:.6g}",
        {"output_one": one, "output_two": two, "reference_bound": bound},
    )


def _exact(flow: Dataflow, inputs: Sequence[Any]) -> list[Tensor]:
    return floating_outputs(run_exact(flow, inputs))


def _directions(
    flow: Dataflow, inputs: tuple[Any, ...], floating: list[int], sweeps: int
) -> list[dict[int, Tensor]]:
    """Sign patterns of the input gradient of the largest outputs."""
    leaves = list(inputs)
    for i in floating:
        leaves[i] = inputs[i].double().detach().requires_grad_()
    with torch.enable_grad():
        flat = torch.cat([o.reshape(-1) for o in floating_outputs(run_exact(flow, leaves))])
    if not flat.requires_grad:
        return []  # nothing depends on the inputs
    picks = flat.detach().abs().nan_to_num().topk(min(sweeps, flat.numel())).indices
    found = []
    for k in picks.tolist():
        grads = torch.autograd.grad(
            flat[k], [leaves[i] for i in floating], retain_graph=True, allow_unused=True
        )
        found.append(
            {
                i: torch.sign(g) if g is not None else torch.zeros_like(leaves[i])
                for i, g in zip(floating, grads, strict=True)
            }
        )
    return found


def _uniform_error(
    flow: Dataflow, inputs: tuple[Any, ...], exact: Sequence[Tensor], form: Format
) -> Miss | None:
    """The largest error of the uniform run; None where it has no kernels here."""
    try:
        run = run_assigned(flow, inputs, uniform(flow, form.name))
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, NotImplementedError):
        return None
    return _largest_error(floating_outputs(run), exact)


def _largest_error(actual: Sequence[Tensor], exact: Sequence[Tensor]) -> Miss | None:
    best: Miss | None = None
    for a, e in zip(actual, exact, strict=True):
        if not e.numel():
            continue
        error = difference(a.double(), e).abs().reshape(-1)
        i = int(error.argmax())
        if best is None or float(error[i]) > best[0]:
            best = (float(error[i]), float(a.reshape(-1)[i]), float(e.reshape(-1)[i]))
    return best


def _witness(bound: float, form: Format, budget: float, ran: Miss | None) -> Proof | None:
    if ran is None or ran[0] - bound <= budget:
        return None
    worst, got, true = ran
    return Proof(
        "witness",
        form.name,
        budget,
        f"the uniform {form.name} run on this machine, on this input",
        f"run: uniform {form.name} returned {got:.9g} where the exact output is {true:.9g}: "
        f"error {worst:.6g}, budget {budget:.6g}",
        {"error": worst, "reference_bound": bound, "returned": got, "exact": true},
    )
