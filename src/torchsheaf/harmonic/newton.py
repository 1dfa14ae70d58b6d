"""Inexact Newton on the reduced energy: the solver for held networks of any depth."""

from typing import final

import torch

from torchsheaf.boundary import Problem
from torchsheaf.cochain import Cochain
from torchsheaf.harmonic.asynchronous import AsynchronousNewton
from torchsheaf.harmonic.reduction import Reduction
from torchsheaf.harmonic.solver import HarmonicSolver, Progress, Solution
from torchsheaf.harmonic.synchronous import SynchronousNewton


@final
class Newton(HarmonicSolver):
    """Eliminates pre-activations exactly, then line-searched semismooth Newton on what is left.

    Each step freezes the gates' states (off, on, sliding), solves (I + GᵀG) u = −g by conjugate
    gradients in the variables u in which forward substitution is the identity (two sweeps per
    step, eigenvalues ≥ 1), and searches along the step on the true energy. With affine edges the
    search costs no sweep and no sample waits for another (`AsynchronousNewton`). Smooth edges are
    linearised at every step, with their second derivatives (`SynchronousNewton`).

    Energy never rises. Equilibria with the output held are local minima. Cost: see
    docs/choose-a-solver.md. Source: docs/notes/solver.md.
    """

    name = "newton"

    def refuses(self, problem: Problem) -> str | None:
        return None

    @torch.no_grad()
    def solve(
        self, problem: Problem, start: Cochain, tol: float, max_passes: int,
        tell: Progress = lambda share: None,
    ) -> Solution:  # fmt: skip
        reduction = Reduction.of(problem)
        nodes = [c.node for c in reduction.layout.cells]
        if all(n.piecewise_affine and not n.gates for n in nodes):
            return AsynchronousNewton(reduction, start, tol, max_passes).run(tell)
        return SynchronousNewton(reduction, start, tol, max_passes).run(tell)
