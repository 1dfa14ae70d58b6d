"""The plan: a format per operation within an output-error budget, and all that is known of it."""

import functools
import itertools
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from torchsheaf.arguments import number, require_generator, whole_number
from torchsheaf.network.aten import AtenGraph, ExportedProgram
from torchsheaf.precision.admission import (
    doubt,
    flags,
    groups,
    joint_ranges,
    over_budget,
    refuse_empty,
    refuse_no_output,
    refuse_nonfinite,
    with_reference,
)
from torchsheaf.precision.apply import apply_assignment
from torchsheaf.precision.arguments import (
    error_budget,
    one_of,
    probe_count,
    read_formats,
    read_groups,
    read_model,
    read_pins,
    runnable,
)
from torchsheaf.precision.assemble import assemble, find_pins, stalks_of, tied_weights, weigh
from torchsheaf.precision.autocast import fixed_rules
from torchsheaf.precision.certificate import measurement, write_certificate
from torchsheaf.precision.dataflow import Dataflow
from torchsheaf.precision.formats import FORMATS, Format
from torchsheaf.precision.measure import (
    NORMS,
    Measurement,
    Statement,
    chunks,
    measure_all,
    state,
)
from torchsheaf.precision.memory import Memory, count_memory
from torchsheaf.precision.obstruction import Obstruction, obstruction
from torchsheaf.precision.predict import KnownShift, Prediction, Share, blame
from torchsheaf.precision.price import Cost, NoSection, price
from torchsheaf.precision.problem import AssignmentProblem, mean_square
from torchsheaf.precision.profile import Profile, load_profile
from torchsheaf.precision.ranges import Range, allowed_formats
from torchsheaf.precision.sections import Sections, arc_consistent, sections, sheaf_of
from torchsheaf.precision.sensitivity import Sensitivity
from torchsheaf.precision.solve import Solution, cheapest
from torchsheaf.precision.tighten import Attempt, Setting, prepare, tighten
from torchsheaf.progress import progress_bar


@dataclass(frozen=True)
class Headroom:
    """Range of one operation's operands and result, and the room its format leaves in bits."""

    operation: str
    format: str
    largest: float
    smallest: float
    bits: float
    refused: Mapping[str, str]


