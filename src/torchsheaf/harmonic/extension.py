"""The harmonic extension of held values: the public entry point of the solvers."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from torchsheaf.boundary import GateStates, Problem, Stationarity, stationarity
from torchsheaf.cochain import Cochain
from torchsheaf.harmonic.block_descent import BlockDescent, over_relaxed
from torchsheaf.harmonic.newton import Newton
from torchsheaf.harmonic.solver import HarmonicSolver, Solution, Substitution
from torchsheaf.outcome import ConvergenceError, Outcome

SOLVERS: tuple[HarmonicSolver, ...] = (Substitution(), Newton(), BlockDescent())
"""In the order in which solver="auto" tries them."""


@dataclass(frozen=True)
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

    @property
    def output(self) -> Tensor:
        """Value of the (first) output vertex."""
        return self.cochain[self.problem.sheaf.outputs[0]]

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
    tol: float | None = None,
    max_passes: int = 20_000,
    throw: bool = True,
) -> Extension:
    """The cochain of least energy that extends the held values.

    With only the input held this is substitution, one forward pass, and the result is `model(x)`
    at the output (Bosca & Ghrist 2026, Prop. 1). Otherwise a relaxation from `start` until
    dist(0, ∂E) ≤ `tol` for every sample; `tol` defaults to 1e-8 in float64, 1e-4 in float32.

    `start`: "forward" (substitution through the pins), "auto" (the same, then for a ReLU MLP one
    over-relaxed block step), "zeros", "random", or a cochain such as a neighbouring solution's.
    `solver`: "auto" takes substitution where it applies and Newton's method otherwise.

    Raises ValueError when no solver takes the problem, `ConvergenceError` (unless `throw=False`)
    when the tolerance was not reached.

    >>> import torch
    >>> from torchsheaf.sheaf import encode
    >>> from torchsheaf.boundary import hold
    >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1))
    >>> x = torch.randn(5, 2)
    >>> bool(torch.equal(harmonic_extension(hold(encode(net, x), x)).output, net(x)))
    True
    """
    chosen = _choose(solver, problem)
    tol = _tolerance(problem) if tol is None else tol
    first, named = first_cochain(problem, start)
    found: Solution = chosen.solve(problem, problem.clamp(first), tol, max_passes)
    residual = problem.residual(found.cochain)
    energy = problem.energy(found.cochain, residual)
    outcome = Outcome.NONFINITE if not bool(energy.isfinite().all()) else found.outcome
    result = Extension(
        problem, found.cochain, residual, energy, found.passes, found.settled, outcome,
        chosen.name, named, found.energies,
    )  # fmt: skip
    if throw and not outcome.ok:
        worst = (
            float(result.stationarity.max()) if outcome is not Outcome.NONFINITE else float("nan")
        )
        left = int((result.stationarity > tol).sum())
        raise ConvergenceError(
            outcome,
            f"{chosen.name} left {left} of {problem.batch} samples above tol={tol:.1e} "
            f"(worst stationarity {worst:.1e}) after {found.passes} passes",
            result,
        )
    return result


def first_cochain(problem: Problem, start: str | Cochain) -> tuple[Cochain, str]:
    """The cochain that a start names, and what it is called in the result."""
    if isinstance(start, Cochain):
        return start, "given"
    if start != "auto":
        return problem.start(start), start
    forward = problem.start("forward")
    if problem.holds_input_only or BlockDescent().refuses(problem) is not None:
        return forward, "forward"
    return over_relaxed(problem, forward), "forward, one block step"


def _tolerance(problem: Problem) -> float:
    return 1e-8 if problem.like.dtype == torch.float64 else 1e-4


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
