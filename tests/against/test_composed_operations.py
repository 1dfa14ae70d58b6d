"""Operations read as a composition of others: the model's own values, and equilibria through it."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import torchsheaf as ts
from tests.reference.networks import fill, randn

COMBINE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "max of two": torch.max,
    "min of two": torch.min,
    "broadcast": lambda a, b: torch.maximum(a, b[:, :1]),
    "with a constant": lambda a, b: a * torch.minimum(b, torch.full((4,), 0.3, dtype=b.dtype)),
    "of nonlinear values": lambda a, b: torch.maximum(torch.relu(a), torch.tanh(b)).square(),
}


class Combined(nn.Module):
    def __init__(self, combine: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(4, 2)
        self.combine = combine

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.combine(self.a(x), self.b(x)))


@pytest.mark.parametrize("name", COMBINE)
def test_the_larger_and_the_smaller_of_two_values(name: str) -> None:
    net, x, y = fill(Combined(COMBINE[name]), 2), randn(3, 6, 3), randn(4, 6, 2)
    sheaf = ts.encode(net, x)
    assert torch.equal(sheaf.forward(x)[sheaf.outputs[0]], net(x).detach())
    more = randn(5, 9, 3)  # the batch stays dynamic
    assert torch.equal(sheaf.forward(more)[sheaf.outputs[0]], net(more).detach())
    held = ts.harmonic_extension(ts.hold(sheaf, x).pin(ts.Pin("output", y)))
    assert float(held.stationarity.max()) <= 1e-8
    trainer = ts.SheafTrainer(net, loss="l2", rule="first-order")
    trainer.local_gradients(x, y)
    found = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    (0.5 * (net(x) - y).square().sum(1).mean()).backward()
    for local, parameter in zip(found, net.parameters(), strict=True):
        assert torch.allclose(local, parameter.grad, atol=1e-12)


@pytest.mark.parametrize(
    "last",
    [lambda h: torch.relu_(h.flatten(1)), lambda h: torch.maximum(h, 0.5 * h).flatten(1)],
    ids=["a write into a view", "a composed operation"],
)
def test_batch_norm_keeps_its_name(last: Callable[[Tensor], Tensor]) -> None:
    """A model with an operation that is decomposed has the same batch norm as one without."""

    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.out = nn.BatchNorm2d(2), nn.Linear(18, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(last(self.norm(x)))

    net, x, y = fill(Normed(), 2), randn(3, 6, 2, 3, 3), randn(4, 6, 2)
    sheaf = ts.encode(net, x)
    assert sheaf.edges["norm"].op == "aten.batch_norm.default"
    assert torch.equal(sheaf.forward(x)[sheaf.outputs[0]], net(x).detach())
    ts.SheafTrainer(net, loss="l2", rule="first-order").local_gradients(x, y)
    found = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    (0.5 * (net(x) - y).square().sum(1)).mean().backward()
    for p, g in zip(net.parameters(), found, strict=True):
        torch.testing.assert_close(g, p.grad)


def test_a_convnet_lowered_to_core_operations() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, groups=1), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=2, bias=False), nn.MaxPool2d(2),
        nn.ConvTranspose2d(4, 2, 2, stride=2, output_padding=1), nn.Flatten(), nn.Linear(98, 3),
    )  # fmt: skip
    model, x = fill(model, 0), randn(1, 4, 1, 6, 6)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    core, plain = ts.encode(program.run_decompositions(), x), ts.encode(model, x)
    assert core.edges["0"].op == core.edges["5"].op == "aten.convolution.default"
    assert core.edges["1"].kind == "affine"
    pulled = [
        ts.harmonic_extension(ts.hold(s, x).pin(ts.Pin("7", 0.0)), tol=1e-10) for s in (core, plain)
    ]
    for name, wanted in plain.forward(x).items():
        torch.testing.assert_close(core.forward(x)[name], wanted.detach(), rtol=0, atol=1e-13)
    torch.testing.assert_close(pulled[0].energy, pulled[1].energy, rtol=1e-9, atol=0)
