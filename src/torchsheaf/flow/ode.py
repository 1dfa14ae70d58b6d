"""The heat equation by SciPy's integrators: smooth edges, and a check on the other methods."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from torchsheaf.arguments import nonnegative_number, positive_number
from torchsheaf.boundary import Problem, stationarity
from torchsheaf.boundary.widening import widened
from torchsheaf.cochain import Cochain
from torchsheaf.flow.exact import Exact
from torchsheaf.flow.method import RAISE, Course, FlowMethod, Task, jumps, never
from torchsheaf.flow.regularised import Geometry, regularised
from torchsheaf.flow.velocity import descent
from torchsheaf.flow.walls import Walls
from torchsheaf.outcome import Outcome

SOLVERS = ("BDF", "Radau", "LSODA", "DOP853", "RK45")
CHECK_EVERY = 10
"""Accepted steps between stationarity tests."""
AT_ONCE = 1_000_000
"""Coordinates of all states that are evaluated together for a Jacobian."""
MAX_JACOBIAN = 20_000
"""Stacked coordinates up to which an implicit solver is the default (its Jacobian is sparse)."""


@final
@dataclass(frozen=True)
class Ode(FlowMethod):
    """The whole batch as one system, integrated by SciPy's `solver`.

    "BDF" and "Radau" are implicit and take the block-diagonal sparsity of the batch; "LSODA",
    "DOP853" and "RK45" do not need it. Default: "BDF", for large systems "RK45". Gate switches are
    located on the solver's dense output. All samples stop together, once each is stationary.
    The velocity is evaluated in float64 whatever the network's type (unless it casts inside):
    rounding in it is noise to SciPy, which shrinks the steps to nothing or is taken for motion.

    A slide would stop any of these solvers, since the velocity jumps there. So the slope of a
    gate is turned over a layer of half-width `layer` around its breakpoint, and entries of a
    pooling window share its maximum within `layer` of it. That keeps the residuals exact and
    makes a slide an ordinary stiff stretch, followed within `layer` of the wall; an explicit
    solver still creeps there. States are right to O(layer).
    References: Hairer & Wanner, Solving Ordinary Differential Equations II; di Bernardo et al.,
    Piecewise-smooth Dynamical Systems, section 2.4 (regularisation).
    """

    solver: str | None = None
    rtol: float = 1e-8
    atol: float = 1e-10
    layer: float = 1e-7
    name = "ode"

    def __post_init__(self) -> None:
        if self.solver is not None and self.solver not in SOLVERS:
            raise ValueError(f"solver is {self.solver!r}; write one of {', '.join(SOLVERS)}")
        for name in ("rtol", "layer"):
            positive_number(name, getattr(self, name), "a positive number such as 1e-8")
        nonnegative_number("atol", self.atol)

    @classmethod
    def for_dtype(cls, dtype: torch.dtype) -> "Ode":
        """What "ode" means in a type: tolerance 1e-8 in float64, else 1e-5 and layers of 1e-4.

        States are handed back in that type; the velocity is float64 all the same.
        """
        return cls() if dtype == torch.float64 else cls(rtol=1e-5, atol=1e-6, layer=1e-4)

    @classmethod
    def for_pools(cls) -> "Ode":
        """What "ode" means for networks with max-pools: tolerance 1e-5, layers of 1e-3.

        Their windows change hands hundreds of times, and every kink in a thinner layer costs an
        implicit solver tens of steps.
        """
        return cls(rtol=1e-5, atol=1e-7, layer=1e-3)

    def refuses(self, problem: Problem, walls: Walls, adjoint_output: bool) -> str | None:
        return jumps(problem)

    @torch.no_grad()
    def integrate(self, task: Task) -> Course:
        run = _Run.begin(task)
        stepper = self._stepper(task)
        outcome, where, advice, steps = Outcome.COMPLETED, "", RAISE, 0
        while stepper.status == "running":
            if steps >= task.max_steps:
                outcome = Outcome.STEP_LIMIT
                if widened(task.problem).coarsest[1] != torch.float64:
                    advice = (
                        f"{RAISE}; casts inside the model round, which makes implicit steps small"
                    )
                break
            try:
                message = stepper.step()
            except RuntimeError as error:  # SciPy's own words for a Jacobian that is not finite
                if "singular" not in str(error):
                    raise
                outcome, where = Outcome.NONFINITE, f"the Jacobian, at t = {stepper.t:.4g}"
                break
            steps += 1
            if not np.isfinite(stepper.y).all():
                name = run.cochain(stepper.y).first_nonfinite()
                outcome, where = Outcome.NONFINITE, f"{name} at t = {stepper.t:.4g}"
                break
            if stepper.status == "failed":
                outcome = Outcome.STALLED
                exact = Exact().refuses(task.problem, task.walls, task.adjoint_output) is None
                other = "exact" if exact else "euler"
                where = f"at t = {stepper.t:.4g}: {message}"
                advice = f"a slide does this: write method={other!r}"
                break
            run.passed(task, stepper.t_old, stepper.t, stepper.dense_output())
            if math.isfinite(task.until):
                task.progress(stepper.t / task.until)
            if steps % CHECK_EVERY == 0 and run.settled(task, stepper.y, stepper.t):
                outcome = Outcome.SETTLED
                break
        run.finish(task, stepper.y)
        return Course(
            run.cochain(stepper.y), run.first, run.events, run.stopped, steps, outcome, where,
            advice,
        )  # fmt: skip

    def _stepper(self, task: Task) -> Any:
        n, batch = task.problem.free.dim, task.problem.batch
        name = self.solver or ("BDF" if n * batch <= MAX_JACOBIAN else "RK45")
        import scipy.integrate
        import scipy.sparse

        options: dict[str, Any] = {"rtol": self.rtol, "atol": self.atol}
        if name in ("BDF", "Radau"):
            options["vectorized"] = True
        if name in ("BDF", "Radau") and batch > 1:
            options["jac_sparsity"] = scipy.sparse.kron(
                scipy.sparse.eye(batch), np.ones((n, n)), format="csc"
            )
        start = task.problem.free.flatten(task.start).double().cpu().numpy().ravel()
        solver = getattr(scipy.integrate, name)
        velocity = stacked_velocity(
            widened(task.problem), self.layer, alpha=task.alpha,
            adjoint_output=task.adjoint_output,
        )  # fmt: skip
        made = solver(velocity, 0.0, start, task.until, **options)
        if name == "BDF":
            # SciPy leaves the differences of orders not yet reached uninitialised and subtracts
            # them; whatever lies in that memory may be a NaN, which warns.
            made.D[2:] = 0
        return made


def stacked_velocity(
    problem: Problem, layer: float, *, alpha: float = 1.0, adjoint_output: bool = True
) -> Callable[[float, np.ndarray], np.ndarray]:
    """ċ of the whole batch as one vector `(batch · n,)`, as SciPy wants it: (t, y) ↦ ċ.

    Kinks are turned within `layer`. Several states at once, `(batch · n, k)`, are evaluated as one
    larger batch: a Jacobian by differences takes a few evaluations, not n.
    """
    geometry: Geometry = {}
    size = problem.batch * problem.free.dim
    copies = max(1, AT_ONCE // size) if problem.sheaf.network.fixed_batch is None else 1

    def velocity(problem: Problem, states: np.ndarray) -> np.ndarray:
        c = problem.clamp(problem.free.unflatten(_rows(problem, states)))
        delta = regularised(problem.coboundary(c), layer, geometry)
        g = descent(problem, c, delta, adjoint_output=adjoint_output)
        flat: np.ndarray = (-alpha * problem.free.flatten(g)).double().cpu().numpy()
        return flat.reshape(states.shape)

    @lru_cache(maxsize=4)
    def repeated(k: int) -> Problem:
        return problem.samples(torch.arange(problem.batch, device=problem.like.device).repeat(k))

    def function(t: float, y: np.ndarray) -> np.ndarray:
        if y.ndim == 1:
            return velocity(problem, y)
        rows = np.ascontiguousarray(y.T)
        parts = [rows[i : i + copies] for i in range(0, len(rows), copies)]
        return np.concatenate([velocity(repeated(len(p)), p) for p in parts]).T

    return function


def _rows(problem: Problem, stacked: np.ndarray) -> Tensor:
    """Stacked states as `(batch, n)`, of the problem's dtype and on its device."""
    like = problem.like
    given = torch.as_tensor(stacked, dtype=like.dtype, device=like.device)
    return given.reshape(problem.batch, -1)


