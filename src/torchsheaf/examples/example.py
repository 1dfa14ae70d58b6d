"""One shipped example: an architecture, its data, and how it is trained."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

Split = tuple[Tensor, Tensor, Tensor, Tensor]
"""x and y for training, x and y held out."""


@dataclass(frozen=True)
class Example:
    """A model to build and a task to train it on.

    `build()` makes the module, `data(generator)` the split; `loss` is "square" (classes as one-hot
    vectors) or "cross entropy".
    """

    name: str
    summary: str
    build: Callable[[], nn.Module]
    data: Callable[[torch.Generator], Split]
    loss: str
    epochs: int
    batch: int = 64
    rate: float = 3e-3


@dataclass(frozen=True, eq=False)
class TrainedExample:
    """A trained example with its held-out data; `score` is accuracy, or mean squared error."""

    name: str
    model: nn.Module
    x: Tensor
    y: Tensor
    score: float


def train(
    example: Example,
    *,
    seed: int = 0,
    train: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> TrainedExample:
    """Build an example and train it with Adam in float64.

    The same seed gives the same numbers; no global state is touched. `progress(step, steps)` is
    called after every epoch.
    """
    generator = torch.Generator().manual_seed(seed)
    x, y, held_x, held_y = example.data(generator)
    with torch.random.fork_rng(devices=[]):
        model = example.build().to(torch.float64)
    he_normal(model, generator)
    if train:
        _fit(model, example, x, y, generator, progress)
    model.eval()
    return TrainedExample(example.name, model, held_x, held_y, _score(model, held_x, held_y))


def he_normal(model: nn.Module, generator: torch.Generator) -> None:
    """Weights of linear layers and convolutions anew: He-normal for ReLU; biases zero."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _fit(
    model: nn.Module,
    example: Example,
    x: Tensor,
    y: Tensor,
    generator: torch.Generator,
    progress: Callable[[int, int], None] | None,
) -> None:
    optimiser = torch.optim.Adam(model.parameters(), lr=example.rate)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, example.epochs)
    model.train()
    for epoch in range(example.epochs):
        order = torch.randperm(len(x), generator=generator)
        for index in order.split(example.batch):
            optimiser.zero_grad()
            _loss(example.loss, model(x[index]), y[index]).backward()
            optimiser.step()
        decay.step()
        if progress is not None:
            progress(epoch + 1, example.epochs)


def _loss(kind: str, output: Tensor, y: Tensor) -> Tensor:
    if kind == "cross entropy":
        return functional.cross_entropy(output, y)
    target = y if y.is_floating_point() else functional.one_hot(y, output.shape[1]).to(output)
    return (output - target).square().sum(1).mean()


@torch.no_grad()
def _score(model: nn.Module, x: Tensor, y: Tensor) -> float:
    output = model(x)
    if y.is_floating_point():
        return float((output - y).square().mean())
    return float((output.argmax(1) == y).double().mean())
