"""The harmonic extension of held values: the public entry point of the solvers."""

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from torchsheaf.arguments import positive_number, require_generator, tolerance_of, whole_number
from torchsheaf.boundary import (
    GateStates,
    Problem,
    Stationarity,
    require_problem,
    stationarity,
)
from torchsheaf.cochain import Cochain, is_finite
from torchsheaf.harmonic.block_descent import BlockDescent, over_relaxed
from torchsheaf.harmonic.equilibria import (
    Equilibria,
    gather_equilibria,
    starting_cochains,
)
from torchsheaf.harmonic.newton import Newton
from torchsheaf.harmonic.solver import HarmonicSolver, Progress, Solution, Substitution
from torchsheaf.outcome import ConvergenceError, Outcome
from torchsheaf.progress import progress_bar

SOLVERS: tuple[HarmonicSolver, ...] = (Substitution(), Newton(), BlockDescent())
"""In the order in which solver="auto" tries them."""
_MORE = (
    "raise max_passes, loosen tol, give a neighbouring solution as start, or take the partial "
    "result with throw=False"
)
FALL_BACK = 400
"""Passes of block descent before a stalled solver is given a second try."""


@dataclass(frozen=True, eq=False, repr=False)
class Extension:
    """An equilibrium of a held problem and how it was reached.

    `energy` (batch,) is E; `stationarity` (batch,) is dist(0, ∂E), computed independently of the
    solver; `settled` (batch,) says whether the activation pattern had stopped changing; `passes`
    counts forward or reverse passes. With only the input held the equilibrium is the forward pass
    and unique; with the output held too there are several local minima, and this is the one
    reached from `start`.
    """

    problem: Problem
    cochain: Cochain
    residual: Cochain
    energy: Tensor
    passes: int
    settled: Tensor
    outcome: Outcome
    solver: str
    start: str
    energies: tuple[float, ...] = ()
    equilibria: Equilibria | None = None

    def __repr__(self) -> str:
        total = float(self.energy.sum())
        return (
            f"Extension({self.solver} from {self.start}: {self.outcome.name.lower()} after "
            f"{self.passes} passes; {self.problem.batch} samples, energy {total:.6g} in all)"
        )

    @property
    def output(self) -> Tensor:
        """Value of the output vertex; ValueError where there are several (`.cochain[name]`)."""
        return self.cochain[self.problem.sheaf.only_output(".cochain")]

    @cached_property
    def _stationarity(self) -> Stationarity:
        return stationarity(self.problem, self.cochain, self.residual)

    @property
    def stationarity(self) -> Tensor:
        """dist(0, ∂E) per sample, `(batch,)`; exactly 0 where every residual is."""
        if bool((self.energy == 0).all()):
            return torch.zeros_like(self.energy)
        return self._stationarity.distance

    @property
    def gates(self) -> GateStates:
        """Off, on or sliding, per gate."""
        return self._stationarity.gates


