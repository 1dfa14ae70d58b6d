"""The equilibrium rule, the paper's: relax with the loss edge attached, differentiate locally."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from torchsheaf.boundary import Pin, Problem, hold
from torchsheaf.cochain import Cochain
from torchsheaf.harmonic import harmonic_extension
from torchsheaf.train.first_order import add_gradients
from torchsheaf.train.rule import Batch, LocalGradients, LocalRule


@final
@dataclass(frozen=True)
class EquilibriumRule(LocalRule):
    """dE*/dθ_e = −w_e (∂f_e/∂θ)ᵀ r_e at the relaxed cochain (envelope theorem, T6).

    E*(θ) = min_c ½ Σ_e w_e ‖r_e‖² + ε Φ(z_out, y), input held; no derivative through the solve.
    For Φ = ½‖·‖² the loss edge is a soft pin of weight ε. A loss of bounded curvature κ (Huber,
    BCE, cross-entropy) is majorised at the present z by the quadratic of curvature κ, which is a
    soft pin of weight εκ at z − ∂Φ/κ; each round lowers the true energy, and the rounds end when
    the true gradient is ≤ `tol`.

    Per unit of learning rate slower than back-propagation by S = I/ε + K (docs/learning.md);
    ε → 0 gives ε times the back-propagated gradient. Source: Bosca & Ghrist 2026, section 5.2,
    Algorithm 12.4 of the course, corrected (docs/errata.md).

    Raises ValueError for a loss of unbounded curvature (L1, Lp).
    """

    output_weight: float = 1.0
    weights: Mapping[str, float] | None = None
    tol: float | None = None
    max_rounds: int = 200
    solver: str = "auto"
    name: str = "equilibrium"

    def gradients(self, batch: Batch) -> LocalGradients:
        problem, relaxed = self.relax(batch)
        residual = problem.residual(relaxed)
        force = problem.force(residual)
        at = replace(batch, values=relaxed)
        total: dict[str, Tensor] = {}
        for edge in batch.sheaf.edges.values():
            if edge.parameters:
                add_gradients(total, at, edge.name, -force[edge.name])
        return LocalGradients(total, {n: float(batch.size) for n in total})

    @torch.no_grad()
    def relax(self, batch: Batch) -> tuple[Problem, Cochain]:
        """The relaxed cochain, and the problem without its loss edge."""
        loss, kappa = batch.loss, batch.loss.curvature
        if not math.isfinite(kappa):
            raise ValueError(
                f"rule 'equilibrium' needs a loss of bounded curvature; {loss.name!r} has none. "
                "Use l2, huber, bce or cross_entropy, or rule='first-order'"
            )
        inputs = {n: batch.values[n] for n in batch.sheaf.inputs}
        free = hold(batch.sheaf, inputs, weights=self.weights)
        tol = (
            self.tol
            if self.tol is not None
            else (1e-8 if batch.values.dtype == torch.float64 else 1e-4)
        )
        state = batch.values
        for _ in range(self.max_rounds):
            z = state[batch.output]
            goal = z - loss.gradient(z, batch.target) / kappa
            held = free.pin(Pin(batch.output, goal, weight=self.output_weight * kappa))
            found = harmonic_extension(held, solver=self.solver, start=state, tol=tol, throw=False)
            state = found.cochain
            z_new = state[batch.output]
            # The majoriser's gradient vanishes here; the true one differs at the output only.
            error = loss.gradient(z_new, batch.target) - kappa * (z_new - goal)
            gap = self.output_weight * error.flatten(1).norm(dim=1)
            if bool((gap <= tol).all()):
                break
        return free, state
