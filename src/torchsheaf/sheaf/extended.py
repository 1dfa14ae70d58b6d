"""The paper's literal bookkeeping, as a view: extended stalks, W̄ = [W | diag b], P = [I | 0]."""

from dataclasses import dataclass

import torch
from torch import Tensor

from torchsheaf.network import Kind
from torchsheaf.sheaf.sheaf import Sheaf


@dataclass(frozen=True, eq=False)
class ExtendedSheaf:
    """The path-graph sheaf of a ReLU MLP with ones appended to the stalks.

    v_x and v_{a_l} carry (a; 1_{n_{l+1}}) with the ones pinned, so that the affine map is linear:
    W̄ ā = W a + diag(b) 1 = W a + b. Where the stalks are (tokens, features), the sheaf is the
    sum of one such path per token, all with these blocks. Source: Bosca & Ghrist 2026, section 3,
    eq. A.5.
    """

    weights: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]

    @classmethod
    def of(cls, sheaf: Sheaf) -> "ExtendedSheaf":
        """Read the weights of a ReLU MLP's unfused sheaf.

        Raises ValueError when the sheaf is not a path of linear layers and ReLUs.
        """
        if sheaf.form != "unfused" or len(sheaf.inputs) != 1:
            raise ValueError("extended stalks are defined for the unfused sheaf of a ReLU MLP")
        weights, biases = [], []
        previous = sheaf.inputs[0]
        for i, edge in enumerate(sheaf.edges.values()):
            wanted = Kind.AFFINE if i % 2 == 0 else Kind.GATE
            plain = len(edge.node.operations) == 1 and edge.parents == (previous,)
            op = "aten.linear.default" if wanted is Kind.AFFINE else "aten.relu.default"
            if not plain or edge.op != op:
                raise ValueError(f"edge {edge.name!r} ({edge.op}) is not part of a ReLU MLP's path")
            if wanted is Kind.AFFINE:
                states = edge.node.states
                weight = sheaf.network.state(states[0]).detach()
                bias = sheaf.network.state(states[1]).detach() if len(states) > 1 else None
                weights.append(weight)
                biases.append(weight.new_zeros(weight.shape[0]) if bias is None else bias)
            previous = edge.name
        return cls(tuple(weights), tuple(biases))

    def affine(self, layer: int) -> Tensor:
        """W̄ = [W | diag b] of layer 1 … k+1, `(n_l, n_{l−1} + n_l)`."""
        w, b = self.weights[layer - 1], self.biases[layer - 1]
        return torch.cat([w, torch.diag(b)], 1)

    def projection(self, layer: int) -> Tensor:
        """P = [I | 0] of hidden layer l, `(n_l, n_l + n_{l+1})`."""
        n, ones = self.weights[layer - 1].shape[0], self.weights[layer].shape[0]
        eye = torch.eye(n, dtype=self.weights[0].dtype, device=self.weights[0].device)
        return torch.cat([eye, eye.new_zeros(n, ones)], 1)

    def extend(self, a: Tensor, layer: int) -> Tensor:
        """ā = (a; 1) at hidden layer l (0 is the input), `(…, n_l + n_{l+1})`."""
        return torch.cat([a, a.new_ones(*a.shape[:-1], self.weights[layer].shape[0])], -1)

    def coboundary(self, masks: list[Tensor]) -> tuple[Tensor, Tensor]:
        """δ on the free coordinates and on the pinned ones, for one pattern (of one token).

        `masks[l−1]` is the diagonal of R_l. Free columns are (z_1, a_1, …, z_{k+1}); pinned
        columns are (x, 1_{n_1} | 1_{n_2} | … | 1_{n_{k+1}}). Rows are the edges in order.
        """
        k = len(self.weights) - 1
        widths = [w.shape[0] for w in self.weights]
        n0, like = self.weights[0].shape[1], self.weights[0]
        rows = [n for n in widths[:k] for _ in (0, 1)] + [widths[k]]
        free = like.new_zeros(sum(rows), sum(rows))
        pinned = like.new_zeros(sum(rows), n0 + sum(widths))
        starts = [sum(rows[:i]) for i in range(len(rows) + 1)]
        ones = n0
        for layer, (w, b) in enumerate(zip(self.weights, self.biases, strict=True)):
            at = slice(starts[2 * layer], starts[2 * layer + 1])
            free[at, at] = torch.eye(widths[layer], dtype=like.dtype, device=like.device)
            if layer == 0:
                pinned[at, :n0] = -w
            else:
                free[at, starts[2 * layer - 1] : starts[2 * layer]] = -w
            pinned[at, ones : ones + widths[layer]] = -torch.diag(b)
            ones += widths[layer]
            if layer < k:
                gate = slice(starts[2 * layer + 1], starts[2 * layer + 2])
                free[gate, gate] = torch.eye(widths[layer], dtype=like.dtype, device=like.device)
                free[gate, at] = -torch.diag(masks[layer].to(like.dtype))
        return free, pinned