def harmonic_extension(
    problem: Problem,
    *,
    solver: str = "auto",
    start: str | Cochain = "auto",
    starts: int = 1,
    generator: torch.Generator | None = None,
    tol: float | None = None,
    max_passes: int = 20_000,
    progress: bool | None = None,
    throw: bool = True,
) -> Extension:
    """The cochain of least energy that extends the held values.

    With only the input held this is substitution, one forward pass, and the result is `model(x)`
    at the output (Bosca & Ghrist 2026, Prop. 1). Otherwise a relaxation from `start` until
    dist(0, ∂E) ≤ `tol` for every sample; `tol` defaults to 1e-8 in float64, 1e-4 in float32
    and where the model casts some value to it.

    `start`: "forward" (substitution through the pins), "auto" (the same, then for a ReLU MLP one
    over-relaxed block step), "zeros", "random", or a cochain such as a neighbouring solution's.
    `starts` > 1 adds the forward pass, zeros and random cochains (from `generator`) as further
    starts, solves from all of them, returns the least energy per sample and keeps every distinct
    equilibrium in `.equilibria`. Nothing guarantees that the global minimum is among them.
    `solver`: "auto" takes substitution where it applies and Newton's method otherwise. `progress`:
    a bar with the share of samples at rest; None shows one on a terminal when the run is long. A
    run that was ended by `max_passes` goes on from its `.cochain` as `start`.

    Cost: `passes`, each one forward or reverse pass over the samples that are not yet at rest;
    memory a few copies of their activations, nothing of the size of the Laplacian.

    Raises ValueError when no solver takes the problem and for networks in half precision where
    more than substitution is needed, `ConvergenceError` (unless `throw=False`)
    when the tolerance was not reached.

    >>> import torch
    >>> from torchsheaf.sheaf import encode
    >>> from torchsheaf.boundary import hold
    >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1))
    >>> x = torch.randn(5, 2)
    >>> bool(torch.equal(harmonic_extension(hold(encode(net, x), x)).output, net(x)))
    True
    """
    starts, max_passes = whole_number("starts", starts), whole_number("max_passes", max_passes)
    require_generator(generator)
    require_problem(problem, finite=False)
    chosen = _choose(solver, problem)
    if not isinstance(chosen, Substitution):
        problem.require_digits("a relaxation")
    tol = stationarity_tolerance(problem) if tol is None else positive_number("tol", tol)
    # substitution needs no start: computing one would cost as much as the answer
    direct = isinstance(chosen, Substitution) and starts == 1 and start in ("auto", "forward")
    if direct:
        first, named = Cochain({}), "forward"
    else:
        first, named = first_cochain(problem, start, generator)
    equilibria = None
    with progress_bar(progress, "samples at rest") as tell:
        if direct:
            found = chosen.solve(problem, first, tol, max_passes)
        elif starts == 1:
            back = solver == "auto"
            found = _relax(chosen, problem, first, tol, max_passes, tell, fall_back=back)
        else:
            cochains = starting_cochains(problem, (named, problem.clamp(first)), starts, generator)
            equilibria, found = _from_all(chosen, problem, cochains, tol, max_passes, tell)
            named = f"the best of {starts}, per sample"
    residual = problem.residual(found.cochain)
    energy = problem.energy(found.cochain, residual)
    outcome = Outcome.NONFINITE if not is_finite(energy) else found.outcome
    result = Extension(
        problem, found.cochain, residual, energy, found.passes, found.settled, outcome,
        chosen.name, named, found.energies, equilibria,
    )  # fmt: skip
    if outcome is Outcome.SETTLED and bool((result.stationarity > 10 * tol).any()):
        result = replace(result, outcome=Outcome.STALLED)  # the independent test disagrees
    if throw and not result.outcome.ok:
        raise _unsettled(result, tol)
    return result


def _unsettled(result: Extension, tol: float) -> ConvergenceError:
    finite = result.outcome is not Outcome.NONFINITE
    worst = float(result.stationarity.max()) if finite else float("nan")
    left = int((result.stationarity > tol).sum())
    return ConvergenceError(
        result.outcome,
        f"{result.solver} left {left} of {result.problem.batch} samples above tol={tol:.1e} "
        f"(worst stationarity {worst:.1e}) after {result.passes} passes",
        result,
        _advice(result),
    )


def _advice(result: Extension) -> str:
    """What to do about an ending, where more is known than the outcome's own advice says."""
    problem = result.problem
    if result.outcome is Outcome.STEP_LIMIT:
        return _MORE + _about_free_inputs(problem)
    if result.outcome is not Outcome.STALLED:
        return ""
    if jump := problem.sheaf.network.jump:
        return (
            f"the map of vertex {jump[0]!r} jumps at {jump[1]:g}, where there need be no "
            "equilibrium: make it continuous (of nn.Threshold, let value equal threshold), "
            "or take the partial result with throw=False"
        )
    name, dtype = problem.coarsest
    if dtype != problem.like.dtype:
        return (
            f"vertex {name!r} is computed in {dtype} inside the model, which bounds what can be "
            f"reached: leave the cast out, or loosen tol"
        )
    return ""


