"""The equilibrium rule, the paper's: relax with the loss edge attached, differentiate locally."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, final

import torch
from torch import Tensor

from torchsheaf.arguments import positive_number, whole_number
from torchsheaf.boundary import Pin, Problem, hold
from torchsheaf.cochain import Cochain, coordinates
from torchsheaf.harmonic import Extension, harmonic_extension
from torchsheaf.harmonic.extension import stationarity_tolerance
from torchsheaf.outcome import ConvergenceError, Outcome
from torchsheaf.train.loss_edge import LARGEST, OutputModel
from torchsheaf.train.rule import Batch, LocalGradients, LocalRule


@dataclass(frozen=True, eq=False)
class Relaxation:
    """A relaxed batch: the problem without its loss edge, the cochain, and how it was reached.

    `gap` is the output force that the majoriser leaves over, and `energy` E + εΦ, per sample;
    `model` what is known of the output's reduced energy.
    """

    problem: Problem
    cochain: Cochain
    passes: int
    rounds: int
    settled: bool
    gap: Tensor
    energy: Tensor
    model: OutputModel | None = None


@final
@dataclass
class EquilibriumRule(LocalRule):
    """dE*/dθ_e = −w_e (∂f_e/∂θ)ᵀ r_e at the relaxed cochain (envelope theorem, T6).

    E*(θ) = min_c ½ Σ_e w_e ‖r_e‖² + ε Φ(z_out, y), input held; no derivative through the solve.
    For Φ = ½‖·‖² the loss edge is a soft pin of weight ε. A loss of bounded curvature κ (Huber,
    BCE, cross-entropy) is majorised by the quadratic of curvature κ that is tangent at a z, which
    is a soft pin of weight εκ at z − ∂Φ/κ. z is where a model of the output's reduced energy (`d` +
    3 passes once, then secants) puts the minimum: few rounds, measured 3 to 7 a step,
    where the present z as the point of tangency takes ever more as the logits grow (docs/theory.md,
    T6). A sample whose energy such a round raises is put back and goes on by tangency at its
    present z, which lowers the energy in every round. The rounds end when the true gradient is ≤
    `tol`. Outputs of more than 64 coordinates, and runs with `max_passes`, use the present z.

    `max_passes=None` relaxes to `tol` and raises `ConvergenceError` where that fails; a number
    stops there ("few sweeps"), and the derivative is then taken at a state that is not an
    equilibrium. `warm=True` keeps the relaxed cochain and starts from it when the same batch comes
    again, as in full-batch training.

    `output_weight` is ε. Squared loss, pattern fixed: the forces w_e r_e are what back-propagation
    makes of S⁻¹e instead of the error e, S = I/ε + K with K ≥ I at unit weights; at the default
    ε = 1 of e/2 or less, so raise the learning rate (docs/learning.md). ε → 0: `.grad` is ε times
    the back-propagated gradient; ε → ∞: that of the energy with the output held at y. Source:
    Bosca & Ghrist 2026, section 5.2, Algorithm 12.4 of the course, corrected (docs/errata.md).

    Raises ValueError for a loss of unbounded curvature (L1, Lp), and for a model with `detach` or
    `no_grad` inside.
    """

    output_weight: float = 1.0
    weights: Mapping[str, float] | None = None
    tol: float | None = None
    max_rounds: int = 200
    max_passes: int | None = None
    solver: str = "auto"
    warm: bool = False
    name: str = "equilibrium"
    sweeps_back: ClassVar[bool] = False
    memory: dict[str, Tensor] = field(default_factory=dict, repr=False)
    last: Relaxation | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        positive_number("output_weight", self.output_weight, "a positive finite number")
        if self.tol is not None:
            positive_number("tol", self.tol)
        self.max_rounds = whole_number("max_rounds", self.max_rounds)
        if self.max_passes is not None:
            otherwise = ", or None (relax to tol)"
            self.max_passes = whole_number("max_passes", self.max_passes, 1, otherwise)

    def gradients(self, batch: Batch) -> LocalGradients:
        self.last = self.relax(batch)
        problem, relaxed = self.last.problem, self.last.cochain
        force = problem.force(problem.residual(relaxed))
        at = replace(batch, values=relaxed)
        total = LocalGradients(batch.size, {})
        upstream = batch.sheaf.upstream([batch.output])
        for edge in batch.sheaf.edges.values():
            if edge.parameters and edge.name in upstream:
                total.add_edge(at, edge, -force[edge.name])
        if self.warm:
            self.memory = dict(relaxed.items()) | {_TARGET: batch.target}
        return total

    @torch.no_grad()
    def relax(self, batch: Batch) -> Relaxation:
        """Relax the batch with the loss edge attached."""
        if not math.isfinite(batch.loss.curvature):
            raise ValueError(
                f"rule 'equilibrium' needs a loss of bounded curvature; {batch.loss.name!r} has "
                "none. Use l2, huber, bce or cross_entropy, FunctionLoss(function, curvature) "
                "where there is a bound, or rule='first-order'"
            )
        for edge in batch.sheaf.edges.values():
            if edge.node.stops:
                raise ValueError(
                    f"edge {edge.name!r} reads through detach() or no_grad(), which an energy does "
                    "not know: rule 'equilibrium' would train what they cut off; write "
                    "rule='first-order', 'edge' or 'recursive'"
                )
        now = self._first(batch)
        tol = stationarity_tolerance(now.problem) if self.tol is None else self.tol
        budget = math.inf if self.max_passes is None else self.max_passes
        while now.rounds < self.max_rounds and not now.settled and now.passes < budget:
            now = self._round(batch, now, tol)
        if not now.settled and self.max_passes is None:
            raise ConvergenceError(
                Outcome.STEP_LIMIT,
                f"{self.max_rounds} rounds left an output force of {float(now.gap.max()):.1e} "
                f"above tol={tol:.1e}; raise max_rounds or loosen tol",
            )
        return now

    def _first(self, batch: Batch) -> Relaxation:
        """Before the first round. A budget of passes is not spent on a model of the output."""
        inputs = {n: batch.values[n] for n in batch.sheaf.inputs}
        free, start = hold(batch.sheaf, inputs, weights=self.weights), self._start(batch)
        z = start[batch.output]
        predicts = self.max_passes is None and coordinates(z).shape[1] <= LARGEST
        predicts = predicts and batch.loss.hessian(z, batch.target) is not None
        energy = free.energy(start) + self.output_weight * batch.loss.potential(z, batch.target)
        model = OutputModel.at(free, start, batch.output) if predicts else None
        passes = 0 if model is None else coordinates(z).shape[1] + 3
        return Relaxation(free, start, passes, 0, False, energy.new_tensor(math.inf), energy, model)

    def _round(self, batch: Batch, now: Relaxation, tol: float) -> Relaxation:
        """Relax with the majoriser that is tangent where the output is predicted to rest."""
        loss, model, eps = batch.loss, now.model, self.output_weight
        kappa, before = batch.loss.curvature, now.cochain[batch.output]
        z = before if model is None else model.rest(loss, batch.target, eps, before)
        goal = z - loss.gradient(z, batch.target) / kappa
        found = self._relaxed(batch, now, goal, tol)
        passes = now.passes + found.passes
        z = found.cochain[batch.output]
        # The majoriser's gradient vanishes here; the true one differs at the output only.
        force = eps * kappa * (goal - z)
        gap = coordinates(eps * loss.gradient(z, batch.target) + force).norm(dim=1)
        parabola = 0.5 * eps * kappa * coordinates(z - goal).square().sum(1)
        energy = found.energy - parabola + eps * loss.potential(z, batch.target)
        cochain = found.cochain
        if model is not None:
            rounding = 100 * torch.finfo(energy.dtype).eps * (1 + found.energy)
            lower = ~(energy > now.energy + rounding) | (gap <= tol)
            model = model.after(coordinates(z), coordinates(force), lower, 3 * tol)
            cochain = cochain.where(lower, now.cochain)
            energy, gap = torch.where(lower, energy, now.energy), gap.masked_fill(~lower, math.inf)
        settled = found.outcome.ok and bool((gap <= tol).all())
        return replace(
            now, cochain=cochain, passes=passes, rounds=now.rounds + 1, settled=settled, gap=gap,
            energy=energy, model=model,
        )  # fmt: skip

    def _relaxed(self, batch: Batch, now: Relaxation, goal: Tensor, tol: float) -> Extension:
        """The majoriser's own equilibrium, or what the budget reaches of it."""
        limit = self.max_passes
        held = now.problem.pin(
            Pin(batch.output, goal, weight=self.output_weight * batch.loss.curvature)
        )
        found = harmonic_extension(
            held, solver=self.solver, start=now.cochain, tol=tol, throw=False, progress=False,
            max_passes=20_000 if limit is None else max(1, limit - now.passes),
        )  # fmt: skip
        passes = now.passes + found.passes
        short = limit is not None and passes >= limit
        if found.outcome is Outcome.NONFINITE or not (found.outcome.ok or short):
            raise ConvergenceError(
                found.outcome,
                f"the batch did not relax: {int((found.stationarity > tol).sum())} of "
                f"{batch.size} samples are above tol={tol:.1e} after {passes} passes; with "
                "max_passes the rule takes what few sweeps reach",
            )
        return found

    def _start(self, batch: Batch) -> Cochain:
        """The remembered cochain when this very batch was relaxed before, else the forward pass."""
        now = {n: batch.values[n] for n in batch.sheaf.inputs} | {_TARGET: batch.target}
        device = batch.target.device  # a resumed memory comes from the CPU
        self.memory = {n: t.to(device) for n, t in self.memory.items()}

        def same(name: str, t: Tensor) -> bool:
            known = self.memory.get(name)
            return known is not None and known.dtype == t.dtype and torch.equal(known, t)

        if not self.warm or not all(same(n, t) for n, t in now.items()):
            return batch.values
        return Cochain({n: self.memory[n] for n in batch.values})

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self.memory)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.memory = dict(state)


_TARGET = "loss: target"
