"""The nets of `benchmarks.equilibrium shapes`."""

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from tests.reference.held import PostActivation, PreActivation, path
from tests.reference.networks import fill


class Convolutional(nn.Module):
    """Two convolutions, ReLU and max-pool in either order, ten outputs."""

    def __init__(self, *, pool_first: bool) -> None:
        super().__init__()
        self.pool_first = pool_first
        self.c1 = nn.Conv2d(1, 6, 3, padding=1)
        self.c2 = nn.Conv2d(6, 8, 3, padding=1)
        self.out = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        for conv in (self.c1, self.c2):
            x = conv(x)
            x = F.relu(F.max_pool2d(x, 2)) if self.pool_first else F.max_pool2d(F.relu(x), 2)
        return self.out(x.flatten(1))


SHAPES: dict[str, Callable[[], nn.Module]] = {
    "residual, post-activation": lambda: fill(PostActivation(16, 4), 0),
    "residual, pre-activation": lambda: fill(PreActivation(16, 4), 0),
    "conv, relu then max-pool": lambda: fill(Convolutional(pool_first=False), 0),
    "conv, max-pool then relu": lambda: fill(Convolutional(pool_first=True), 0),
    "leaky ReLU": lambda: path(nn.LeakyReLU(0.1), 0),
    "hardtanh": lambda: path(nn.Hardtanh(), 0),
    "tanh": lambda: path(nn.Tanh(), 0),
    "gelu": lambda: path(nn.GELU(), 0),
}
