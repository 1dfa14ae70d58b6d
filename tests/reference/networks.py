"""Small networks that the tests share, each made from its own generator: no global seed."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64).to(dtype)


def fill(model: nn.Module, seed: int, dtype: torch.dtype = torch.float64) -> nn.Module:
    """He-sized normal weights, normal biases, batch statistics that are not the trivial ones."""
    g = generator(seed)
    model = model.to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 4
            values = torch.randn(parameter.shape, generator=g, dtype=torch.float64)
            parameter.copy_(values * (2 / fan_in) ** 0.5)
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                for value in (module.running_mean, module.running_var):
                    assert isinstance(value, Tensor)
                    value.copy_(0.5 + torch.rand(value.shape, generator=g, dtype=torch.float64))
    return model


def relu_mlp(
    widths: Sequence[int], seed: int, *, bias: bool = True, dtype: torch.dtype = torch.float64
) -> nn.Sequential:
    """Linear, ReLU, …, Linear; modules "0", "1", … as nn.Sequential names them."""
    layers: list[nn.Module] = []
    for m, n in pairwise(widths):
        layers += [nn.Linear(m, n, bias=bias), nn.ReLU()]
    net = fill(nn.Sequential(*layers[:-1]), seed, dtype)
    assert isinstance(net, nn.Sequential)
    return net


def paper_network(widths: Sequence[int], seed: int) -> nn.Sequential:
    """The paper's initialisation: W = randn · √(2/fan_in) in the order of the layers, biases 0."""
    net, source = relu_mlp(widths, 0), generator(seed)
    with torch.no_grad():
        for layer, (m, n) in zip(net[::2], pairwise(widths), strict=True):
            assert isinstance(layer, nn.Linear)
            drawn = torch.randn(n, m, dtype=torch.float64, generator=source)
            layer.weight.copy_(drawn * (2 / m) ** 0.5)
            layer.bias.zero_()
    return net


def linear_mlp(widths: Sequence[int], seed: int) -> nn.Sequential:
    """The same path without gates."""
    net = fill(nn.Sequential(*(nn.Linear(m, n) for m, n in pairwise(widths))), seed)
    assert isinstance(net, nn.Sequential)
    return net


def convnet(seed: int, dtype: torch.dtype = torch.float64) -> nn.Module:
    """Convolutions with batch-norm, max and mean pooling, and a linear head; 1 × 8 × 8 inputs."""
    return fill(
        nn.Sequential(
            nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.LeakyReLU(0.1),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5), nn.Linear(4, 3),
        ),
        seed,
        dtype,
    )  # fmt: skip


def classifier(seed: int, dtype: torch.dtype = torch.float64) -> nn.Module:
    """A smooth network that ends in softmax; inputs of six numbers."""
    return fill(
        nn.Sequential(
            nn.Linear(6, 10), nn.GELU(), nn.Linear(10, 8), nn.Tanh(), nn.Linear(8, 4),
            nn.Softmax(dim=1),
        ),
        seed,
        dtype,
    )  # fmt: skip


class ResidualBlock(nn.Module):
    """relu(W₂ relu(W₁x + b₁) + b₂ + x), then a concatenation with the skip and a head."""

    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.first = nn.Linear(width, width)
        self.second = nn.Linear(width, width)
        self.head = nn.Linear(2 * width, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.first(x))
        out = torch.relu(self.second(h) + x)
        return self.head(torch.cat([out, h], 1))


def residual_block(seed: int, dtype: torch.dtype = torch.float64) -> nn.Module:
    return fill(ResidualBlock(), seed, dtype)


class TwoInputs(nn.Module):
    """(x, y) ↦ head(relu(a(x) + b(y))), both of `width` features."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.a, self.b = (nn.Linear(width, 4, dtype=torch.float64) for _ in "ab")
        self.head = nn.Linear(4, 2, dtype=torch.float64)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.head(torch.relu(self.a(x) + self.b(y)))
