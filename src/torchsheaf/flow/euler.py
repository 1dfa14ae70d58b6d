"""The paper's explicit scheme: masks from the old state, a fixed step."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from torchsheaf.arguments import positive_number
from torchsheaf.boundary import Problem, stationarity
from torchsheaf.cochain import Cochain
from torchsheaf.flow.exact import Exact
from torchsheaf.flow.method import RAISE, Course, FlowMethod, Task, never
from torchsheaf.flow.velocity import descent
from torchsheaf.flow.walls import Walls
from torchsheaf.harmonic import spectrum
from torchsheaf.outcome import Outcome

CHECK_EVERY = 100
"""Steps between stationarity tests, which cost as much as a step."""
SAME = 1e-9
"""Of a step: a recorded time as near to a step's end as this is that end."""


@torch.no_grad()
def euler_step(
    problem: Problem, c: Cochain, dt: float, alpha: float = 1.0, *, adjoint_output: bool = True
) -> Cochain:
    """c − αdt ∇E(c): one explicit step, every force from the old state.

    Held coordinates do not move. Cost: one forward and one reverse pass.
    Source: Bosca & Ghrist 2026, section 4; book eq. 6.3.
    """
    g = descent(problem, c, adjoint_output=adjoint_output)
    return Cochain({n: t - alpha * dt * g[n] if n in g else t for n, t in c.items()})


def step_bound(problem: Problem, c: Cochain, walls: Walls, alpha: float) -> float:
    """2/(αλ_max): above it explicit Euler diverges inside a region.

    λ_max is the largest over the samples of two patterns, that of `c` and the one with every gate
    on its steepest piece, which dominates in practice (not proved). For smooth edges it is the
    tangent sheaf's at `c`.
    """
    patterns: list[Mapping[str, Tensor] | None] = [None]
    if walls.readers:
        steepest = {
            r.operation: torch.full(
                (problem.batch, *r.shape), max(r.gate.slopes, key=abs),
                dtype=problem.like.dtype, device=problem.like.device,
            )
            for r in walls.readers
        }  # fmt: skip
        patterns.append(steepest)
    tops = [
        spectrum(problem, which="largest", at=c, pattern=p, tol=1e-3, throw=False).values.max()
        for p in patterns
    ]
    return 2 / (alpha * float(torch.stack(tops).max()))


@final
@dataclass(frozen=True)
class Euler(FlowMethod):
    """Explicit Euler with step `dt` (None: half the stability bound).

    The last step ends at `until`; recorded states between two steps lie on the chord.
    Convergence is of first order in dt, also across walls. Where the energy has a minimum on a
    wall (output held, docs/flow.md) it chatters for ever with an amplitude proportional to dt,
    never becomes stationary, and E rises in some of the steps. In a step that switches no gate
    E falls (affine edges): by αdt gᵀ(1 − αdt L/2)g, g = ∇E.
    """

    dt: float | None = None
    name = "euler"

    def __post_init__(self) -> None:
        if self.dt is not None:
            positive_number("dt", self.dt, "a positive step, or None (half the bound)")

    def refuses(self, problem: Problem, walls: Walls, adjoint_output: bool) -> str | None:
        return None

    def step_size(self, task: Task) -> float:
        """`dt`, checked against the bound."""
        bound = step_bound(task.problem, task.start, task.walls, task.alpha)
        if self.dt is None:
            return bound / 2
        if self.dt >= bound:
            raise ValueError(
                f"dt is {self.dt:g}; explicit Euler is stable for 0 < dt < 2/(αλ_max) = "
                f"{bound:.4g} on this problem: write dt={0.9 * bound:.2g} or less"
            )
        return self.dt

    @torch.no_grad()
    def integrate(self, task: Task) -> Course:
        problem, walls, c = task.problem, task.walls, task.start
        dt = self.step_size(task)
        asked = math.ceil(task.until / dt - 1e-9) if math.isfinite(task.until) else task.max_steps
        places = (task.recorder.times / dt).tolist()
        state = walls.state(problem.free.flatten(c))
        run = _Run(c, state, state, never(problem), [])
        row, outcome, where, step = 0, Outcome.COMPLETED, "", 0
        while True:
            while row < len(places) and places[row] <= step + SAME:
                task.recorder.write_all(row, run.c)
                row += 1
            if step >= min(asked, task.max_steps):
                if step < asked or math.isinf(task.until):
                    outcome = Outcome.STEP_LIMIT
                break
            if step % CHECK_EVERY == 0:
                task.progress(step / max(asked, 1))
                if not run.c.is_finite():
                    name = run.c.first_nonfinite()
                    outcome, where = Outcome.NONFINITE, f"{name} at t = {step * dt:.4g}"
                    break
                run.test(problem, task.tol, step * dt)
                if bool(run.stopped.isfinite().all()):
                    outcome = Outcome.SETTLED
                    break
            old, length = run.c, dt
            if step + 1 == asked and task.until < (step + 1 - SAME) * dt:
                length = task.until - step * dt
            run.step(task, length, step * dt)
            while row < len(places) and places[row] < step + 1 - SAME:
                part = (places[row] - step) * dt / length
                task.recorder.write_all(row, problem.clamp(old + part * (run.c - old)))
                row += 1
            step += 1
        for later in range(row, len(places)):
            task.recorder.write_all(later, run.c)
        exact = Exact().refuses(problem, walls, task.adjoint_output) is None
        advice = f"{RAISE}; method='exact' ends where Euler chatters" if exact else RAISE
        return Course(run.c, run.start, run.events, run.stopped, step, outcome, where, advice)


@dataclass
class _Run:
    c: Cochain
    start: Tensor
    state: Tensor
    stopped: Tensor
    events: list[tuple[Tensor, ...]]

    def test(self, problem: Problem, tol: float, time: float) -> None:
        settled = stationarity(problem, self.c).distance <= tol
        self.stopped = torch.where(settled, self.stopped.clamp_max(time), self.stopped)

    def step(self, task: Task, dt: float, time: float) -> None:
        problem, old = task.problem, self.c
        new = euler_step(problem, old, dt, task.alpha, adjoint_output=task.adjoint_output)
        moving = self.stopped.isinf()
        self.c = new if bool(moving.all()) else new.where(moving, old)
        if not len(task.walls):
            return
        walls = task.walls
        z = problem.free.flatten(self.c)
        state = walls.state(z)
        changed = (state != self.state).nonzero()
        if changed.numel():
            sample, wall = changed.unbind(1)
            was, now = self.state[sample, wall], state[sample, wall]
            # The chord of the step meets the wall at a fraction of the step.
            met = walls.thresholds[wall, torch.where(now > was, was // 2, was // 2 - 1)]
            low, high = problem.free.flatten(old)[:, walls.index], z[:, walls.index]
            low, high = low[sample, wall], high[sample, wall]
            part = ((met - low) / (high - low)).to(torch.float64)
            self.events.append((time + part * dt, sample, wall, was, now))
        self.state = state