def _about_free_inputs(problem: Problem) -> str:
    loose = [
        n for n in problem.sheaf.inputs
        if n in problem.free.shapes and problem.soft_pull(n) is None
    ]  # fmt: skip
    if not loose:
        return ""
    return (
        f". Coordinates of {loose[0]!r} are free and nothing pulls on them, so that E may be "
        f'nearly flat: a soft hold, Pin("{loose[0]}", reference, where=…, weight=0.01), '
        "mostly takes far fewer passes"
    )


def _relax(
    solver: HarmonicSolver, problem: Problem, first: Cochain, tol: float, max_passes: int,
    tell: Progress, *, fall_back: bool,
) -> Solution:  # fmt: skip
    """One run; when it does not arrive, some block descent and a second run from there."""
    found = solver.solve(problem, problem.clamp(first), tol, max_passes, tell)
    descent = BlockDescent()
    left = max_passes - found.passes
    if found.outcome is not Outcome.STALLED or not fall_back or left <= FALL_BACK:
        return found
    if descent.refuses(problem) is not None:
        return found
    lower = descent.solve(problem, found.cochain, tol, FALL_BACK, tell)
    again = solver.solve(problem, lower.cochain, tol, left - lower.passes, tell)
    return replace(again, passes=found.passes + lower.passes + again.passes)


def _from_all(
    solver: HarmonicSolver, problem: Problem, starts: list[tuple[str, Cochain]], tol: float,
    max_passes: int, tell: Progress,
) -> tuple[Equilibria, Solution]:  # fmt: skip
    runs: list[Solution] = []
    begun = 0.0  # share of all samples of all starts

    def solve(p: Problem, c: Cochain) -> tuple[Cochain, Tensor, Tensor]:
        nonlocal begun
        before, begun = begun, begun + p.batch / (problem.batch * len(starts))
        found = solver.solve(
            p, c, tol, max_passes, lambda share: tell(before + share * (begun - before))
        )
        runs.append(found)
        residual = p.residual(found.cochain)
        arrived = stationarity(p, found.cochain, residual).distance <= 10 * tol
        return found.cochain, p.energy(found.cochain, residual), arrived

    equilibria = gather_equilibria(problem, starts, solve, same=min(100 * tol, 0.05))
    everyone = bool(equilibria.arrived.any(0).all())
    outcome = Outcome.SETTLED if everyone else runs[-1].outcome
    if not everyone and outcome is Outcome.SETTLED:
        outcome = Outcome.STALLED
    best = equilibria.best()
    settled = equilibria.arrived.any(0)
    return equilibria, Solution(best, settled, sum(r.passes for r in runs), outcome)


def first_cochain(
    problem: Problem, start: str | Cochain, generator: torch.Generator | None = None
) -> tuple[Cochain, str]:  # fmt: skip
    """The cochain that a start names, and what it is called in the result."""
    if isinstance(start, str) and start not in ("auto", "forward", "zeros", "random"):
        known = '"auto", "forward", "zeros", "random" or a Cochain'
        raise ValueError(f"start is {start!r}; write {known}")
    if start != "auto":
        first = problem.start(start, generator)
        return first, start if isinstance(start, str) else "given"
    forward = problem.start("forward")
    if problem.holds_input_only or BlockDescent().refuses(problem) is not None:
        return forward, "forward"
    return over_relaxed(problem, forward), "forward, one block step"


def stationarity_tolerance(problem: Problem) -> float:
    """The dist(0, ∂E) that a relaxation is asked for where no `tol` is given: 1e-8 where every
    value of the network is float64, else 1e-4.
    """
    return tolerance_of(problem.coarsest[1], float64=1e-8, float32=1e-4)


def _choose(name: str, problem: Problem) -> HarmonicSolver:
    if name == "auto":
        reasons = []
        for candidate in SOLVERS:
            reason = candidate.refuses(problem)
            if reason is None:
                return candidate
            reasons.append(f"{candidate.name}: {reason}")
        raise ValueError("no solver takes this problem; " + "; ".join(reasons))
    for candidate in SOLVERS:
        if candidate.name == name:
            reason = candidate.refuses(problem)
            if reason is not None:
                raise ValueError(f"solver={name!r} does not take this problem: {reason}")
            return candidate
    known = ", ".join(repr(s.name) for s in SOLVERS)
    raise ValueError(f'solver is {name!r}; write "auto" or one of {known}')
