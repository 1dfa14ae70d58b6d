"""The four training tasks of the paper, drawn as its authors draw them: same seed, same numbers."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from torchsheaf.examples.example import Split

TRAIN, TEST = 300, 100


@dataclass(frozen=True)
class PaperTask:
    """A task of Bosca & Ghrist 2026, appendix E: data, widths, loss and the settings of Table 1.

    `rate` is that of the gradient-descent baseline; `stalks` says where the authors start the
    stalks ("forward" also means: put back there every 1000 steps).
    """

    name: str
    widths: tuple[int, ...]
    loss: str
    rate: float
    stalks: str
    draw: Callable[[int, torch.Generator], tuple[Tensor, Tensor]]

    def data(self, seed: int = 42) -> Split:
        """x and y for training (300), x and y held out (100), float64."""
        x, y = self.draw(TRAIN + TEST, torch.Generator().manual_seed(seed))
        return x[:TRAIN], y[:TRAIN], x[TRAIN:], y[TRAIN:]

    def network(self, seed: int) -> nn.Sequential:
        """He-normal weights from one generator, layer by layer; zero biases; float64."""
        generator = torch.Generator().manual_seed(seed)
        layers: list[nn.Module] = []
        for fan_in, width in pairwise(self.widths):
            layer = nn.utils.skip_init(nn.Linear, fan_in, width, dtype=torch.float64)
            with torch.no_grad():
                drawn = torch.randn(width, fan_in, dtype=torch.float64, generator=generator)
                layer.weight.copy_(drawn * (2 / fan_in) ** 0.5)
                layer.bias.zero_()
            layers += [layer, nn.ReLU()]
        return nn.Sequential(*layers[:-1])


def _regression(
    function: Callable[[Tensor], Tensor], low: float, high: float
) -> Callable[[int, torch.Generator], tuple[Tensor, Tensor]]:
    def draw(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        x = torch.rand(2, n, dtype=torch.float64, generator=generator) * (high - low) + low
        noise = torch.randn(1, n, dtype=torch.float64, generator=generator)
        return x.mT.contiguous(), (function(x) + 0.02 * noise).mT.contiguous()

    return draw


def _circular(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    half = n // 2

    def uniform(m: int) -> Tensor:
        return torch.rand(m, dtype=torch.float64, generator=generator)

    def normal(m: int) -> Tensor:
        return torch.randn(m, dtype=torch.float64, generator=generator)

    angle = uniform(2 * half) * (2 * math.pi)
    inner = uniform(half).sqrt() + 0.1 * normal(half)
    outer = (2.25 + uniform(half) * 4.0).sqrt() + 0.1 * normal(half)
    radius = torch.cat([inner, outer])
    x = torch.stack([radius * angle.cos(), radius * angle.sin()], 1)
    y = torch.cat([torch.zeros(half), torch.ones(half)]).to(torch.float64)[:, None]
    order = torch.randperm(2 * half, generator=generator)
    return x[order], y[order]


_CENTRES = ((-1.5, -1.5), (1.8, -1.0), (1.0, 2.0), (-2.0, 1.5))
_COVARIANCES = (
    ((0.8, 0.3), (0.3, 0.4)), ((0.3, -0.2), (-0.2, 1.0)), ((1.2, 0.5), (0.5, 0.5)),
    ((0.5, 0.0), (0.0, 0.8)),
)  # fmt: skip


def _blobs(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    each, points = n // len(_CENTRES), []
    for centre, covariance in zip(_CENTRES, _COVARIANCES, strict=True):
        root = torch.linalg.cholesky(torch.tensor(covariance, dtype=torch.float64))
        normal = torch.randn(each, 2, dtype=torch.float64, generator=generator)
        points.append(torch.tensor(centre, dtype=torch.float64) + normal @ root.mT)
    x = torch.cat(points)
    y = torch.eye(len(_CENTRES), dtype=torch.float64).repeat_interleave(each, 0)
    order = torch.randperm(len(x), generator=generator)
    return x[order], y[order]


def _paraboloid(x: Tensor) -> Tensor:
    return x[0:1] ** 2 + x[1:2] ** 2 - 2 / 3


def _saddle(x: Tensor) -> Tensor:
    return x[0:1] ** 2 - x[1:2] ** 2 + 0.5 * torch.sin(2 * x[0:1])


PAPER_TASKS = {
    task.name: task
    for task in (
        PaperTask(
            "paraboloid", (2, 30, 1), "l2", 0.005, "random", _regression(_paraboloid, -2.0, 2.0)
        ),
        PaperTask("saddle", (2, 30, 1), "l2", 0.005, "random", _regression(_saddle, 0.0, 2.0)),
        PaperTask("circular", (2, 25, 1), "bce", 0.01, "forward", _circular),
        PaperTask("blobs", (2, 25, 4), "cross_entropy", 0.01, "forward", _blobs),
    )
}
"""By name; the one-hidden-layer rows of Table 1."""
