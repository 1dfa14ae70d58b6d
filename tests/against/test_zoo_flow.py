"""T2 on small members of the zoo: heat flow returns to the forward pass, energy never rising."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import torchsheaf as ts
from tests.against.zoo import example
from tests.reference.networks import fill


class ResidualNorm(nn.Module):
    """Pre-norm residual block with a ReLU inside."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(3), nn.Linear(3, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.relu(self.up(self.norm(self.down.bias + x))))


class SmallAttention(nn.Module):
    """One residual attention head over two positions."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.joint, self.leave = nn.Linear(2, 2), nn.Linear(2, 6), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.enter(x)
        q, k, v = self.joint(h).chunk(3, -1)
        return h + self.leave(F.scaled_dot_product_attention(q, k, v))


class Gated(nn.Module):
    """A product of two branches and a skip."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(2, 3), nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        u = self.a(x)
        return u * torch.sigmoid(self.b(x)) + u


MEMBERS: dict[str, tuple[type[nn.Module], tuple[int, ...]]] = {
    "residual, norm, relu": (ResidualNorm, (2, 3)),
    "attention": (SmallAttention, (2, 2, 2)),
    "product": (Gated, (3, 2)),
}


def case(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    if name == "elman":  # one sample of the zoo's recurrence
        model, inputs = example(name)
        return model, tuple(x[:1] for x in inputs)
    build, shape = MEMBERS[name]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return fill(build(), 3), (x,)


@pytest.mark.parametrize("name", [*MEMBERS, "elman"])
def test_the_flow_returns_to_the_forward_pass(name: str) -> None:
    model, inputs = case(name)
    problem = ts.hold(ts.encode(model, inputs), inputs)
    generator = torch.Generator().manual_seed(5)
    flow = ts.heat_flow(problem, "random", until=None, tol=1e-6, generator=generator)
    with torch.no_grad():
        assert float((flow.output - model(*inputs)).abs().max()) < 1e-5
    energy = flow.energy
    assert float(energy.flatten().max()) > 1e-3
    rise = energy.diff(dim=0)
    assert bool((rise <= 1e-9 * float(energy.max())).all())
