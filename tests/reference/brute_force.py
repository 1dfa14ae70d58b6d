"""Every equilibrium of a small held ReLU net, by trying all 3^gates states at once."""

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor, nn

OFF, ON, SLIDING = 0, 1, 2


@dataclass(frozen=True)
class Found:
    """Energies of the states that are consistent, and those states `(n, gates)`."""

    energies: Tensor
    states: Tensor

    @property
    def least(self) -> float:
        return float(self.energies.min())


def brute_force(net: nn.Sequential, x: Tensor, y: Tensor, weight: float = float("inf")) -> Found:
    """One sample x (n0,), output held at y: hard, or soft with a weight γ.

    Each state (off, on, sliding per gate) makes E quadratic: least squares over the columns that
    are left, then the state is kept if its gates really are in it.
    """
    layers = [m for m in net if isinstance(m, nn.Linear)]
    hidden = [m.out_features for m in layers[:-1]]
    gates, out = sum(hidden), layers[-1].out_features
    states = torch.tensor(list(itertools.product((OFF, ON, SLIDING), repeat=gates)))
    size = 2 * gates + out
    delta, offset, pre, post = _coboundary(layers, hidden, x, states, size)
    target = y.to(delta)
    held = torch.zeros(states.shape[0], size, dtype=torch.bool)
    held[:, pre] = states == SLIDING
    fixed = torch.zeros(states.shape[0], size, dtype=delta.dtype)
    if weight == float("inf"):
        held[:, -out:] = True
        fixed[:, -out:] = target
        rows, right = delta, offset
    else:
        pin = torch.zeros(out, size, dtype=delta.dtype)
        pin[:, -out:] = torch.eye(out, dtype=delta.dtype) * weight**0.5
        rows = torch.cat([delta, pin.expand(states.shape[0], -1, -1)], 1)
        right = torch.cat([offset, target * weight**0.5])
    free = rows * (~held).to(rows.dtype)[:, None, :]
    b = right - torch.einsum("sij,sj->si", rows, fixed)
    normal = free.mT @ free + torch.diag_embed(held.to(rows.dtype))
    c = torch.linalg.solve(normal, torch.einsum("sij,si->sj", free, b))
    c = torch.where(held, fixed, c)
    energy = 0.5 * (torch.einsum("sij,sj->si", rows, c) - right).square().sum(1)
    incoming = _incoming(layers, hidden, x, c[:, post])
    z, a = c[:, pre], c[:, post]
    good = torch.where(states == OFF, z < 0, z > 0)
    good = torch.where(states == SLIDING, (incoming > 0) & (incoming + a < 0), good).all(1)
    return Found(energy[good], states[good])


def _coboundary(
    layers: list[nn.Linear], hidden: list[int], x: Tensor, states: Tensor, size: int
) -> tuple[Tensor, Tensor, list[int], list[int]]:
    dtype = layers[0].weight.dtype
    delta = torch.eye(size, dtype=dtype).repeat(states.shape[0], 1, 1)
    offset = torch.zeros(size, dtype=dtype)
    pre, post, at, before = [], [], 0, None
    for i, layer in enumerate(layers):
        n = layer.out_features
        rows = slice(at, at + n)
        weight, bias = layer.weight.detach(), layer.bias.detach()
        offset[rows] = bias if before is not None else bias + weight @ x
        if before is not None:
            delta[:, rows, before] = -weight
        if i < len(hidden):
            above = slice(at + n, at + 2 * n)
            mask = (states[:, len(pre) : len(pre) + n] == ON).to(dtype)
            delta[:, above, rows] = -torch.diag_embed(mask)
            pre += range(rows.start, rows.stop)
            post += range(above.start, above.stop)
            before, at = above, at + 2 * n
    return delta, offset, pre, post


def _incoming(layers: list[nn.Linear], hidden: list[int], x: Tensor, a: Tensor) -> Tensor:
    blocks, start = [], 0
    first = layers[0].weight.detach() @ x + layers[0].bias.detach()
    for i in range(len(hidden)):
        if i == 0:
            blocks.append(first.expand(a.shape[0], -1))
        else:
            below = a[:, start - hidden[i - 1] : start]
            blocks.append(below @ layers[i].weight.detach().mT + layers[i].bias.detach())
        start += hidden[i]
    return torch.cat(blocks, 1)
