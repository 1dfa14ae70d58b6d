"""The sheaf heat equation: the public entry point of the integrators."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from torchsheaf.arguments import nonnegative_number, positive_number, tolerance_of, whole_number
from torchsheaf.boundary import Problem, require_problem, stationarity
from torchsheaf.cochain import Cochain
from torchsheaf.flow.euler import Euler
from torchsheaf.flow.events import Events
from torchsheaf.flow.exact import Exact
from torchsheaf.flow.method import FlowMethod, Task
from torchsheaf.flow.ode import Ode
from torchsheaf.flow.recorder import Record, Recorder
from torchsheaf.flow.regularised import selects_among_several
from torchsheaf.flow.trajectory import Trajectory
from torchsheaf.flow.velocity import identity_output
from torchsheaf.flow.walls import Walls
from torchsheaf.outcome import ConvergenceError, Outcome
from torchsheaf.progress import progress_bar


def heat_flow(
    problem: Problem,
    start: str | Cochain = "random",
    until: float | None = 50.0,
    method: str | FlowMethod = "auto",
    *,
    times: int | Tensor = 201,
    alpha: float = 1.0,
    dt: float | None = None,
    tol: float | None = None,
    max_steps: int = 1_000_000,
    record: Record = "energy",
    output_force: str = "jacobian",
    generator: torch.Generator | None = None,
    progress: bool | None = None,
    throw: bool = True,
) -> Trajectory:
    """Relax a held problem along ċ = −α ∇E(c) = −α (L(σ(c)) c − h), per sample.

    `start` is "random" (standard normal, from `generator`), "zeros", "forward" or a cochain.
    `until` is the last time; a sample also stops once dist(0, ∂E) ≤ `tol` (1e-10 in float64, 1e-5
    in float32; 0: only at exact rest), and with `until=None` only then. `times` are the recorded
    times, or how many.
    `method`: "exact" (piecewise linear gates; exact inside regions, exact crossings, slides),
    "euler" (the paper's scheme; `dt` below 2/(αλ_max)), "ode" (smooth edges, max-pools), "auto"
    (exact where it can, else ode; Euler where a map jumps, of which the others take none), or a
    `FlowMethod`. `record`: "energy", "states", names of vertices, or {vertex: coordinates}.
    `output_force="identity"` drops the Jacobian of a smooth output.
    `progress`: a bar; None shows one on a terminal when the run is long.

    Raises ValueError for arguments, and `ConvergenceError` (unless `throw=False`) when the step
    limit came first or a number stopped being finite (the message names vertex and time).

    dE/dt = −α dist(0, ∂E)²: with "exact" E never rises (to rounding), with "ode" to its tolerance.
    A step of "euler" in which no gate switches changes E by −αdt gᵀ(1 − αdt L/2)g with g = ∇E
    (affine edges), a fall below the bound on dt; one through a wall may raise E, and where a
    minimum lies on a wall (output held) E stays O(dt) above it. "identity" does not descend E.
    Cost: "exact": per region one eigendecomposition of L, shared by all samples that pass through
    it, or above 32 free coordinates a Krylov space of two sweeps per vector; "ode": Jacobians of
    the whole batch; "euler": two sweeps per step.
    Source: Bosca & Ghrist 2026, section 4, Thm 4.1.

    >>> from torchsheaf.sheaf import encode
    >>> from torchsheaf.boundary import hold
    >>> net = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.ReLU(), torch.nn.Linear(4, 1))
    >>> x = torch.randn(3, 2).double()
    >>> flow = heat_flow(hold(encode(net.double(), x), x), until=None)
    >>> bool(torch.allclose(flow.output, net(x), atol=1e-6))
    True
    """
    require_problem(problem, finite=False)
    if problem.free.dim == 0:
        raise ValueError("every coordinate is held: nothing can flow; free something or pin less")
    usual = tolerance_of(problem.coarsest[1], float64=1e-10, float32=1e-5)
    tol = usual if tol is None else nonnegative_number("tol", tol)
    max_steps = whole_number("max_steps", max_steps)
    forever = "a positive time, or None (until stationary)"
    end = math.inf if until is None else positive_number("until", until, forever)
    alpha = positive_number("alpha", alpha, "a positive rate")
    if output_force not in ("jacobian", "identity"):
        raise ValueError(f'output_force is {output_force!r}; write "jacobian" or "identity"')
    walls = Walls.of(problem)
    if output_force == "identity":
        identity_output(problem)
    chosen = _choose(method, problem, walls, output_force == "jacobian", dt)
    first = problem.clamp(problem.start(start, generator))
    _check_domain(problem, first, start)
    recorder = Recorder(problem, _grid(times, end, alpha, problem.like), record)
    with progress_bar(progress, f"{chosen.name} flow") as tell:
        task = Task(
            problem, walls, first, alpha, end, tol, max_steps, recorder,
            output_force == "jacobian", tell,
        )  # fmt: skip
        course = chosen.integrate(task)
    finite = course.outcome is not Outcome.NONFINITE
    distance = (
        stationarity(problem, course.final).distance
        if finite
        else problem.like.new_full((problem.batch,), torch.nan)
    )
    keep = _kept(recorder.times, course.stopped, end)
    result = Trajectory(
        problem, chosen.name, alpha, recorder.times[keep], recorder.energy[keep],
        {n: t[keep] for n, t in recorder.edge_energy.items()},
        {n: t[keep] for n, t in recorder.states.items()},
        course.start_states, Events.gather(walls, course.events), course.final, course.stopped,
        distance, course.steps, course.outcome, course.where,
    )  # fmt: skip
    if throw and not course.outcome.ok:
        left = int(course.stopped.isinf().sum())
        said = course.where or (
            f"{left} of {problem.batch} samples not stationary within {tol:.1e} after "
            f"{course.steps} steps (worst {float(distance.max()):.1e})"
        )
        advice = "" if course.outcome is Outcome.NONFINITE else course.advice
        raise ConvergenceError(course.outcome, f"{chosen.name} flow: {said}", result, advice)
    return result


def _check_domain(problem: Problem, first: Cochain, start: str | Cochain) -> None:
    name = problem.residual(first).first_nonfinite()
    if name is None or not first.is_finite():
        return  # what is large from the beginning is left to the method, which says so
    given = repr(start) if isinstance(start, str) else "a Cochain"
    raise ValueError(
        f"start is {given}, where the operation at vertex {name!r} (such as log, sqrt, rsqrt or a "
        'division) is not finite; write start="forward", or a Cochain inside its domain'
    )


def _grid(times: int | Tensor, until: float, alpha: float, like: Tensor) -> Tensor:
    """Recorded times, float64: uniform to a finite end, else 0 and then geometric."""
    if isinstance(times, Tensor):
        grid = times.detach().to(like.device, torch.float64).flatten()
        ascending = bool((grid[1:] > grid[:-1]).all()) and grid.numel() > 0
        if not ascending or not bool(grid.isfinite().all()) or float(grid[0]) < 0:
            raise ValueError("times must be finite, not negative and strictly ascending")
        if float(grid[-1]) <= until * (1 + 1e-6):
            grid = grid.clamp_max(until)  # a float32 end is the end
        else:
            raise ValueError(f"times go to {float(grid[-1]):g}, beyond until={until:g}")
        return grid
    times = whole_number("times", times, 2, ", or a tensor of times")
    if math.isfinite(until):
        return torch.linspace(0, until, times, dtype=torch.float64, device=like.device)
    later = torch.logspace(-2, 6, times - 1, dtype=torch.float64, device=like.device) / alpha
    return torch.cat([later.new_zeros(1), later])


def _kept(times: Tensor, stopped: Tensor, until: float) -> Tensor:
    """Without an end: drop the recorded times after the first one at which every sample stands."""
    if math.isfinite(until) or not bool(stopped.isfinite().all()):
        return torch.ones_like(times, dtype=torch.bool)
    return torch.cat([times.new_zeros(1), times[:-1]]) <= float(stopped.max())


def _choose(
    method: str | FlowMethod, problem: Problem, walls: Walls, adjoint_output: bool, dt: float | None
) -> FlowMethod:
    if dt is not None and method != "euler":
        raise ValueError(f'dt is a setting of method="euler"; method is {method!r}')
    known: dict[str, Callable[[], FlowMethod]] = {
        "exact": Exact,
        "ode": lambda: (
            Ode.for_pools()
            if selects_among_several(problem)
            else Ode.for_dtype(problem.coarsest[1])
        ),
        "euler": lambda: Euler(dt),
    }
    if method == "auto":
        reasons = []
        for make in known.values():
            candidate = make()
            reason = candidate.refuses(problem, walls, adjoint_output)
            if reason is None:
                return candidate
            reasons.append(f"{candidate.name}: {reason}")
        raise ValueError("no method takes this problem; " + "; ".join(reasons))
    if not isinstance(method, FlowMethod) and method not in known:
        names = ", ".join(repr(n) for n in known)
        raise ValueError(f'method is {method!r}; write "auto", {names}, or a FlowMethod')
    chosen = method if isinstance(method, FlowMethod) else known[method]()
    reason = chosen.refuses(problem, walls, adjoint_output)
    if reason is not None:
        raise ValueError(f"method={chosen.name!r} does not take this problem: {reason}")
    return chosen
