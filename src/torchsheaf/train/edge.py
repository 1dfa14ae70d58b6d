"""The edge rule: every weight edge solves its own proximal least-squares problem."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from torchsheaf.network.parameters import WeightEdge, weight_edge
from torchsheaf.train.first_order import add_gradients
from torchsheaf.train.rule import Batch, LocalGradients, LocalRule, adjoint_substitution


@final
@dataclass(frozen=True)
class EdgeRule(LocalRule):
    """W⁺ = argmin ½ Σ_m ‖W a_m − (W a_m + η f_m)‖² + μ/2 ‖W⁺ − W‖², on groups of samples.

    With A the activations (a one appended for the bias) and F = −λ the forces that reach the edge,
        D_G = F_Gᵀ (A_G A_Gᵀ + μ I)⁻¹ A_G,  μ = damping · ‖A_G‖_F²,
    and `.grad` = −mean_G D_G, so that `torch.optim.SGD(lr=η)` makes the step; η = 8 / (number of
    weight edges) with cross-entropy is a good fixed setting. Parameters of other edges (norm
    layers, embeddings, grouped convolutions) take the first-order rule.

    Known under other names: FOOF and LocoProp; the input factor of K-FAC. Cost over a backprop
    step: about g (n_in + n_out) / (3 n_in n_out) of it per edge, for groups of g rows.

    `group=None` takes the whole batch as one group.
    """

    damping: float = 0.01
    group: int | None = 64
    name: str = "edge"

    def __post_init__(self) -> None:
        if not self.damping > 0:
            raise ValueError(f"damping is {self.damping}; write a positive number such as 0.01")
        if self.group is not None and self.group < 1:
            raise ValueError(f"group is {self.group}; write a number of samples ≥ 1, or None")

    def gradients(self, batch: Batch) -> LocalGradients:
        arriving = adjoint_substitution(batch)
        network = batch.sheaf.network
        total: dict[str, Tensor] = {}
        counts: dict[str, float] = {}
        for edge in batch.sheaf.edges.values():
            if not edge.parameters or edge.name not in arriving:
                continue
            least_squares = weight_edge(network, edge.node)
            if least_squares is None or not _all_learn(batch, least_squares):
                add_gradients(total, batch, edge.name, arriving[edge.name])
                counts |= {n: float(batch.size) for n in edge.parameters}
                continue
            a = with_ones(least_squares, batch)
            f = -least_squares.spread(arriving[edge.name])
            positions = a.shape[0] // batch.size
            step, groups = self._solve(a, f, positions)
            for name, part in split(least_squares, -step, batch).items():
                total[name] = total[name] + part if name in total else part
                counts[name] = float(groups)
        return LocalGradients(total, counts)

    def _solve(self, a: Tensor, f: Tensor, positions: int) -> tuple[Tensor, int]:
        """Σ_G D_G `(n_out, n_in)` and the number of groups; a group is `group` whole samples."""
        rows, n_in = a.shape
        size = rows if self.group is None else min(self.group * positions, rows)
        groups = -(-rows // size)
        if groups * size != rows:  # zero rows change neither ‖A‖ nor F_Gᵀ … A_G
            pad = (0, 0, 0, groups * size - rows)
            a, f = torch.nn.functional.pad(a, pad), torch.nn.functional.pad(f, pad)
        a, f = a.view(groups, size, n_in), f.view(groups, size, -1)
        mu = self.damping * a.square().sum((1, 2))
        mu = mu.clamp_min(torch.finfo(a.dtype).tiny)[:, None, None]
        left = size <= n_in
        gram = a @ a.mT if left else a.mT @ a
        eye = torch.eye(gram.shape[-1], dtype=a.dtype, device=a.device)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram + mu * eye))
        step = (f.mT @ inverse) @ a if left else (f.mT @ a) @ inverse
        return step.sum(0), groups


def _all_learn(batch: Batch, edge: WeightEdge) -> bool:
    names = [edge.weight] + ([edge.bias] if edge.bias else [])
    return all(batch.sheaf.network.state(n).requires_grad for n in names)


def with_ones(edge: WeightEdge, batch: Batch) -> Tensor:
    """A with a column of ones where the edge has a bias, `(rows, n_in (+ 1))`."""
    a = edge.rows(batch.sheaf.network, batch.values)
    return a if edge.bias is None else torch.cat([a, a.new_ones(a.shape[0], 1)], 1)


def split(edge: WeightEdge, matrix: Tensor, batch: Batch) -> dict[str, Tensor]:
    """Cut [W | b] back into the parameters' shapes."""
    weight = batch.sheaf.network.state(edge.weight)
    if edge.bias is None:
        return {edge.weight: matrix.reshape(weight.shape)}
    return {edge.weight: matrix[:, :-1].reshape(weight.shape), edge.bias: matrix[:, -1]}
