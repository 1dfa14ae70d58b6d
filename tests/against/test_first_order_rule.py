"""The first-order rule against autograd, on every kind of edge that has parameters."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.reference.networks import convnet, fill, randn, relu_mlp, residual_block
from torchsheaf import Cochain, encode, hold
from torchsheaf.network import UnsupportedModel
from torchsheaf.train import EquilibriumRule, SheafTrainer, fit


class Tied(nn.Module):
    """One weight matrix used three times, once through a transpose."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.inner(x))
        h = torch.relu(self.inner(h))
        return self.head(functional.linear(h, self.inner.weight.t()))


class Recurrent(nn.Module):
    """The last output of an LSTM behind a linear map; its dropout, of nothing, is active."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 4)
        self.lstm = nn.LSTM(4, 3, num_layers=2, batch_first=True)
        self.head = nn.Sequential(nn.Dropout(0.0), nn.Linear(3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(self.inner(x))[0][:, -1])


def normed() -> nn.Module:
    return nn.Sequential(
        nn.Linear(4, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3)
    )


def one_dimensional() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(1, 3, 3, padding=1), nn.ReLU(), nn.Conv1d(3, 2, 2, stride=2), nn.Flatten(),
        nn.Linear(4, 3),
    )  # fmt: skip


def grouped() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, groups=2), nn.ReLU(), nn.Conv2d(4, 4, 2, dilation=2, bias=False),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
    )  # fmt: skip


MODELS: dict[str, tuple[Callable[[torch.dtype], nn.Module], tuple[int, ...]]] = {
    "mlp": (lambda d: relu_mlp([4, 9, 7, 3], 1, dtype=d), (4,)),
    "convnet": (lambda d: convnet(2, d), (1, 8, 8)),
    "shared weights": (lambda d: fill(Tied(), 3, d), (4,)),
    "norm layers": (lambda d: fill(normed(), 4, d), (4,)),
    "conv1d": (lambda d: fill(one_dimensional(), 5, d), (1, 5)),
    "recurrent": (lambda d: fill(Recurrent(), 8, d), (3, 2)),
    "grouped convolution": (lambda d: fill(grouped(), 6, d), (2, 6, 6)),
    "residual": (lambda d: nn.Sequential(residual_block(7, d), nn.Linear(2, 3, dtype=d)), (3,)),
}


@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-6)], ids=["f64", "f32"]
)
@pytest.mark.parametrize("name", MODELS)
def test_equals_autograd(name: str, dtype: torch.dtype, bound: float) -> None:
    build, shape = MODELS[name]
    model = build(dtype)
    x, y = randn(11, 6, *shape, dtype=dtype), torch.tensor([0, 1, 2, 0, 1, 2])
    functional.cross_entropy(model(x), y).backward()
    expected = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    SheafTrainer(model, rule="first-order").local_gradients(x, y)
    whole = torch.cat([g.flatten() for g in expected.values()]).norm()
    for n, p in model.named_parameters():
        # Where terms cancel, one parameter's gradient keeps the rounding errors of far larger
        # numbers: in float32 they are measured against the gradient as a whole.
        size = expected[n].norm().clamp_min(1e-3) if dtype == torch.float64 else whole
        error = float((p.grad - expected[n]).norm() / size)
        assert error <= bound, f"{n}: {error:.1e}"


def test_a_sparse_embedding_has_the_gradient_of_a_dense_one() -> None:
    x, y, found = torch.tensor([[0, 2], [1, 2], [4, 4]]), torch.tensor([0, 1, 1]), []
    for sparse in (False, True):
        net = nn.Sequential(nn.Embedding(5, 3, sparse=sparse), nn.Flatten(), nn.Linear(6, 2))
        SheafTrainer(fill(net, 1), rule="first-order").local_gradients(x, y)
        found.append([p.grad for p in net.parameters()])
    for dense, other in zip(*found, strict=True):
        assert torch.equal(dense, other)


@pytest.mark.parametrize("widths", [[3, 8, 2], [3, 8, 6, 2]])
def test_equilibrium_tends_to_it_at_first_order_in_the_output_weight(widths: list[int]) -> None:
    net = relu_mlp(widths, 9)
    x, y = randn(1, 10, 3), randn(2, 10, 2)
    SheafTrainer(net, loss="l2", rule="first-order").local_gradients(x, y)
    limit = torch.cat([p.grad.flatten() for p in net.parameters()])
    errors = []
    scale = (1e-2, 1e-3, 1e-4)
    for eps in scale:
        rule = EquilibriumRule(output_weight=eps, tol=1e-12)
        SheafTrainer(net, loss="l2", rule=rule).local_gradients(x, y)
        found = torch.cat([p.grad.flatten() for p in net.parameters()]) / eps
        errors.append(float((found - limit).norm() / limit.norm()))
    for coarse, fine in zip(errors, errors[1:], strict=False):
        assert 0.8 < torch.log10(torch.tensor(coarse / fine)) < 1.2, errors


def test_gradients_do_not_accumulate_and_no_graph_is_built() -> None:
    net = relu_mlp([4, 5, 3], 1)
    x, y = randn(1, 6, 4).requires_grad_(), torch.arange(6) % 3
    trainer = SheafTrainer(net, rule="first-order")
    trainer.local_gradients(x.detach(), y)
    first = [p.grad.clone() for p in net.parameters()]
    trainer.local_gradients(x.detach(), y)
    for p, g in zip(net.parameters(), first, strict=True):
        assert torch.equal(p.grad, g)
        assert not p.grad.requires_grad


class Spare(nn.Module):
    """One layer reaches the output, the other does not."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.spare = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


