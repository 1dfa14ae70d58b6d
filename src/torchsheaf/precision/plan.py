"""The plan: a format per operation within an output-error budget, and all that is known of it."""

import functools
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
    needs_double,
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
from torchsheaf.precision.execute import run_exact
from torchsheaf.precision.formats import FORMATS
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
from torchsheaf.precision.tighten import Attempt, prepare, tighten


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
    Cost: one export; one float64 run; `probes` reverse sweeps; per round four forward passes and
    one integer program.

    >>> net = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Tanh())
    >>> p = plan(net, torch.randn(4, 8), budget=1e-2)
    >>> p.measured.value <= 1e-2
    True
    """
    budget, chosen = error_budget(budget), read_formats(formats)
    one_of("norm", norm, NORMS)
    margin = number("margin", margin, lambda v: 0 < v <= 1, "a number in (0, 1]")
    range_margin = number("range_margin", range_margin, lambda v: 1 <= v < math.inf, "a number ≥ 1")
    probes, rounds = probe_count(probes), whole_number("rounds", rounds, 0)
    fixed, tied, cost_profile = read_pins(pins), read_groups(together), load_profile(profile)
    require_generator(generator)
    if not callable(log):
        raise TypeError(f"log is {log!r}; write a function of one line")
    flow = read_model(model, inputs[0] if isinstance(inputs, list) and inputs else inputs)
    refuse_no_output(flow)
    batches = chunks(flow, inputs)
    batches += chunks(flow, calibration, "calibration") if calibration is not None else []
    runnable(flow, batches[0])
    held = chunks(flow, holdout, "holdout") if holdout is not None else []
    refuse_nonfinite(flow, [*batches, *held])
    pinned = find_pins(flow, fixed, [f.name for f in chosen])
    ranges = joint_ranges(flow, batches)
    values = run_exact(flow, batches[0], keep=True).values
    verdicts = allowed_formats(flow, chosen, ranges, values, cost_profile, range_margin)
    del values
    stalks = stalks_of(flow, verdicts, pinned)
    refuse_empty(flow, stalks, verdicts, pinned)
    ties = (*(tied_weights(flow) if tie_weights else ()), *groups(flow, tied))
    dtype = torch.float64 if needs_double(chosen, budget) else torch.float32
    # float64 is in the table too: it prices the reference's own error.
    priced = [*chosen, *([FORMATS["fp64"]] if FORMATS["fp64"] not in chosen else [])]
    table, problem = weigh(
        flow, batches[0], priced,
        lambda t: assemble(flow, t, stalks, cost_profile, mean_square(budget), ties),
        probes=probes, generator=generator, dtype=dtype,
    )  # fmt: skip
    h0 = sections(problem)
    if h0.count == 0:
        raise NoSection(h0.reason, f"no section: {h0.reason}; " + "; ".join(h0.trace[:8]))
    problem = problem.restrict(arc_consistent(sheaf_of(problem))[0])
    setting = prepare(flow, table, batches, norm, budget, margin)
    rules = fixed_rules(flow, problem, [f.name for f in chosen])
    best, tried = tighten(setting, problem, rounds=rounds, candidates=rules, log=log)
    if best is None:
        refusal = over_budget(tried, budget, norm, margin)
        refusal.certificate = certify_emptiness(problem, budget, norm, pinned)
        raise refusal
    assignment = {label: best.section[label] for label in flow.labels.values()}
    by_call = setting.by_call(best.section)
    held_out = measure_all(flow, held, by_call, norm) if held else None
    measured = with_reference(flow, batches, best.measured, table)
    unit = setting.scale() if norm == "relative" else 1.0
    return Plan(
        flow=flow, assignment=assignment, budget=budget, norm=norm, predicted=best.predicted,
        measured=measured,
        cost=price(flow, by_call, cost_profile), memory=count_memory(flow, by_call),
        flags=(*flags(best, tried, flow, chosen), *doubt(measured, budget * unit)),
        problem=best.problem, table=table,
        shift=best.shift, rounds=tuple(tried), verdicts=verdicts, ranges=ranges, pins=pinned,
        profile=cost_profile, range_margin=range_margin, holdout=held_out,
        statement=state(held_out.errors, budget) if held_out else None,
    )  # fmt: skip
