"""The examples by name."""

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor, nn

from torchsheaf.examples.example import Example, Split, TrainedExample
from torchsheaf.examples.example import train as train_example

HELD_OUT = 360
"""Digits kept out of training, a fifth of the 1,797."""


def digits(generator: torch.Generator, *, image: bool = False) -> Split:
    """scikit-learn's 8×8 handwritten digits, grey values in [0, 1], split at random."""
    from sklearn.datasets import load_digits  # a second to import, needed only here

    bunch = load_digits()
    x = torch.from_numpy(bunch.data).to(torch.float64) / 16
    y = torch.from_numpy(bunch.target).to(torch.int64)
    if image:
        x = x.reshape(-1, 1, 8, 8)
    order = torch.randperm(len(x), generator=generator)
    held, kept = order[:HELD_OUT], order[HELD_OUT:]
    return x[kept], y[kept], x[held], y[held]


def digit_images(generator: torch.Generator) -> Split:
    """The same digits as `(1, 8, 8)` images."""
    return digits(generator, image=True)


def paraboloid(generator: torch.Generator) -> Split:
    """y = x₁² + x₂² on the square [−2, 2]²: the paper's first regression task."""
    x = 4 * torch.rand(700, 2, dtype=torch.float64, generator=generator) - 2
    y = x.square().sum(1, keepdim=True)
    return x[:500], y[:500], x[500:], y[500:]


def _dense() -> nn.Module:
    return nn.Sequential(
        OrderedDict(
            hidden1=nn.Linear(64, 40),
            relu1=nn.ReLU(),
            hidden2=nn.Linear(40, 24),
            relu2=nn.ReLU(),
            readout=nn.Linear(24, 10),
        )
    )


def _convolutional() -> nn.Module:
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(1, 8, 3, padding=1),
            norm1=nn.BatchNorm2d(8),
            relu1=nn.ReLU(),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(8, 16, 3, padding=1),
            relu2=nn.ReLU(),
            pool2=nn.AvgPool2d(2),
            flatten=nn.Flatten(),
            readout=nn.Linear(64, 10),
        )
    )


class ResidualClassifier(nn.Module):
    """Two residual blocks between an embedding and a softmax: joins and a smooth edge."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(64, 24)
        self.block1 = nn.Sequential(nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 24))
        self.block2 = nn.Sequential(nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 24))
        self.readout = nn.Linear(24, 10)
        self.softmax = nn.Softmax(dim=1)

    def forward(self, x: Tensor) -> Tensor:
        """Class probabilities, `(batch, 10)`."""
        h = self.embed(x)
        h = h + self.block1(h)
        h = h + self.block2(h)
        return self.softmax(self.readout(h))


def _regression() -> nn.Module:
    return nn.Sequential(
        OrderedDict(hidden=nn.Linear(2, 30), relu=nn.ReLU(), readout=nn.Linear(30, 1))
    )


EXAMPLES = {
    example.name: example
    for example in (
        Example(
            "digits-mlp",
            "ReLU network 64–40–24–10 on 8×8 digits, least squares on one-hot labels",
            _dense, digits, "square", epochs=50,
        ),
        Example(
            "digits-conv",
            "convolutions with batch-norm and pooling on 8×8 digits, cross-entropy",
            _convolutional, digit_images, "cross entropy", epochs=25,
        ),
        Example(
            "digits-residual",
            "residual network with softmax on 8×8 digits, least squares on one-hot labels",
            ResidualClassifier, digits, "square", epochs=40,
        ),
        Example(
            "paraboloid",
            "ReLU network 2–30–1 fitted to x₁² + x₂²",
            _regression, paraboloid, "square", epochs=150, rate=1e-2,
        ),
    )
}  # fmt: skip
"""Every shipped example."""


def load(
    name: str,
    *,
    seed: int = 0,
    train: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> TrainedExample:
    """A shipped example by name, trained on the spot (seconds) unless `train=False`.

    Raises ValueError listing the names.

    >>> example = load("paraboloid")
    >>> example.score < float(example.y.var()) / 20
    True
    """
    if name not in EXAMPLES:
        raise ValueError(f"no example named {name!r}; write one of: {', '.join(sorted(EXAMPLES))}")
    return train_example(EXAMPLES[name], seed=seed, train=train, progress=progress)
