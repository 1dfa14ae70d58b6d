"""The edge rule: every weight edge solves its own proximal least-squares problem."""

from collections import defaultdict
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from torchsheaf.network.parameters import WeightEdge
from torchsheaf.train.rule import (
    Batch,
    LocalGradients,
    LocalRule,
    has_live_bias,
    weight_edges,
)


@final
@dataclass(frozen=True)
class EdgeRule(LocalRule):
    """W⁺ = argmin ½ Σ_m ‖W⁺ a_m − (W a_m + η f_m)‖² + μ/2 ‖W⁺ − W‖², on groups of samples.

    With A the activations (a one appended for the bias) and F = −λ the forces that reach the edge,
        D_G = F_Gᵀ (A_G A_Gᵀ + μ I)⁻¹ A_G,  μ = damping · ‖A_G‖_F² / positions,
    and `.grad` = −mean_G D_G (groups weighted by their number of samples), so that
    `torch.optim.SGD(lr=η)` makes the step; η = 8 / (number of weight edges) with cross-entropy is
    a good fixed setting. A has one row per sample and position (of a convolution, of a sequence);
    μ does not grow with the number of positions, as it does with that of samples. Parameters of
    other edges (norm layers, embeddings, grouped convolutions) take the first-order rule. A frozen
    bias drops the column of ones.

    Known under other names: FOOF and LocoProp; the input factor of K-FAC (docs/learning.md). Cost
    over a backprop step: about g (n_in + n_out) / (3 n_in n_out) of it per edge, for groups of g
    rows; with more rows than inputs (convolutions) about n_in / (3 n_out). The smaller of the two
    Gram matrices is factorised. `group=None`: one group.
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
        total = LocalGradients(batch.size, {})
        blocks: list[_Block] = []
        for problem, cotangent in weight_edges(batch, total):
            blocks += self._blocks(batch, problem, cotangent)
        for block, inverse in zip(blocks, _inverses(blocks, self.damping), strict=True):
            weight, bias = block.step(inverse)
            total.add(block.edge.weight, block.edge.stored(weight, batch.sheaf.network))
            if bias is not None:
                assert block.edge.bias is not None
                total.add(block.edge.bias, bias)
        return total

    def _blocks(self, batch: Batch, edge: WeightEdge, cotangent: Tensor) -> "list[_Block]":
        """The edge's groups: all full ones together, and a smaller last one if there is one."""
        network = batch.sheaf.network
        a, g = edge.rows(network, batch.values), edge.spread(cotangent)
        size = batch.size if self.group is None else min(self.group, batch.size)
        positions = a.shape[0] // batch.size
        whole = batch.size // size
        ones = has_live_bias(batch, edge)
        cut = whole * size * positions
        blocks = [_Block.of(edge, a[:cut], g[:cut], whole, ones, size)]
        if cut < a.shape[0]:
            rest = batch.size - whole * size
            blocks.append(_Block.of(edge, a[cut:], g[cut:], 1, ones, rest))
        return blocks


@dataclass(frozen=True)
class _Block:
    """Equal groups of one edge: A `(groups, rows, n_in)`, Λ `(groups, rows, n_out)`, the Grams.

    `left` when AAᵀ is the smaller Gram matrix: then a column of ones in A adds 1 to each of its
    entries (left to `_inverses`); else the column is part of A.
    """

    edge: WeightEdge
    a: Tensor
    g: Tensor
    gram: Tensor
    ones: bool
    left: bool
    samples: int

    @classmethod
    def of(
        cls, edge: WeightEdge, a: Tensor, g: Tensor, groups: int, ones: bool,
        samples: int,
    ) -> "_Block":  # fmt: skip
        rows, n_in = a.shape[0] // groups, a.shape[1]
        left = rows <= n_in + ones
        if ones and not left:
            a = torch.cat([a, a.new_ones(a.shape[0], 1)], 1)
        a, g = a.view(groups, rows, -1), g.reshape(groups, rows, -1)
        gram = torch.bmm(a, a.mT) if left else torch.bmm(a.mT, a)
        return cls(edge, a, g, gram, ones, left, samples)

    @property
    def positions(self) -> int:
        """Rows per sample."""
        return self.a.shape[1] // self.samples

    def step(self, inverse: Tensor) -> tuple[Tensor, Tensor | None]:
        """Σ_G n_G Λ_Gᵀ(A_G A_Gᵀ + μ)⁻¹A_G, split into weight and bias."""
        if self.left:
            solved = torch.bmm(inverse, self.g).flatten(0, 1)
            return solved.mT @ self.a.flatten(0, 1), solved.sum(0) if self.ones else None
        moments = torch.bmm(self.g.mT, self.a)
        weight = torch.bmm(moments, inverse).sum(0)
        return (weight[:, :-1], weight[:, -1]) if self.ones else (weight, None)


def _inverses(blocks: list[_Block], damping: float) -> list[Tensor]:
    """n_G (Gram_G + μ_G)⁻¹ of all groups; Grams of one size are factorised together."""
    by_size: dict[int, list[int]] = defaultdict(list)
    for i, block in enumerate(blocks):
        by_size[block.gram.shape[1]].append(i)
    found: dict[int, Tensor] = {}
    for members in by_size.values():
        chosen = [blocks[i] for i in members]
        sizes = [block.gram.shape[0] for block in chosen]
        gram = torch.cat([block.gram for block in chosen])
        owner = [block for block, n in zip(chosen, sizes, strict=True) for _ in range(n)]
        gram += gram.new_tensor([float(b.left and b.ones) for b in owner])[:, None, None]
        diagonal = gram.diagonal(dim1=1, dim2=2)
        positions = gram.new_tensor([float(b.positions) for b in owner])[:, None]
        mu = damping * diagonal.sum(1, keepdim=True) / positions
        diagonal += mu.clamp_min(torch.finfo(gram.dtype).tiny)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky_ex(gram)[0])
        inverse *= gram.new_tensor([float(b.samples) for b in owner])[:, None, None]
        found |= dict(zip(members, inverse.split(sizes), strict=True))
    return [found[i] for i in range(len(blocks))]
