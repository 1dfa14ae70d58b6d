"""Held problems of many kinds that the solver's tests share."""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import torchsheaf as ts
from tests.reference.networks import fill, randn, relu_mlp


class PreActivation(nn.Module):
    """h + W relu(h): the pre-activation feeds a gate and a skip, so it cannot be eliminated."""

    def __init__(self, width: int = 8, blocks: int = 2) -> None:
        super().__init__()
        self.inner = nn.Linear(3, width)
        self.blocks = nn.ModuleList([nn.Linear(width, width) for _ in range(blocks)])
        self.out = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.inner(x)
        for block in self.blocks:
            h = h + block(torch.relu(h))
        return self.out(h)


class PostActivation(PreActivation):
    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.inner(x))
        for block in self.blocks:
            h = torch.relu(h + block(h))
        return self.out(h)


class Pooled(nn.Module):
    """conv, ReLU and max-pool in either order, twice, then a linear layer."""

    def __init__(self, *, pool_first: bool) -> None:
        super().__init__()
        self.pool_first = pool_first
        self.c1 = nn.Conv2d(1, 3, 3, padding=1)
        self.c2 = nn.Conv2d(3, 4, 3, padding=1)
        self.out = nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        for conv in (self.c1, self.c2):
            x = conv(x)
            x = F.relu(F.max_pool2d(x, 2)) if self.pool_first else F.max_pool2d(F.relu(x), 2)
        return self.out(x.flatten(1))


class Attending(nn.Module):
    """A residual stream of five places, one layer of two causal heads on its norm, two outputs."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.inner = nn.Linear(3, width)
        self.norm = nn.LayerNorm(width)
        self.heads = nn.ModuleList([nn.Linear(width, width) for _ in range(3)])
        self.write = nn.Linear(width, width)
        self.out = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.inner(x)
        q, k, v = (f(self.norm(h)).unflatten(-1, (2, -1)).transpose(1, 2) for f in self.heads)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        h = h + self.write(y.transpose(1, 2).flatten(2))
        return self.out(h[:, -1])


class Overlapping(nn.Module):
    """Two pools of the same values, whose windows overlap within and between them."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv2d(1, 2, 3, padding=1)
        self.out = nn.Linear(2 * 25 + 2 * 5, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.inner(x)
        return self.out(torch.cat([F.max_pool2d(h, 3, 1, 1).flatten(1), h.amin(3).flatten(1)], 1))


def stem(pool: nn.Module, size: int) -> nn.Module:
    """conv, ReLU, a pool to size × size, conv, ReLU, linear, on 5×5 images."""
    first, second = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
    last = nn.Linear(3 * size * size, 2)
    return nn.Sequential(first, nn.ReLU(), pool, second, nn.ReLU(), nn.Flatten(), last)


OVERLAPPING: dict[str, Callable[[int], nn.Module]] = {
    "stride 2": lambda s: fill(stem(nn.MaxPool2d(3, 2, 1), 3), s),
    "stride 1": lambda s: fill(stem(nn.MaxPool2d(3, 1, 1), 5), s),
    "dilated": lambda s: fill(stem(nn.MaxPool2d(2, 1, 0, 2), 3), s),
    "ceil mode": lambda s: fill(stem(nn.MaxPool2d(3, 2, 0, ceil_mode=True), 2), s),
    "adaptive": lambda s: fill(stem(nn.AdaptiveMaxPool2d(4), 4), s),
    "two pools": lambda s: fill(Overlapping(), s),
}


def path(gate: nn.Module, seed: int, second: nn.Module | None = None) -> nn.Module:
    second = gate if second is None else second
    stack = (nn.Linear(3, 6), gate, nn.Linear(6, 5), second, nn.Linear(5, 2))
    return fill(nn.Sequential(*stack), seed)


def shared(seed: int) -> nn.Module:
    layer = nn.Linear(6, 6)
    stack = (nn.Linear(3, 6), nn.ReLU(), layer, nn.ReLU(), layer, nn.ReLU(), nn.Linear(6, 2))
    return fill(nn.Sequential(*stack), seed)


MODELS: dict[str, Callable[[int], nn.Module]] = {
    "mlp": lambda s: relu_mlp([3, 6, 5, 2], s),
    "leaky": lambda s: path(nn.LeakyReLU(0.1), s),
    "hardtanh": lambda s: path(nn.Hardtanh(), s),
    "relu, hardtanh": lambda s: path(nn.ReLU(), s, nn.Hardtanh()),
    "hardtanh, leaky": lambda s: path(nn.Hardtanh(), s, nn.LeakyReLU(0.1)),
    "relu6": lambda s: path(nn.ReLU6(), s),
    "prelu": lambda s: path(nn.PReLU(), s),
    "tanh": lambda s: path(nn.Tanh(), s),
    "shared": shared,
    "pre-activation": lambda s: fill(PreActivation(), s),
    "post-activation": lambda s: fill(PostActivation(), s),
    "relu, then pool": lambda s: fill(Pooled(pool_first=False), s),
    "pool, then relu": lambda s: fill(Pooled(pool_first=True), s),
}


@cache
def held_attention(seed: int, batch: int = 6) -> ts.Problem:
    """Both outputs and the input of `Attending` held, the outputs at random values."""
    x = randn(seed + 1, batch, 5, 3)
    problem = ts.hold(ts.encode(fill(Attending(), seed), x), x)
    return problem.pin(ts.Pin("output", 3 * randn(seed + 2, batch, 2)))


@cache
def held_pools(name: str, seed: int, batch: int = 12) -> ts.Problem:
    """Input and output of a network with overlapping windows held at random values."""
    model, x = OVERLAPPING[name](seed), randn(seed + 1, batch, 1, 5, 5)
    problem = ts.hold(ts.encode(model, x), x)
    return problem.pin(ts.Pin("output", 3 * randn(seed + 2, batch, 2)))


def falls(problem: ts.Problem, c: ts.Cochain, probes: int) -> Tensor:
    """Samples whose energy falls from c along a random sparse direction, `(batch,)`.

    At a rate above 1e-6 per unit length, over a step of 1e-7.
    """
    start, step = problem.energy(c), 1e-7
    down = torch.zeros(problem.batch, dtype=torch.bool)
    for trial in range(probes):
        share = 0.05 * (1 + trial % 10)
        draws = {
            n: randn(trial, *c[n].shape) * (randn(1000 + trial, *c[n].shape).abs() < share)
            for n in problem.free.shapes
        }
        d = problem.free.project(ts.Cochain(draws))
        moved = {n: v + step * d[n] if n in d else v for n, v in c.items()}
        rise = (problem.energy(ts.Cochain(moved)) - start) / step
        down |= rise < -1e-6 * d.norm().clamp_min(1)
    return down


@cache
def held_output(name: str, seed: int = 3, batch: int = 12) -> ts.Problem:
    """Input and output held at random values; read once, for reading takes longer than solving."""
    shape = (1, 8, 8) if "pool" in name else (3,)
    model, x = MODELS[name](seed), randn(seed + 1, batch, *shape)
    problem = ts.hold(ts.encode(model, x), x)
    return problem.pin(ts.Pin("output", randn(seed + 2, batch, 2)))