@dataclass
class _Run:
    problem: Problem
    walls: Walls
    first: Tensor
    state: Tensor
    stopped: Tensor
    events: list[tuple[Tensor, ...]]
    row: int = 0

    @classmethod
    def begin(cls, task: Task) -> "_Run":
        """Gate states and recorded row at t = 0."""
        problem = task.problem
        state = task.walls.state(problem.free.flatten(task.start))
        run = cls(problem, task.walls, state, state, never(problem), [])
        if float(task.recorder.times[0]) == 0:
            task.recorder.write_all(0, task.start)
            run.row = 1
        return run

    def cochain(self, y: np.ndarray) -> Cochain:
        """The stacked vector as a cochain."""
        return self.problem.clamp(self.problem.free.unflatten(_rows(self.problem, y)))

    def passed(self, task: Task, before: float, now: float, dense: Any) -> None:
        """Record the times inside an accepted step and locate the switches."""
        times = task.recorder.times
        while self.row < times.numel() and float(times[self.row]) <= now:
            task.recorder.write_all(self.row, self.cochain(dense(float(times[self.row]))))
            self.row += 1
        if not len(self.walls):
            return
        state = self.walls.state(_rows(self.problem, dense(now)))
        for sample, wall in (state != self.state).nonzero().tolist():
            at = self._locate(dense, before, now, sample, wall)
            one = torch.tensor([sample]), torch.tensor([wall])
            self.events.append(
                (torch.tensor([at], dtype=torch.float64), *one,
                 self.state[sample, wall].reshape(1), state[sample, wall].reshape(1))
            )  # fmt: skip
        self.state = state

    def _locate(self, dense: Any, low: float, high: float, sample: int, wall: int) -> float:
        place = sample * self.problem.free.dim + int(self.walls.index[wall])
        breaks = self.walls.thresholds[wall].double().cpu().numpy()
        begin = (dense(low)[place] >= breaks).sum()
        for _ in range(60):
            middle = (low + high) / 2
            if (dense(middle)[place] >= breaks).sum() == begin:
                low = middle
            else:
                high = middle
        return high

    def settled(self, task: Task, y: np.ndarray, time: float) -> bool:
        """Whether every sample is stationary now."""
        now = stationarity(self.problem, self.cochain(y)).distance <= task.tol
        if bool(now.all()):
            self.stopped = torch.full_like(self.stopped, time)
        return bool(now.all())

    def finish(self, task: Task, y: np.ndarray) -> None:
        """Later recorded times repeat the end."""
        for row in range(self.row, task.recorder.times.numel()):
            task.recorder.write_all(row, self.cochain(y))
