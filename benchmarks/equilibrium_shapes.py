"""The nets of `benchmarks.equilibrium shapes`."""

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from tests.reference.held import PostActivation, PreActivation, path
from tests.reference.networks import fill


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
}
