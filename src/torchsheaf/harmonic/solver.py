"""What every solver of a held problem offers, and the exact one for the input-held case."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from torchsheaf.boundary import Problem
from torchsheaf.cochain import Cochain
from torchsheaf.outcome import Outcome

Progress = Callable[[float], None]


@dataclass(frozen=True, eq=False)
class Solution:
    """What a solver hands back.

    `settled` (batch,): whether the activation pattern was the same before and after the last
    step. `passes`: forward or reverse passes over the samples still active. `energies` is the
    trace of total energy where the solver keeps one.
    """

    cochain: Cochain
    settled: Tensor
    passes: int
    outcome: Outcome
    energies: tuple[float, ...] = ()


class HarmonicSolver(ABC):
    """Minimises the energy of a problem. Stateless; the problem carries everything."""

    name: str

    @abstractmethod
    def refuses(self, problem: Problem) -> str | None:
        """Why this solver cannot take the problem, or None."""

    @abstractmethod
    def solve(
        self, problem: Problem, start: Cochain, tol: float, max_passes: int,
        tell: Progress = lambda share: None,
    ) -> Solution:  # fmt: skip
        """Relax from a start until dist(0, ∂E) ≤ tol for every sample, or `max_passes`.

        `tell` is called now and then with the share of samples that are at rest.
        """


@final
class Substitution(HarmonicSolver):
    """Solve δ_Ω c = b row by row in topological order: this is the forward pass.

    Exact when the input is held and all else free (Bosca & Ghrist 2026, Prop. 1). One pass.
    """

    name = "substitution"

    def refuses(self, problem: Problem) -> str | None:
        if problem.holds_input_only:
            return None
        return "substitution needs the whole input held and everything else free"

    def solve(
        self, problem: Problem, start: Cochain, tol: float, max_passes: int,
        tell: Progress = lambda share: None,
    ) -> Solution:  # fmt: skip
        cochain = problem.start("forward")
        settled = torch.ones(problem.batch, dtype=torch.bool, device=problem.like.device)
        return Solution(cochain, settled, 1, Outcome.SETTLED)