@dataclass(frozen=True, eq=False, repr=False)
class Plan:
    """A format per operation, what was predicted, what was measured, and why.

    assignment: label → format. predicted, measured: see `Prediction`, `Measurement`. holdout: the
    held-out measurement with its `Statement`, where held-out inputs were given. flags: sentences
    about what should not be trusted. rounds: every section that was tried.
    """

    flow: Dataflow
    assignment: Mapping[str, str]
    budget: float
    norm: str
    predicted: Prediction
    measured: Measurement
    cost: Cost
    memory: Memory
    flags: tuple[str, ...]
    problem: AssignmentProblem
    table: Sensitivity
    shift: KnownShift
    rounds: tuple[Attempt, ...]
    verdicts: Mapping[str, Mapping[str, str]]
    ranges: Mapping[str, Range]
    pins: Mapping[str, str]
    profile: Profile
    range_margin: float
    holdout: Measurement | None = None
    statement: Statement | None = None

    def __repr__(self) -> str:
        used = ", ".join(f"{n} {f}" for f, n in Counter(self.assignment.values()).items())
        flags = f"; {len(self.flags)} flag(s)" if self.flags else ""
        return (
            f"Plan({used}; predicted error {self.predicted.value:.3g}, budget {self.budget:.3g} "
            f"({self.norm}){flags})"
        )

    @property
    def by_call(self) -> dict[str, str]:
        """The assignment by the graph's own call names."""
        return {c: self.assignment[label] for c, label in self.flow.labels.items()}

    def blame(self) -> list[Share]:
        """Share of the predicted output error per operation; errors sum to `predicted.value`."""
        return blame(self.flow, self.table, self.by_call, self.predicted)

    @property
    def headroom(self) -> list[Headroom]:
        """Range per operation, least room first, with the formats that were ruled out."""
        rows = []
        for c, label in self.flow.labels.items():
            r, f = self.ranges[c], FORMATS[self.assignment[label]]
            room = math.log2(f.largest / r.largest) if r.largest > 0 else math.inf
            refused = {k: why for k, why in self.verdicts[c].items() if why}
            rows.append(Headroom(label, f.name, r.largest, r.smallest, room, refused))
        return sorted(rows, key=lambda h: h.bits)

    @functools.cached_property
    def sections(self) -> Sections:
        """H⁰ of the format sheaf: how many supported sections there are, budgets aside."""
        return sections(self.problem)

    @functools.cached_property
    def obstruction(self) -> Obstruction:
        """H¹ over Z/2 of the sheaf without casts between operations: a diagnostic."""
        return obstruction(sheaf_of(self.problem, casts=False))

    @functools.cached_property
    def proof(self) -> Solution:
        """The final problem solved again with a proof of its lower bound."""
        solved = cheapest(self.problem)
        section = {v: self.assignment.get(v, s[0]) for v, s in self.problem.stalks.items()}
        bound = min(solved.bound, self.problem.price(section))
        return Solution(section, self.problem.price(section), bound, solved.tree, solved.status)

    @functools.cached_property
    def certificate(self) -> dict[str, Any]:
        """JSON data that `check_certificate.py` verifies without torch and without this package."""
        runs = {"calibration": measurement(self.measured.errors, self.budget, 0.95, chosen_on=True)}
        if self.holdout is not None:
            runs["held out"] = measurement(self.holdout.errors, self.budget, 0.95)
        ranges = {self.flow.labels[c]: r.largest for c, r in self.ranges.items()}
        return write_certificate(
            self.problem,
            self.proof,
            budget=self.budget,
            norm=self.norm,
            pins=self.pins,
            ranges={v: r for v, r in ranges.items() if math.isfinite(r)},
            range_margin=self.range_margin,
            measured=runs,
            origin={
                "torch": torch.__version__,
                "profile": self.profile.name,
                "probes": self.table.probes,
                "outputs": self.table.elements,
                "reference_bound": _finite(self.measured.reference_bound),
            },
        )

    def apply(self) -> nn.Module:
        """A GraphModule with explicit casts that runs this plan; exportable, compilable."""
        return apply_assignment(self.flow, self.by_call)


def certify_emptiness(
    problem: AssignmentProblem, budget: float, norm: str, pins: Mapping[str, str]
) -> dict[str, Any] | None:
    """The proof that no section has a modelled mean-square error within budget², if there is one.

    A finite bound belongs to a leaf that may hold a section: then nothing is proved.
    """
    # The relative norm has another unit; for the others rms ≤ budget is necessary.
    solved = cheapest(problem) if norm != "relative" else None
    if solved is None or solved.section is not None or solved.bound < math.inf:
        return None
    return write_certificate(problem, solved, budget=budget, norm=norm, pins=pins)


def _finite(x: float) -> float | None:
    return x if math.isfinite(x) else None


