"""The edge rule: every weight edge solves its own proximal least-squares problem."""

from collections import defaultdict
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from torchsheaf.arguments import positive_number, whole_number
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
    `torch.optim.SGD(lr=η)` makes the step; start at η = 1 / (number of weight edges), and with
    cross-entropy try up to eight times that (docs/learning.md, measured). A squared loss falls, to
    first order and in one group, for η < 2/λ_max(Σ_e J_e J_eᵀ), J_e the Jacobian from weight edge e
    to the output: about 1 / (number of weight edges) in plain networks, far less in residual ones
    without norms. A has one row per sample and position (of a convolution, of a sequence); μ does
    not grow with the number of positions, as it does with that of samples. Parameters of other
    edges (norm layers, embeddings, grouped convolutions) take the first-order rule. A frozen bias
    drops the column of ones.

    Known under other names: FOOF and LocoProp; the input factor of K-FAC (docs/learning.md). Cost
    over a backprop step: about g (n_in + n_out) / (3 n_in n_out) of it per edge, for groups of g
    rows; with more rows than inputs (convolutions) about n_in / (3 n_out). The smaller of the two
    Gram matrices is factorised. `group=None`: one group, the cheapest where rows outnumber inputs
    (convolutions).
    """

    damping: float = 0.01
    group: int | None = 64
    name: str = "edge"

    def __post_init__(self) -> None:
        positive_number("damping", self.damping, "a positive number such as 0.01")
        if self.group is not None:
            group = whole_number("group", self.group, 1, ", or None (one group)")
            object.__setattr__(self, "group", group)

    def gradients(self, batch: Batch) -> LocalGradients:
        total = LocalGradients(batch.size, {})
        blocks: list[_Block] = []
        for problem, cotangent in weight_edges(batch, total):
            blocks += self._blocks(batch, problem, cotangent)
        for block, solution in zip(blocks, _solutions(blocks, self.damping), strict=True):
            weight, bias = block.step(solution)
            total.add(block.edge.weight, block.edge.stored(weight, batch.sheaf.network))
            if bias is not None:
                assert block.edge.bias is not None
                total.add(block.edge.bias, bias)
        return total

    def _blocks(self, batch: Batch, edge: WeightEdge, cotangent: Tensor) -> "list[_Block]":
        """The edge's groups: all full ones together, and a smaller last one if there is one."""
        network, g = batch.sheaf.network, edge.spread(cotangent)
        size = batch.size if self.group is None else min(self.group, batch.size)
        positions = g.shape[0] // batch.size
        live = has_live_bias(batch, edge)
        n_in = network.state(edge.weight).numel() // g.shape[1]
        column = live and size * positions > n_in
        a = edge.rows(network, batch.values, ones=column)
        whole = batch.size // size
        cut = whole * size * positions
        if cut == a.shape[0]:
            return [_Block.of(edge, a, g, whole, size, live, column)]
        rest = batch.size - whole * size
        return [
            _Block.of(edge, a[:cut], g[:cut], whole, size, live, column),
            _Block.of(edge, a[cut:], g[cut:], 1, rest, live, column),
        ]


@dataclass(frozen=True)
class _Block:
    """Equal groups of one edge: A `(groups, rows, n_in)`, Λ `(groups, rows, n_out)`, Gram / n_G.

    `left` when AAᵀ is the smaller Gram matrix. `column` says that the column of ones of a live
    bias is part of A; without it, it adds 1 to each entry of AAᵀ.
    """

    edge: WeightEdge
    a: Tensor
    g: Tensor
    gram: Tensor
    samples: int
    live: bool
    column: bool
    left: bool

    @classmethod
    def of(
        cls, edge: WeightEdge, a: Tensor, g: Tensor, groups: int, samples: int, live: bool,
        column: bool,
    ) -> "_Block":  # fmt: skip
        rows, apart = a.shape[0] // groups, live and not column
        left = rows <= a.shape[1] + apart
        a, g = a.view(groups, rows, -1), g.reshape(groups, rows, -1)
        pair = (a, a.mT) if left else (a.mT, a)
        share = 1 / samples
        ones = share if left and apart else 0.0
        gram = torch.baddbmm(a.new_ones(()), *pair, beta=ones, alpha=share)
        return cls(edge, a, g, gram, samples, live, column, left)

    @property
    def positions(self) -> int:
        """Rows per sample."""
        return self.a.shape[1] // self.samples

    @property
    def narrow(self) -> bool:
        """Fewer right-hand sides than unknowns: solving costs less than inverting."""
        return self.g.shape[2] < self.gram.shape[1]

    def right_hand_sides(self) -> Tensor:
        """Λ_G, or A_GᵀΛ_G."""
        return self.g if self.left else torch.bmm(self.a.mT, self.g)

    def step(self, solution: Tensor) -> tuple[Tensor, Tensor | None]:
        """Σ_G n_G Λ_Gᵀ(A_G A_Gᵀ + μ)⁻¹A_G, split into weight and bias."""
        if not self.left:
            weight = solution.sum(0).mT
        else:
            weight = solution.flatten(0, 1).mT @ self.a.flatten(0, 1)
        if self.column:
            return weight[:, :-1], weight[:, -1]
        return weight, solution.sum((0, 1)) if self.live else None


def _solutions(blocks: list[_Block], damping: float) -> list[Tensor]:
    """n_G (Gram_G + μ_G)⁻¹ B_G of all groups; Grams of one size are factorised together."""
    alike: dict[tuple[int, bool], list[int]] = defaultdict(list)
    for i, block in enumerate(blocks):
        alike[block.gram.shape[1], block.narrow].append(i)
    found: dict[int, Tensor] = {}
    for (_, narrow), members in alike.items():
        chosen = [blocks[i] for i in members]
        factor = torch.linalg.cholesky_ex(_damped(chosen, damping))[0]
        matrices = factor if narrow else torch.cholesky_inverse(factor)
        parts = torch.split_with_sizes(matrices, [block.gram.shape[0] for block in chosen])
        for i, block, part in zip(members, chosen, parts, strict=True):
            b = block.right_hand_sides()
            found[i] = torch.cholesky_solve(b, part) if narrow else torch.bmm(part, b)
    return [found[i] for i in range(len(blocks))]


def _damped(blocks: list[_Block], damping: float) -> Tensor:
    """(Gram_G + μ_G) / n_G of all groups of blocks whose Grams have one size."""
    gram = blocks[0].gram if len(blocks) == 1 else torch.cat([block.gram for block in blocks])
    factors = [damping / block.positions for block in blocks for _ in range(len(block.gram))]
    same = len(set(factors)) == 1
    diagonal = gram.diagonal(dim1=1, dim2=2)
    mu = diagonal.sum(1, True) * (factors[0] if same else gram.new_tensor(factors)[:, None])
    diagonal += mu.add_(torch.finfo(gram.dtype).tiny)
    return gram
