"""The recursive rule: the edge's least-squares problem with memory of all earlier activations."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from torchsheaf.arguments import number, positive_number
from torchsheaf.outcome import ConvergenceError, Outcome
from torchsheaf.train.rule import (
    Batch,
    LocalGradients,
    LocalRule,
    has_live_bias,
    weight_edges,
)


@final
@dataclass
class RecursiveRule(LocalRule):
    """Recursive least squares per weight edge (orthogonal weight modification; OWM, 2019).

    Q = A P, M = Q Aᵀ + ρ I, `.grad` = −(M⁻¹ F)ᵀ Q, then P ← (P − Qᵀ M⁻¹ Q)/ρ, from
    P₀ = I/(damping · n), n = n_in + 1. `memory` is the number of samples remembered: ρ =
    (1 − 1/memory) per sample; ∞ forgets nothing (ρ = 1). Then P = (Σ AᵀA + damping · n I)⁻¹: a
    ridge regression over everything seen so far. For streams, batch size 1, continual learning.
    Step with `torch.optim.SGD(lr=1)`; lower it for deep nets.

    In float32 P can lose definiteness, with forgetting above all. P is updated by a symmetric
    product, P − GᵀG with G = chol(M)⁻¹Q, and its diagonal is checked at every step; a
    non-positive entry raises `ConvergenceError` and leaves weights and memory untouched. Where A
    has more rows than columns (positions of a convolution) both A and F are rotated to n rows.
    Cost: O(n²) memory per edge; 2–4.5 times a backprop step. Not for data-parallel training: every
    process would remember different samples.
    """

    damping: float = 0.01
    memory: float = math.inf
    name: str = "recursive"
    parallel: bool = False
    inverse_moments: dict[str, Tensor] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        positive_number("damping", self.damping, "a positive number such as 0.01")
        number("memory", self.memory, lambda m: m > 1, "a number > 1, or math.inf")

    def gradients(self, batch: Batch) -> LocalGradients:
        total = LocalGradients(batch.size, {})
        fresh = dict(self.inverse_moments)
        lowest: list[Tensor] = []
        for problem, cotangent in weight_edges(batch, total):
            ones = has_live_bias(batch, problem)
            a = problem.rows(batch.sheaf.network, batch.values, ones=ones)
            g = problem.spread(cotangent)
            step, p = self._update(fresh.get(problem.weight), a, g, batch.size)
            fresh[problem.weight] = p
            lowest.append(p.diagonal().min())
            # The rule's step is a sum over the batch, not a mean: undo the division by the size.
            step = step * batch.size
            weight = step[:, :-1] if ones else step
            total.add(problem.weight, problem.stored(weight, batch.sheaf.network))
            if ones and problem.bias is not None:
                total.add(problem.bias, step[:, -1])
        self._check(fresh, lowest)
        self.inverse_moments = fresh
        return total

    def _update(self, p: Tensor | None, a: Tensor, g: Tensor, batch: int) -> tuple[Tensor, Tensor]:
        """(M⁻¹Λ)ᵀQ and the next P."""
        n = a.shape[1]
        if p is None:
            p = torch.eye(n, dtype=a.dtype, device=a.device) / (self.damping * n)
        p = p.to(a)  # a resumed memory comes from the CPU, and the model may have moved
        if a.shape[0] > n:
            a, g = _fewer_rows(a, g)
        rho = 1.0 if math.isinf(self.memory) else (1 - 1 / self.memory) ** batch
        q = a @ p
        eye = torch.eye(a.shape[0], dtype=a.dtype, device=a.device)
        factor = torch.linalg.cholesky_ex(torch.addmm(rho * eye, q, a.mT))[0]
        root = torch.linalg.solve_triangular(factor, eye, upper=False)
        gain = root @ q
        step = (root @ g).mT @ gain
        p = torch.addmm(p, gain.mT, gain, alpha=-1)
        return step, (p if rho == 1 else p / rho)

    def _check(self, fresh: Mapping[str, Tensor], lowest: list[Tensor]) -> None:
        if not lowest:
            return
        values = torch.stack(lowest)
        if bool((values > 0).all()):
            return
        name = next(n for n, p in fresh.items() if not bool((p.diagonal() > 0).all()))
        raise ConvergenceError(
            Outcome.NONFINITE,
            f"the recursive state of {name!r} lost definiteness (smallest diagonal entry "
            f"{float(fresh[name].diagonal().min()):.1e}); use float64, memory=inf or more damping",
        )

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self.inverse_moments)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.inverse_moments = dict(state)


def _fewer_rows(a: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """(R, OᵀΛ) for A = O R with orthonormal columns: step and P⁺ are those of (A, Λ)."""
    reflectors, tau = torch.geqrf(a)
    n = a.shape[1]
    return reflectors[:n].triu(), torch.ormqr(reflectors, tau, g, transpose=True)[:n]