@torch.inference_mode(False)  # sensitivities are derivatives
def plan(
    model: nn.Module | ExportedProgram | AtenGraph,
    inputs: Any,
    budget: float,
    *,
    norm: str = "max",
    formats: Sequence[str] = ("fp32", "bf16", "fp16"),
    pins: Mapping[str, str] | None = None,
    together: Sequence[Sequence[str]] = (),
    tie_weights: bool = True,
    profile: str | Mapping[str, Any] | Profile = "stated",
    calibration: Any = None,
    holdout: Any = None,
    probes: int | str = 4,
    margin: float = 0.9,
    range_margin: float = 2.0,
    rounds: int = 8,
    generator: torch.Generator | None = None,
    log: Callable[[str], None] = lambda line: None,
    progress: bool | None = None,
) -> Plan:
    """The cheapest format per operation whose output error stays within a budget.

    inputs: a tensor (batch, *shape), a tuple of the model's inputs, or a list of such batches, of
    which the first is traced. budget: in the units of the output, for every calibration input,
    against float64 on the same weights. norm: "max", "rms" (per sample) or "relative"
    (‖error‖₂/‖output‖₂). formats: names from `FORMATS`. pins: label, module path or operator →
    format. together: lists of labels, modules or operators that share one format. calibration,
    holdout: further inputs of the traced shape; the plan is tightened on the first and only
    reported on the second. probes: random adjoints, or "full" for all of them. margin: share of the
    budget that calibration inputs may use. range_margin: how much larger held-out values may grow.

    Raises `NoSection` where no assignment meets the budget, `ValueError` for a bad argument or
    inputs that the model does not run on (`TypeError` for a model or inputs of another kind),
    `UnsupportedModel` for a model that cannot be traced or has a kernel without a model.
    log: called with one line per section that is run. progress: whether to show a bar on stderr;
    None shows it on a terminal when it takes a while.

    Cost: one export; one run of the first batch as it is; per batch of inputs and calibration one
    float64 run for the ranges, one for the reference, five for its bound; one forward and `probes`
    reverse sweeps; one integer program per round. Per section that is run: three wide passes on the
    first batch, one run on every batch and, over the budget in the max norm, two runs and a sweep
    more. Per held-out batch: one float64 run and one of the plan.

    >>> net = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Tanh())
    >>> p = plan(net, torch.randn(4, 8), budget=1e-2)
    >>> p.measured.value <= 1e-2
    True
    """
    request = _Request(
        error_budget(budget), one_of("norm", norm, NORMS), read_formats(formats), read_pins(pins),
        read_groups(together), tie_weights, load_profile(profile),
        number("margin", margin, lambda v: 0 < v <= 1, "a number in (0, 1]"),
        number("range_margin", range_margin, lambda v: 1 <= v < math.inf, "a number ≥ 1"),
        probe_count(probes), whole_number("rounds", rounds, 0), generator,
    )  # fmt: skip
    require_generator(generator)
    if not callable(log):
        raise TypeError(f"log is {log!r}; write a function of one line")
    with progress_bar(progress, "plan") as tell:
        flow, batches, held = _admit(model, inputs, calibration, holdout)
        tell(0.1)
        choice = _stalks(flow, batches, request)
        tell(0.2)
        table, problem = _weigh(flow, batches[0], choice, request)
        tell(0.4)
        setting = prepare(flow, table, batches, request.norm, request.budget, request.margin)
        best, tried = _search(setting, problem, choice, request, _counting(log, tell))
        tell(0.9)
        return _describe(setting, best, tried, choice, request, held)


@dataclass(frozen=True)
class _Request:
    """The arguments of `plan`, read and checked."""

    budget: float
    norm: str
    formats: list[Format]
    pins: Mapping[str, str]
    together: tuple[tuple[str, ...], ...]
    tie_weights: bool
    profile: Profile
    margin: float
    range_margin: float
    probes: int | str
    rounds: int
    generator: torch.Generator | None


@dataclass(frozen=True)
class _Choice:
    """What every operation may be: its range, why formats are ruled out, and which are left."""

    pins: Mapping[str, str]
    ranges: Mapping[str, Range]
    verdicts: Mapping[str, Mapping[str, str]]
    stalks: Mapping[str, tuple[str, ...]]


def _counting(log: Callable[[str], None], tell: Callable[[float], None]) -> Callable[[str], None]:
    """`log`, with the bar moved on by every line: it is not known how many there will be."""
    lines = itertools.count(1)

    def both(line: str) -> None:
        tell(0.9 - 0.5 * 0.8 ** next(lines))
        log(line)

    return both


def _admit(model: Any, inputs: Any, calibration: Any, holdout: Any) -> tuple[Dataflow, Any, Any]:
    """The graph, the batches that the plan is made on and those that are held out."""
    flow = read_model(model, inputs[0] if isinstance(inputs, list) and inputs else inputs)
    refuse_no_output(flow)
    batches = chunks(flow, inputs)
    batches += chunks(flow, calibration, "calibration") if calibration is not None else []
    runnable(flow, batches[0])
    held = chunks(flow, holdout, "holdout") if holdout is not None else []
    refuse_nonfinite(flow, [*batches, *held])
    return flow, batches, held


