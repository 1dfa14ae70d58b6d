"""The recursive rule: the edge's least-squares problem with memory of all earlier activations."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from torchsheaf.network.parameters import weight_edge
from torchsheaf.outcome import ConvergenceError, Outcome
from torchsheaf.train.edge import _all_learn, split, with_ones
from torchsheaf.train.first_order import add_gradients
from torchsheaf.train.rule import Batch, LocalGradients, LocalRule, adjoint_substitution


@final
@dataclass
class RecursiveRule(LocalRule):
    """Recursive least squares per weight edge (orthogonal weight modification; OWM, 2019).

    Q = A P, M = Q Aᵀ + ρ I, `.grad` = −(M⁻¹ F)ᵀ Q, then P ← (P − Qᵀ M⁻¹ Q)/ρ, from
    P₀ = I/(damping · (n_in + 1)). `memory` is the number of samples remembered: ρ =
    (1 − 1/memory) per sample; ∞ forgets nothing (ρ = 1). For streams, batch size 1, continual
    learning. Step with `torch.optim.SGD(lr=1)`; lower it for deep nets.

    In float32 with forgetting P can lose definiteness: it is kept symmetric and its diagonal is
    checked at every step; a non-positive entry raises `ConvergenceError` and leaves the weights
    untouched. Cost: O(n_in²) memory per edge; 2–4 times a backprop step.
    """

    damping: float = 0.01
    memory: float = math.inf
    name: str = "recursive"
    inverse_moments: dict[str, Tensor] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if not self.damping > 0:
            raise ValueError(f"damping is {self.damping}; write a positive number such as 0.01")
        if not self.memory > 1:
            raise ValueError(f"memory is {self.memory} samples; write a number > 1, or math.inf")

    def gradients(self, batch: Batch) -> LocalGradients:
        arriving = adjoint_substitution(batch)
        total: dict[str, Tensor] = {}
        counts: dict[str, float] = {}
        fresh: dict[str, Tensor] = {}
        for edge in batch.sheaf.edges.values():
            if not edge.parameters or edge.name not in arriving:
                continue
            least_squares = weight_edge(batch.sheaf.network, edge.node)
            if least_squares is None or not _all_learn(batch, least_squares):
                add_gradients(total, batch, edge.name, arriving[edge.name])
                counts |= {n: float(batch.size) for n in edge.parameters}
                continue
            a = with_ones(least_squares, batch)
            f = -least_squares.spread(arriving[edge.name])
            known = fresh.get(least_squares.weight)
            step, fresh[least_squares.weight] = self._update(
                least_squares.weight, a, f, batch.size, known
            )
            for name, part in split(least_squares, -step, batch).items():
                total[name] = total[name] + part if name in total else part
                counts[name] = 1.0
        self.inverse_moments.update(fresh)
        return LocalGradients(total, counts)

    def _update(
        self, name: str, a: Tensor, f: Tensor, batch: int, known: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        n = a.shape[1]
        p = known if known is not None else self.inverse_moments.get(name)
        if p is None:
            p = torch.eye(n, dtype=a.dtype, device=a.device) / (self.damping * n)
        rho = 1.0 if math.isinf(self.memory) else (1 - 1 / self.memory) ** batch
        q = a @ p
        eye = torch.eye(a.shape[0], dtype=a.dtype, device=a.device)
        factor, failed = torch.linalg.cholesky_ex(q @ a.mT + rho * eye)
        solved = torch.cholesky_inverse(factor) @ torch.cat([f, q], 1)
        m_f, m_q = solved[:, : f.shape[1]], solved[:, f.shape[1] :]
        p = (p - q.mT @ m_q) / rho
        p = (p + p.mT) / 2
        if int(failed) or not bool((p.diagonal() > 0).all()):
            raise ConvergenceError(
                Outcome.NONFINITE,
                f"the recursive state of {name!r} lost definiteness (smallest diagonal entry "
                f"{float(p.diagonal().min()):.1e}); use float64, memory=inf or more damping",
            )
        return m_f.mT @ q, p

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self.inverse_moments)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.inverse_moments = {n: t.clone() for n, t in state.items()}