@pytest.mark.parametrize("rule", ["first-order", "edge", "equilibrium"])
def test_parameters_that_do_not_reach_the_output_have_no_gradient_where_allowed(rule: str) -> None:
    model = fill(Spare(), 1)
    x, y = randn(1, 6, 4), torch.arange(6) % 3
    with pytest.raises(UnsupportedModel, match='pass unused_parameters="allow"'):
        SheafTrainer(model, rule=rule).local_gradients(x, y)
    trainer = SheafTrainer(model, rule=rule, unused_parameters="allow")
    trainer.local_gradients(x, y)
    assert model.spare.weight.grad is model.spare.bias.grad is None
    if rule == "first-order":
        functional.cross_entropy(model(x), y).backward(inputs=[model.used.weight])
        ours = SheafTrainer(model.used, rule=rule)
        double = model.used.weight.grad.clone()
        ours.local_gradients(x, y)
        assert torch.allclose(double, 2 * model.used.weight.grad)
    kept = model.spare.weight.detach().clone()
    step = torch.optim.Adam(model.parameters(), lr=0.1)
    fit(trainer, (x, y), step, epochs=2, clip=1.0, progress=False)
    assert torch.equal(model.spare.weight, kept)


class Cut(nn.Module):
    """Gradients cut off: half of a product, a straight-through step, a frozen part, a detached W.

    `late`: a write into a view, after which the trace loses its no_grad regions.
    """

    def __init__(self, late: bool) -> None:
        super().__init__()
        self.frozen, self.inner, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.late = late

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            start = torch.tanh(self.frozen(x))
        h = self.inner(start)
        h = h.detach().view(-1, 2, 2).flatten(1) * h + start
        h = h + (torch.relu(h) - h).detach()
        if self.late:
            h = h.clone()
            h[:, 0] = 0.5 * h[:, 1]
        return self.head(h) + functional.linear(h, self.head.weight.detach())


@pytest.mark.parametrize("late", [False, True])
def test_detach_and_no_grad_cut_as_in_autograd(late: bool) -> None:
    model = fill(Cut(late), 3)
    x, y = randn(11, 6, 4), torch.tensor([0, 1, 2, 0, 1, 2])
    functional.cross_entropy(model(x), y).backward()
    expected = {n: p.grad for n, p in model.named_parameters()}
    assert expected["frozen.weight"] is None
    model.zero_grad()
    SheafTrainer(model, rule="first-order").local_gradients(x, y)
    for n, p in model.named_parameters():
        if expected[n] is None:
            assert p.grad is None, n
        else:
            torch.testing.assert_close(p.grad, expected[n], rtol=1e-12, atol=1e-12)
    model.zero_grad()
    SheafTrainer(model, rule="edge").local_gradients(x, y)
    assert model.get_submodule("frozen").weight.grad is None
    with pytest.raises(ValueError, match="detach"):
        SheafTrainer(model, rule="equilibrium").local_gradients(x, y)


def test_a_restriction_map_knows_no_detach() -> None:
    """The sheaf is of the function that the model computes, whatever autograd is told."""
    model, x = fill(Cut(False), 3), randn(11, 6, 4)
    problem = hold(encode(model, x), x)
    assert "frozen" in problem.free.shapes
    at = problem.start("forward")
    u = problem.free.random(6, x, torch.Generator().manual_seed(1))
    step = 1e-6
    moved_by = {n: u[n] if n in u else torch.zeros_like(t) for n, t in at.items()}
    ahead, behind = (problem.residual(at + s * Cochain(moved_by)) for s in (step, -step))
    moved = problem.coboundary(at).apply(u)
    for name, value in moved.items():
        difference = (ahead[name] - behind[name]) / (2 * step)
        torch.testing.assert_close(value, difference, rtol=1e-6, atol=1e-7)