def _stalks(flow: Dataflow, batches: Any, request: _Request) -> _Choice:
    """The formats that every operation may use on these inputs; `NoSection` where it has none."""
    pinned = find_pins(flow, request.pins, [f.name for f in request.formats])
    ranges, values = joint_ranges(flow, batches)
    verdicts = allowed_formats(
        flow, request.formats, ranges, values, request.profile, request.range_margin
    )
    stalks = stalks_of(flow, verdicts, pinned)
    refuse_empty(flow, stalks, verdicts, pinned)
    return _Choice(pinned, ranges, verdicts, stalks)


def _weigh(
    flow: Dataflow, batch: Any, choice: _Choice, request: _Request
) -> tuple[Sensitivity, AssignmentProblem]:
    """The error of every choice, and the problem cut down to the choices that fit together."""
    chosen = request.formats
    tied = tied_weights(flow) if request.tie_weights else ()
    ties = (*tied, *groups(flow, request.together))
    limit = mean_square(request.budget)
    # Adjoints in float32 would be coarser than what they price in float64.
    dtype = torch.float64 if chosen[0].bits > 24 else torch.float32
    # float64 is in the table too: it prices the reference's own error.
    priced = [*chosen, *([FORMATS["fp64"]] if FORMATS["fp64"] not in chosen else [])]
    table, problem = weigh(
        flow, batch, priced,
        lambda t: assemble(flow, t, choice.stalks, request.profile, limit, ties),
        probes=request.probes, generator=request.generator, dtype=dtype,
    )  # fmt: skip
    h0 = sections(problem)
    if h0.count == 0:
        raise NoSection(h0.reason, f"no section: {h0.reason}; " + "; ".join(h0.trace[:8]))
    return table, problem.restrict(arc_consistent(sheaf_of(problem))[0])


def _search(
    setting: Setting, problem: AssignmentProblem, choice: _Choice, request: _Request,
    log: Callable[[str], None],
) -> tuple[Attempt, list[Attempt]]:  # fmt: skip
    """The cheapest section that was run within the budget; `NoSection` where none was."""
    rules = fixed_rules(setting.flow, problem, [f.name for f in request.formats])
    best, tried = tighten(setting, problem, rounds=request.rounds, candidates=rules, log=log)
    if best is None:
        refusal = over_budget(tried, request.budget, request.norm, request.margin)
        refusal.certificate = certify_emptiness(problem, request.budget, request.norm, choice.pins)
        raise refusal
    return best, tried


def _describe(
    setting: Setting, best: Attempt, tried: list[Attempt], choice: _Choice, request: _Request,
    held: Any,
) -> Plan:  # fmt: skip
    """The plan, with its held-out measurement and what is known of its reference."""
    flow, norm, budget = setting.flow, request.norm, request.budget
    by_call = setting.by_call(best.section)
    held_out = measure_all(flow, held, by_call, norm) if held else None
    measured = with_reference(flow, setting.batches, best.measured, setting.table)
    unit = setting.scale() if norm == "relative" else 1.0
    return Plan(
        flow=flow, assignment={v: best.section[v] for v in flow.labels.values()}, budget=budget,
        norm=norm, predicted=best.predicted, measured=measured,
        cost=price(flow, by_call, request.profile), memory=count_memory(flow, by_call),
        flags=(*flags(best, tried, flow, request.formats), *doubt(measured, budget * unit)),
        problem=best.problem, table=setting.table, shift=best.shift, rounds=tuple(tried),
        verdicts=choice.verdicts, ranges=choice.ranges, pins=choice.pins, profile=request.profile,
        range_margin=request.range_margin, holdout=held_out,
        statement=state(held_out.errors, budget) if held_out else None,
    )  # fmt: skip
