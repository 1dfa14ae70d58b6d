"""Classification tasks bundled with scikit-learn or generated, and groups of small networks."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import numpy as np
import torch
from sklearn import datasets
from torch import Tensor, nn
from torch.nn import functional

from torchsheaf.examples.paper_tasks import PAPER_TASKS
from torchsheaf.sheaf import Sheaf, encode

HIDDEN = (64, 32)


@dataclass(frozen=True)
class Task:
    """Standardised features `x` (n, d), true classes `y` (n,), float64."""

    name: str
    x: Tensor
    y: Tensor

    @property
    def classes(self) -> int:
        return int(self.y.max()) + 1

    @property
    def widths(self) -> tuple[int, ...]:
        return (self.x.shape[1], *HIDDEN, self.classes)


def load(name: str) -> Task:
    if name == "digits":
        bunch = datasets.load_digits()
        return Task(name, torch.from_numpy(bunch.data) / 16, torch.from_numpy(bunch.target))
    if name == "breast cancer":
        data, target = datasets.load_breast_cancer(return_X_y=True)
    elif name == "wine":
        data, target = datasets.load_wine(return_X_y=True)
    elif name == "five clusters":
        data, target = datasets.make_classification(
            1000, 20, n_informative=8, n_redundant=4, n_classes=5, class_sep=1.2, flip_y=0,
            random_state=0,
        )  # fmt: skip
    elif name == "moons":
        data, target = datasets.make_moons(600, noise=0.2, random_state=0)
    elif name == "blobs":
        x, hot, more_x, more = PAPER_TASKS["blobs"].data()
        data, target = torch.cat([x, more_x]).numpy(), torch.cat([hot, more]).argmax(1).numpy()
    else:
        raise ValueError(name)
    data = (data - data.mean(0)) / data.std(0)
    return Task(name, torch.from_numpy(data).double(), torch.from_numpy(np.int64(target)))


TASKS = ("digits", "breast cancer", "wine", "five clusters", "moons", "blobs")


class Group:
    """R networks of the same widths, trained side by side by full-batch Adam on cross-entropy."""

    def __init__(self, widths: Sequence[int], seeds: Sequence[int], rate: float = 0.01) -> None:
        self.widths = tuple(widths)
        generators = [torch.Generator().manual_seed(s) for s in seeds]
        self.parameters: list[Tensor] = []
        for fan_in, fan_out in pairwise(self.widths):
            w = [
                torch.randn(fan_out, fan_in, generator=g) * (2 / fan_in) ** 0.5 for g in generators
            ]
            self.parameters.append(torch.stack(w).requires_grad_())
            self.parameters.append(torch.zeros(len(w), fan_out, 1, requires_grad=True))
        self.step = torch.optim.Adam(self.parameters, lr=rate)

    def outputs(self, x: Tensor) -> Tensor:
        """(R, classes, n) for x (n, d)."""
        h = x.mT.expand(len(self.parameters[0]), -1, -1)
        for i in range(0, len(self.parameters), 2):
            h = torch.baddbmm(self.parameters[i + 1], self.parameters[i], h.relu() if i else h)
        return h

    def train(self, x: Tensor, labels: Tensor, steps: int, mask: Tensor | None = None) -> None:
        """`labels` (R, n); `mask` (R, n) chooses the samples that each network sees."""
        x = x.float()
        weight = torch.ones(labels.shape) if mask is None else mask.float()
        weight = weight / weight.sum(1, keepdim=True)
        for _ in range(steps):
            self.step.zero_grad()
            loss = functional.cross_entropy(self.outputs(x), labels, reduction="none")
            (loss * weight).sum().backward()
            self.step.step()

    @torch.no_grad()
    def sheaf(self, run: int) -> Sheaf:
        """One of the networks as a sheaf; the next call with these widths changes its weights."""
        sheaf = _encoded(self.widths)
        assert isinstance(sheaf.network.model, nn.Sequential)
        for i, layer in enumerate(sheaf.network.model[::2]):
            layer.weight.copy_(self.parameters[2 * i][run])
            layer.bias.copy_(self.parameters[2 * i + 1][run, :, 0])
        return sheaf


def mlp(widths: Sequence[int]) -> nn.Sequential:
    """Linear, ReLU, …, Linear, float64."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out).double(), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


@cache  # reading a network takes a second, copying weights into it nothing
def _encoded(widths: tuple[int, ...]) -> Sheaf:
    return encode(mlp(widths), torch.zeros(2, widths[0], dtype=torch.float64))
