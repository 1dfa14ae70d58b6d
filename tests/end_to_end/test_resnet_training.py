"""A small residual convnet on digits, trained by local rules alone."""

import pytest
import torch
from torch import Tensor, nn

import torchsheaf as ts
from torchsheaf.examples.shipped import digits
from torchsheaf.train import EdgeRule, EquilibriumRule


class Block(nn.Module):
    """x + conv(ReLU(conv(x))), then ReLU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.relu, self.out = nn.ReLU(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x + self.second(self.relu(self.first(x))))


def resnet(width: int, blocks: int, generator: torch.Generator) -> nn.Sequential:
    """Stem, residual blocks, a strided convolution, a linear head; He-normal weights."""
    net = nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, width, 3, padding=1),
        nn.ReLU(),
        *(Block(width) for _ in range(blocks)),
        nn.Conv2d(width, width, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * width, 10),
    )
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
            nn.init.zeros_(module.bias)
    return net


@pytest.mark.slow
def test_a_small_resnet_learns_digits_by_local_gradients() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y, held_x, held_y = digits(generator)
    net = resnet(8, 2, generator)
    trainer = ts.SheafTrainer(net, loss="cross_entropy", rule=EdgeRule(group=32))
    # Residual blocks want a larger rate than the 8/L of plain networks.
    optimizer, epochs = torch.optim.SGD(net.parameters(), lr=3.0), 6
    history = ts.fit(
        trainer,
        (x.float(), y),
        optimizer,
        epochs=epochs,
        scheduler=torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs),
        batch_size=128,
        validation=(held_x.float(), held_y),
        generator=generator,
        progress=False,
    )
    assert history.records[-1]["accuracy"] > 0.96
    assert history.losses[-1] < history.losses[0]


def test_local_gradients_of_a_resnet_are_the_derivative_of_its_equilibrium_energy() -> None:
    """Central differences of E* along random directions in the weights, float64."""
    generator = torch.Generator().manual_seed(1)
    net = resnet(2, 1, generator).double()
    x = torch.rand(3, 64, generator=generator, dtype=torch.float64)
    y = torch.randn(3, 10, generator=generator, dtype=torch.float64)
    sheaf = ts.encode(net, x)
    trainer = ts.SheafTrainer(net, loss="l2", rule=EquilibriumRule(tol=1e-11))
    trainer.local_gradients(x, y)
    gradients = [p.grad.clone() for p in net.parameters()]
    start = equilibrium(sheaf, x, y, "forward").cochain

    step = 1e-5
    for _ in range(3):
        direction = [torch.randn(p.shape, generator=generator).double() for p in net.parameters()]
        values = []
        for sign in (1, -2, 1):
            with torch.no_grad():
                for p, d in zip(net.parameters(), direction, strict=True):
                    p.add_(d, alpha=sign * step)
            if sign != 1 or not values:
                values.append(float(equilibrium(sheaf, x, y, start).energy.mean()))
        slope = (values[0] - values[1]) / (2 * step)
        local = sum(float((g * d).sum()) for g, d in zip(gradients, direction, strict=True))
        assert slope == pytest.approx(local, rel=1e-6)


def equilibrium(sheaf: ts.Sheaf, x: Tensor, y: Tensor, start: str | ts.Cochain) -> ts.Extension:
    """The relaxed cochain with the squared loss attached to the output."""
    problem = ts.hold(sheaf, x).pin(ts.Pin("output", y, weight=1.0))
    return ts.harmonic_extension(problem, start=start, tol=1e-11)
