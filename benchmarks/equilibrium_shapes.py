"""The parts of `benchmarks.equilibrium` on nets that are not paths: their models, and pools."""

import statistics
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

import torchsheaf as ts
from tests.reference.held import (
    OVERLAPPING,
    Attending,
    PostActivation,
    PreActivation,
    falls,
    held_pools,
    path,
)
from tests.reference.networks import fill

SEEDS, BATCH, PROBES = range(100, 120), 20, 60


class Convolutional(nn.Module):
    """Two convolutions, ReLU and max-pool in either order, ten outputs.

    `window` 2: windows that do not overlap; 3: windows of a ResNet's stem, stride 2.
    """

    def __init__(self, *, pool_first: bool, window: int = 2) -> None:
        super().__init__()
        self.pool_first = pool_first
        self.pool = nn.MaxPool2d(window, 2, window // 2 if window % 2 else 0)
        self.c1 = nn.Conv2d(1, 6, 3, padding=1)
        self.c2 = nn.Conv2d(6, 8, 3, padding=1)
        self.out = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        for conv in (self.c1, self.c2):
            x = conv(x)
            x = F.relu(self.pool(x)) if self.pool_first else self.pool(F.relu(x))
        return self.out(x.flatten(1))


def deep(gate: type[nn.Module], width: int = 16, layers: int = 8) -> nn.Sequential:
    """A path of so many hidden layers."""
    widths = [3, *[width] * layers, 2]
    stack = [m for a, b in pairwise(widths) for m in (nn.Linear(a, b), gate())]
    return nn.Sequential(*stack[:-1])


SHAPES: dict[str, Callable[[], nn.Module]] = {
    "residual, post-activation": lambda: fill(PostActivation(16, 4), 0),
    "residual, pre-activation": lambda: fill(PreActivation(16, 4), 0),
    "conv, relu then max-pool": lambda: fill(Convolutional(pool_first=False), 0),
    "conv, max-pool then relu": lambda: fill(Convolutional(pool_first=True), 0),
    "conv, relu then overlapping max-pool": lambda: fill(
        Convolutional(pool_first=False, window=3), 0
    ),
    "conv, overlapping max-pool then relu": lambda: fill(
        Convolutional(pool_first=True, window=3), 0
    ),
    "leaky ReLU": lambda: path(nn.LeakyReLU(0.1), 0),
    "hardtanh": lambda: path(nn.Hardtanh(), 0),
    "tanh": lambda: path(nn.Tanh(), 0),
    "gelu": lambda: path(nn.GELU(), 0),
    "tanh, eight layers": lambda: fill(deep(nn.Tanh), 1),
    "attention": lambda: fill(Attending(), 0),
}


def overlapping() -> dict[str, Any]:
    """Overlapping max-pool windows, input and output held: who settles, who is a local minimum.

    20 random nets of each kind, 20 samples each. A local minimum is refuted by a random sparse
    direction along which the energy falls at a rate above 1e-6.
    """
    out = {}
    for name in OVERLAPPING:
        sweeps, unsettled, refuted = [], 0, 0
        for seed in SEEDS:
            problem = held_pools(name, seed, BATCH)
            found = ts.harmonic_extension(problem, throw=False)
            sweeps.append(found.passes)
            unsettled += int((found.stationarity > 1e-8).sum())
            refuted += int(falls(problem, found.cochain, PROBES).sum())
        out[name] = {
            "samples": len(SEEDS) * BATCH,
            "above 1e-8": unsettled,
            "no local minimum": refuted,
            "median sweeps": statistics.median(sweeps),
            "most sweeps": max(sweeps),
        }
        print(name, out[name], flush=True)
    return out
