"""Solve, run, scale the budget, repeat: until what was run meets the budget, at the least cost.

The estimate is local and statistical, so it proposes and the run decides. A section that measures
over the budget lowers the modelled limit; one with room to spare raises it; the cheapest section
that was run within the budget wins.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from torchsheaf.precision.assemble import error_tables
from torchsheaf.precision.dataflow import Dataflow
from torchsheaf.precision.execute import run_assigned, run_exact
from torchsheaf.precision.formats import FORMATS
from torchsheaf.precision.measure import (
    Measurement,
    batch_of,
    by_sample,
    floating_outputs,
    measure_all,
    measured_error,
)
from torchsheaf.precision.predict import KnownShift, Prediction, known_shift, predict
from torchsheaf.precision.problem import AssignmentProblem, Row, mean_square
from torchsheaf.precision.sensitivity import Sensitivity, analyse_output
from torchsheaf.precision.solve import Solution, cheapest, least_error


@dataclass(frozen=True)
class Attempt:
    """One round: the problem, the section found, what was predicted and what was measured."""

    problem: AssignmentProblem
    section: dict[str, str]
    cost: float
    predicted: Prediction
    shift: KnownShift
    measured: Measurement
    limit: float


@dataclass(frozen=True)
class Setting:
    """What stays the same over the rounds."""

    flow: Dataflow
    table: Sensitivity
    batches: Sequence[tuple[Any, ...]]
    references: Sequence[Tensor]
    norm: str
    budget: float
    margin: float

    @property
    def target(self) -> float:
        """What a calibration input may measure: the budget less the margin."""
        return self.budget * self.margin

    def by_call(self, section: dict[str, str]) -> dict[str, str]:
        """A section by label as an assignment by call."""
        return {c: section[self.flow.labels[c]] for c in self.flow.choices}

    def scale(self) -> float:
        """Root mean square of the reference outputs, masked scores (±∞) left at 0."""
        finite = [r.masked_fill(torch.isinf(r), 0.0) for r in self.references]
        return math.sqrt(float(torch.stack([r.square().mean() for r in finite]).mean()))

    def predict(self, assignment: dict[str, str]) -> tuple[KnownShift, Prediction]:
        """What is known and what is expected of an assignment by call, on the first batch."""
        flow, norm, table = self.flow, self.norm, self.table
        shift = known_shift(flow, self.batches[0], assignment, norm, table.dtype)
        return shift, predict(flow, table, assignment, norm, shift, self.scale())


def prepare(
    flow: Dataflow, table: Sensitivity, batches: Sequence[tuple[Any, ...]], norm: str,
    budget: float, margin: float,
) -> Setting:  # fmt: skip
    """Run the float64 references once."""
    references = [by_sample(floating_outputs(run_exact(flow, b)), batch_of(b)) for b in batches]
    return Setting(flow, table, batches, references, norm, budget, margin)


def attempt(setting: Setting, problem: AssignmentProblem, section: dict[str, str]) -> Attempt:
    """Predict and measure one section on every calibration batch."""
    assignment = setting.by_call(section)
    shift, predicted = setting.predict(assignment)
    measured = measure_all(
        setting.flow, setting.batches, assignment, setting.norm, setting.references
    )
    limit = problem.rows[0].limit
    return Attempt(problem, section, problem.price(section), predicted, shift, measured, limit)


def tighten(
    setting: Setting,
    problem: AssignmentProblem,
    *,
    rounds: int = 8,
    candidates: Sequence[dict[str, str]] = (),
    log: Callable[[str], None] = lambda line: None,
) -> tuple[Attempt | None, list[Attempt]]:
    """The cheapest section that was run within the target, or None; and every attempt.

    problem: with one mean-square row, whose limit is replaced. candidates: sections that are tried
    first, so that the answer is no dearer than the cheapest of them that keeps the budget. Cost:
    per round one integer program, three wide forward passes and one run of the section on every
    calibration batch; per candidate the same without the program.
    """
    start = least_error(problem)
    if start.section is None:
        return None, []
    tried = _try_candidates(setting, problem, [start.section, *candidates], log)
    kept = [a for a in tried if a.measured.value <= setting.target]
    good = min(kept, key=lambda a: a.cost, default=None)
    factor = _first_factor(setting, problem)
    low, high, limit = 0.0, math.inf, mean_square(setting.target / factor)
    if good is not None:
        limit = max(limit, _own_limit(problem, good.section))
    rows: tuple[Row, ...] = ()
    for _ in range(rounds):
        now = problem.with_rows((replace(problem.rows[0], limit=max(limit, 1e-300)), *rows))
        solution: Solution = cheapest(now, prove=False)
        if solution.section is None:
            low, limit = max(low, limit), _between(max(low, limit), high, 4.0)
            if rows and good is not None:
                break
            continue
        known = [a for a in tried if a.section == solution.section]
        this = known[0] if known else attempt(setting, now, solution.section)
        this = replace(this, problem=now, limit=limit, cost=solution.cost)
        tried.append(this)
        log(_line(this, setting))
        ratio = this.measured.value / setting.target
        if ratio <= 1.0:
            low = max(low, limit)
            if good is None or this.cost <= good.cost:
                good = this
            if ratio > 0.9 or _is_cheapest(now, solution.section):
                break
            step = 1.0 / max(ratio, 1e-3) ** 2
        else:
            high = min(high, limit)
            if setting.norm == "max" and math.isfinite(ratio):
                rows = (*rows, _worst_row(setting, now, this))
            step = 0.9 / min(ratio, 1e6) ** 2
        following = _next(limit, step, low, high)
        if following is None or _settled(good, tried, setting):
            break
        limit = following
    return good, tried


def _own_limit(problem: AssignmentProblem, section: dict[str, str]) -> float:
    return problem.rows[0].value(problem, section) * (1 + 1e-9)


def _try_candidates(
    setting: Setting, problem: AssignmentProblem, candidates: Sequence[dict[str, str]],
    log: Callable[[str], None],
) -> list[Attempt]:  # fmt: skip
    """Run the first section, and the others from the cheapest up until one keeps the budget.

    A candidate's modelled error may exceed the first limit and its run still be within budget (the
    model of float32 sums is generous): the limit that it is certified against is its own.
    """
    first, *rest = candidates
    rest = [c for c in rest if problem.supports(c)]
    tried = []
    for section in [first, *sorted(rest, key=problem.price)]:
        row = problem.rows[0]
        limit = max(_own_limit(problem, section), 1e-300)
        this = attempt(setting, problem.with_rows((replace(row, limit=limit),)), section)
        tried.append(this)
        log(_line(this, setting))
        if section is not first and this.measured.value <= setting.target:
            break
    return tried


def _next(limit: float, step: float, low: float, high: float) -> float | None:
    """The next limit, inside the bracket (low holds, high does not); None where it has closed."""
    wanted = limit * step
    if high / max(low, 1e-300) < 1.15:
        return None
    if wanted <= low or wanted >= high:
        wanted = math.sqrt(max(low, high * 1e-4) * high) if math.isfinite(high) else limit * 4
    return wanted


def _settled(good: Attempt | None, tried: list[Attempt], setting: Setting) -> bool:
    """Whether the best section costs within 1% of the dearest one that failed and was cheaper."""
    if good is None:
        return False
    failed = [a.cost for a in tried if a.measured.value > setting.target and a.cost <= good.cost]
    return bool(failed) and max(failed) >= 0.99 * good.cost


def _between(low: float, high: float, step: float) -> float:
    return math.sqrt(low * high) if math.isfinite(high) else low * step


def _first_factor(setting: Setting, problem: AssignmentProblem) -> float:
    """Worst-sample norm over rms, from the known shift of the cheapest format of every stalk."""
    section = {
        v: min(stalk, key=lambda f, v=v: problem.cost[v][f])  # type: ignore[misc]
        for v, stalk in problem.stalks.items()
    }
    return setting.predict(setting.by_call(section))[1].factor


def _is_cheapest(problem: AssignmentProblem, section: dict[str, str]) -> bool:
    """Whether no budget is felt: the section is also the cheapest without any."""
    free = cheapest(problem.with_rows(()), prove=False)
    return free.section is not None and problem.price(section) <= free.cost * (1 + 1e-12)


def _worst_row(setting: Setting, problem: AssignmentProblem, this: Attempt) -> Row:
    """A budget row of its own for the output that was furthest over.

    Its σ must come down to target/2.5, or by as much as it was over, whichever asks for less.
    """
    flow, batch = setting.flow, setting.batches[0]
    run = run_assigned(flow, batch, setting.by_call(this.section))
    index = int(measured_error(run_exact(flow, batch), run).argmax())
    formats = [FORMATS[f] for f in setting.table.formats]
    table = analyse_output(flow, batch, formats, index, setting.table.dtype)
    unary, pair = error_tables(flow, table, dict(problem.stalks))
    row = Row(f"output element {index}", 1.0, unary, pair)
    over = max(this.measured.value / setting.target, 1.0)
    asked = row.value(problem, this.section) * (0.95 / over) ** 2
    return replace(row, limit=max(mean_square(setting.target / 2.5), asked))


def _line(this: Attempt, setting: Setting) -> str:
    return (
        f"limit {math.sqrt(this.limit):.3g} (rms): cost {this.cost:.4g}, predicted "
        f"{this.predicted.value:.3g}, measured {this.measured.value:.3g} of {setting.budget:.3g}"
    )
