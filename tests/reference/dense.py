"""Slow, dense, obvious: δ from its definition, δ by automatic differentiation, energy by loops."""

import itertools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Array = NDArray[np.float64]


def layers(net: nn.Sequential) -> tuple[list[Array], list[Array]]:
    """Weights and biases of the linear layers of a path network."""
    linears = [m for m in net if isinstance(m, nn.Linear)]
    weights = [m.weight.detach().double().numpy() for m in linears]
    biases = [
        np.zeros(m.weight.shape[0]) if m.bias is None else m.bias.detach().double().numpy()
        for m in linears
    ]
    return weights, biases


def path_coboundary(weights: Sequence[Array], masks: Sequence[Array]) -> Array:
    """δ on (z_1, a_1, …, a_k, z_{k+1}), entry by entry from its definition.

    Row of e_{z_l}: z_l − W_l a_{l−1}; row of e_{a_l}: a_l − R_l z_l; a_0 = x is held: no column.
    """
    widths = [w.shape[0] for w in weights]
    hidden = len(weights) - 1
    sizes = [n for n in widths[:hidden] for _ in ("z", "a")] + [widths[-1]]
    start = [sum(sizes[:i]) for i in range(len(sizes))]
    delta = np.zeros((sum(sizes), sum(sizes)))
    for layer in range(hidden + 1):
        z = start[2 * layer]
        for i in range(widths[layer]):
            delta[z + i, z + i] = 1.0
            if layer > 0:
                for j in range(widths[layer - 1]):
                    delta[z + i, start[2 * layer - 1] + j] = -weights[layer][i, j]
        if layer < hidden:
            a = start[2 * layer + 1]
            for i in range(widths[layer]):
                delta[a + i, a + i] = 1.0
                delta[a + i, z + i] = -masks[layer][i]
    return delta


def path_forward(
    weights: Sequence[Array], biases: Sequence[Array], x: Array
) -> tuple[list[Array], list[Array]]:
    """Pre- and post-activations of one sample."""
    a, zs, posts = x, [], []
    for i, (w, b) in enumerate(zip(weights, biases, strict=True)):
        z = w @ a + b
        zs.append(z)
        if i < len(weights) - 1:
            a = np.maximum(z, 0)
            posts.append(a)
    return zs, posts


def forward_masks(weights: Sequence[Array], biases: Sequence[Array], x: Array) -> list[Array]:
    """R_l of the forward pass; z = 0 counts as active."""
    zs, _ = path_forward(weights, biases, x)
    return [(z >= 0).astype(float) for z in zs[:-1]]


def all_patterns(widths: Sequence[int]) -> Iterator[list[Array]]:
    """Every 0/1 mask of the hidden layers."""
    for bits in itertools.product((0.0, 1.0), repeat=sum(widths)):
        flat, masks = np.array(bits), []
        for width in widths:
            masks.append(flat[:width])
            flat = flat[width:]
        yield masks


def path_energy(
    weights: Sequence[Array],
    biases: Sequence[Array],
    x: Array,
    zs: Sequence[Array],
    posts: Sequence[Array],
) -> float:
    """½ Σ over edges and coordinates of the squared disagreement of one sample."""
    total, below = 0.0, x
    for i, (w, b) in enumerate(zip(weights, biases, strict=True)):
        for row in range(w.shape[0]):
            predicted = b[row] + sum(w[row, col] * below[col] for col in range(w.shape[1]))
            total += 0.5 * (zs[i][row] - predicted) ** 2
        if i < len(posts):
            for row in range(w.shape[0]):
                total += 0.5 * (posts[i][row] - max(zs[i][row], 0.0)) ** 2
            below = posts[i]
    return total


def autograd_coboundary(sheaf, c: Mapping[str, Tensor], sample: int) -> Tensor:  # type: ignore[no-untyped-def]
    """∂r/∂c of one sample on all non-input vertices, one reverse pass of torch.autograd per row.

    Only `network.evaluate` of the library is used, never its restriction maps. The state must lie
    off the kinks, where autograd and the sheaf may take different pieces.
    """
    free = [n for n in c if n not in sheaf.inputs]
    blocks = {n: t[sample : sample + 1].clone().requires_grad_(n in free) for n, t in c.items()}
    with torch.enable_grad():
        rows = [
            (blocks[node.name] - sheaf.network.evaluate(node, blocks)).flatten()
            for node in sheaf.network.nodes
        ]
        r = torch.cat(rows)
        out = r.new_zeros(r.numel(), sum(blocks[n].numel() for n in free))
        for i in range(r.numel()):
            grads = torch.autograd.grad(
                r[i], [blocks[n] for n in free], retain_graph=True, allow_unused=True
            )
            out[i] = torch.cat(
                [
                    (torch.zeros_like(blocks[n]) if g is None else g).flatten()
                    for n, g in zip(free, grads, strict=True)
                ]
            )
    return out
