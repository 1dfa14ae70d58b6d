"""The edge and recursive rules against dense least squares and batch ridge regression."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.reference.networks import fill, randn, relu_mlp
from torchsheaf.train import EdgeRule, RecursiveRule, SheafTrainer


def reference_step(a: Tensor, f: Tensor, damping: float) -> Tensor:
    """argmin_D ½‖A Dᵀ − F‖² + μ/2 ‖D‖² by an augmented system: dense, slow, obvious."""
    n = a.shape[1]
    mu = damping * a.square().sum()
    rows = torch.cat([a, mu.sqrt() * torch.eye(n, dtype=a.dtype)])
    goal = torch.cat([f, f.new_zeros(n, f.shape[1])])
    return torch.linalg.lstsq(rows, goal).solution.mT


def with_ones(a: Tensor) -> Tensor:
    return torch.cat([a, a.new_ones(a.shape[0], 1)], 1)


def layer_inputs_and_forces(
    model: nn.Sequential, x: Tensor, y: Tensor
) -> dict[str, tuple[Tensor, Tensor]]:
    """Per linear layer: its activations, and minus the gradient of the summed loss in z."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    h = x
    for name, layer in model.named_children():
        before, h = h, layer(h)
        if isinstance(layer, nn.Linear):
            h.retain_grad()
            seen[name] = (before, h)
    functional.cross_entropy(h, y, reduction="sum").backward()
    model.zero_grad()
    return {n: (a.detach(), -z.grad) for n, (a, z) in seen.items() if z.grad is not None}


@pytest.mark.parametrize("group", [None, 4, 5, 64])
def test_edge_steps_equal_dense_least_squares_per_group(group: int | None) -> None:
    """Groups of 4 and of 5 of 14 samples leave a smaller last group; it counts by its size."""
    model = relu_mlp([3, 20, 6, 4], 1)
    x, y = randn(2, 14, 3), torch.arange(14) % 4
    per_layer = layer_inputs_and_forces(model, x, y)
    SheafTrainer(model, rule=EdgeRule(damping=0.02, group=group)).local_gradients(x, y)
    size = 14 if group is None else min(group, 14)
    for name, (a, f) in per_layer.items():
        layer = model.get_submodule(name)
        expected = torch.zeros(layer.weight.shape[0], layer.weight.shape[1] + 1).double()
        for ag, fg in zip(a.split(size), f.split(size), strict=True):
            expected += len(ag) / 14 * reference_step(with_ones(ag), fg, 0.02)
        found = -torch.cat([layer.weight.grad, layer.bias.grad[:, None]], 1)
        assert torch.allclose(found, expected, atol=1e-11), name


@pytest.mark.parametrize("group", [2, None])
@pytest.mark.parametrize("bias", [True, False])
def test_convolution_steps_equal_least_squares_on_gathered_patches(
    group: int | None, bias: bool
) -> None:
    net = fill(
        nn.Sequential(
            nn.Conv2d(2, 3, 3, stride=2, padding=1, bias=bias), nn.Flatten(), nn.Linear(12, 2)
        ),
        3,
    )
    x, y = randn(4, 4, 2, 4, 4), torch.tensor([0, 1, 1, 0])
    z = net[0](x).detach().requires_grad_()
    functional.cross_entropy(net[1:](z), y, reduction="sum").backward()
    assert z.grad is not None
    padded = functional.pad(x, (1, 1, 1, 1))
    patches, forces = [], []
    for m in range(4):
        for i in range(2):
            for j in range(2):
                patches.append(padded[m, :, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3].flatten())
                forces.append(-z.grad[m, :, i, j])
    a, f = torch.stack(patches), torch.stack(forces)
    a = with_ones(a) if bias else a
    rows = 16 if group is None else 4 * group
    steps = [
        reference_step(ag, fg, 0.01 / 4)  # four positions per sample
        for ag, fg in zip(a.split(rows), f.split(rows), strict=True)
    ]
    expected = torch.stack(steps).mean(0)
    SheafTrainer(net, rule=EdgeRule(group=group)).local_gradients(x, y)
    found = -net[0].weight.grad.flatten(1)
    assert torch.allclose(found, expected[:, :18], atol=1e-11)
    if bias:
        assert torch.allclose(-net[0].bias.grad, expected[:, 18], atol=1e-11)


def test_large_damping_is_normalised_gradient_descent() -> None:
    """λ → ∞: D → FᵀA/(λ‖A‖²), the gradient over the squared norm of the activations."""
    model = relu_mlp([5, 4], 2)
    x, y = randn(1, 8, 5), torch.arange(8) % 4
    ((a, f),) = layer_inputs_and_forces(model, x, y).values()
    a = with_ones(a)
    SheafTrainer(model, rule=EdgeRule(damping=1e9, group=None)).local_gradients(x, y)
    expected = f.mT @ a / (1e9 * a.square().sum())
    assert torch.allclose(-model[0].weight.grad, expected[:, :-1], rtol=1e-6)


@pytest.mark.parametrize("rule", [EdgeRule(group=4), RecursiveRule()], ids=["edge", "recursive"])
def test_a_frozen_bias_drops_the_column_of_ones(rule: EdgeRule | RecursiveRule) -> None:
    model = relu_mlp([5, 4], 2)
    model[0].bias.requires_grad_(False)
    x, y = randn(1, 4, 5), torch.arange(4)
    ((a, f),) = layer_inputs_and_forces(model, x, y).values()
    trainer = SheafTrainer(model, rule=rule)
    trainer.local_gradients(x, y)
    assert model[0].bias.grad is None
    if isinstance(rule, EdgeRule):
        assert torch.allclose(-model[0].weight.grad, reference_step(a, f, 0.01), atol=1e-12)


@pytest.mark.parametrize("sizes", [(1,) * 12, (5, 4, 3), (7, 5), (12,)], ids=str)
@pytest.mark.parametrize("memory", [float("inf"), 50.0])
def test_recursive_steps_from_anchor_equal_batch_ridge_regression(
    sizes: tuple[int, ...], memory: float
) -> None:
    """One linear layer, squared loss, SGD(lr=1): after any stream the weights are the minimiser of
    Σ ρ^age ‖W a − y‖² + ρ^n damping·n_in ‖W − W₀‖² over everything seen."""
    model = relu_mlp([3, 2], 5)
    w0 = torch.cat([model[0].weight, model[0].bias[:, None]], 1).detach().clone()
    x, y = randn(1, 12, 3), randn(2, 12, 2)
    rule = RecursiveRule(damping=0.1, memory=memory)
    trainer = SheafTrainer(model, loss="l2", rule=rule)
    optimiser = torch.optim.SGD(model.parameters(), lr=1.0)
    start = 0
    for size in sizes:
        trainer.local_gradients(x[start : start + size], y[start : start + size])
        optimiser.step()
        start += size
    rho = 1 - 1 / memory
    # ρ acts once per batch, by that batch's size: samples of one batch share their weight.
    ends = torch.tensor(sizes).cumsum(0)
    last = torch.repeat_interleave(ends, torch.tensor(sizes))
    weight = rho ** (12 - last).double()
    a = with_ones(x)
    # P⁻¹ after a batch is ρ^size P⁻¹ + AᵀA, and the step solves with that very matrix.
    normal = (a * weight[:, None]).mT @ a + rho**12 * 0.1 * 4 * torch.eye(4).double()
    moment = (a * weight[:, None]).mT @ (y - a @ w0.mT)
    expected = w0 + torch.linalg.solve(normal, moment).mT
    found = torch.cat([model[0].weight, model[0].bias[:, None]], 1)
    assert torch.allclose(found, expected, atol=1e-9)
    assert torch.allclose(rule.inverse_moments["0.weight"], normal.inverse(), atol=1e-9)


def test_the_memory_follows_a_model_to_another_type() -> None:
    """Rounded once to float32, where it was; all after `model.double()` is float64."""
    x, y, found = randn(1, 8, 3), randn(2, 8, 2), []
    for dtype in (torch.float32, torch.float64):
        model, rule = relu_mlp([3, 2], 5, dtype=dtype), RecursiveRule()
        trainer = SheafTrainer(model, loss="l2", rule=rule)
        trainer.local_gradients(x[:4].to(dtype), y[:4].to(dtype))
        model.double()
        SheafTrainer(model, loss="l2", rule=rule).local_gradients(x[4:], y[4:])
        assert rule.inverse_moments["0.weight"].dtype == torch.float64
        found.append(model[0].weight.grad)
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-4)


def test_tied_weights_sum_over_their_edges() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(torch.relu(self.inner(x)))

    model = fill(Twice(), 1)
    x, y = randn(1, 6, 4), torch.arange(6) % 4
    z1 = model.inner(x).detach().requires_grad_()
    a = torch.relu(z1)
    z2 = model.inner(a).detach().requires_grad_()
    functional.cross_entropy(z2, y, reduction="sum").backward()
    assert z2.grad is not None
    f1 = -(z2.grad @ model.inner.weight) * (z1 > 0)
    expected = reference_step(with_ones(x), f1, 0.01)
    expected = expected + reference_step(with_ones(a.detach()), -z2.grad, 0.01)
    SheafTrainer(model, rule=EdgeRule(group=None)).local_gradients(x, y)
    assert torch.allclose(-model.inner.weight.grad, expected[:, :-1], atol=1e-11)


def test_parameters_of_other_edges_take_the_first_order_rule() -> None:
    model = fill(nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 3)), 2)
    x, y = randn(3, 6, 4), torch.arange(6) % 3
    functional.cross_entropy(model(x), y).backward()
    expected = {n: p.grad.clone() for n, p in model.named_parameters()}
    SheafTrainer(model, rule="edge").local_gradients(x, y)
    for n in ("1.weight", "1.bias"):
        assert torch.allclose(model.get_parameter(n).grad, expected[n], atol=1e-12)
    assert not torch.allclose(model[0].weight.grad, expected["0.weight"], atol=1e-3)


class Stored(nn.Module):
    """A linear layer on a sequence: weight as `nn.Linear` has it, or `(n_in, n_out)` as GPT-2's."""

    def __init__(self, weight: Tensor, bias: Tensor, transposed: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.mT.clone() if transposed else weight.clone())
        self.bias, self.transposed = nn.Parameter(bias.clone()), transposed

    def forward(self, x: Tensor) -> Tensor:
        if not self.transposed:
            return functional.linear(x, self.weight, self.bias)
        rows = torch.addmm(self.bias, x.reshape(-1, x.shape[-1]), self.weight)
        return rows.view(*x.shape[:-1], rows.shape[-1])


@pytest.mark.parametrize("rule", ["first-order", "edge", "recursive"])
def test_how_a_weight_is_stored_does_not_matter(rule: str) -> None:
    found = []
    for transposed in (False, True):
        first = Stored(randn(1, 5, 4), randn(2, 5), transposed)
        second = Stored(randn(3, 2, 5), randn(4, 2), transposed)
        model = nn.Sequential(first, nn.ReLU(), second, nn.Flatten(), fill(nn.Linear(6, 3), 5))
        SheafTrainer(model, rule=rule).local_gradients(randn(6, 7, 3, 4), torch.arange(7) % 3)
        assert first.weight.grad is not None
        assert second.weight.grad is not None
        grads = [first.weight.grad, second.weight.grad]
        found.append([(g.mT if transposed else g) for g in grads] + [first.bias.grad])
    for plain, stored in zip(*found, strict=True):
        assert torch.allclose(plain, stored, atol=1e-12)
        assert bool((plain != 0).any())


def test_a_repeated_full_batch_keeps_the_memory_definite_in_float32() -> None:
    """500 rows on 31 columns, 200 times; without biases the features of a plane are dependent."""
    torch.manual_seed(5)
    net = nn.Sequential(nn.Linear(2, 30), nn.ReLU(), nn.Linear(30, 1))
    nn.init.zeros_(net[0].bias)
    x = 4 * torch.rand(500, 2) - 2
    y = x.square().sum(1, keepdim=True)
    rule = RecursiveRule()
    trainer = SheafTrainer(net, loss="l2", rule=rule)
    rows = torch.cat([net[:2](x).detach(), torch.ones(500, 1)], 1).double()
    for step in range(1, 201):
        trainer.local_gradients(x, y)
        if step in (1, 20, 200):
            p = rule.inverse_moments["2.weight"].double()
            wanted = torch.linalg.inv(step * rows.mT @ rows + 0.31 * torch.eye(31).double())
            error = float((p - wanted).abs().max() / wanted.abs().max())
            assert error < 100 * torch.finfo(torch.float32).eps, step


@pytest.mark.parametrize("rule", [EdgeRule(group=None), RecursiveRule(), "first-order"], ids=str)
def test_gradients_lie_in_memory_as_their_parameters_do(rule: EdgeRule | RecursiveRule | str):
    """Fused optimisers read parameter and gradient by one stride, whatever the gradient's is."""
    ends = []
    for fused in (False, True):
        net = relu_mlp([2, 30, 1], 3)
        optimiser = torch.optim.SGD(net.parameters(), lr=0.1, fused=fused)
        SheafTrainer(net, loss="l2", rule=copy.deepcopy(rule)).local_gradients(
            randn(1, 50, 2), randn(2, 50, 1)
        )
        for parameter in net.parameters():
            assert parameter.grad.stride() == parameter.stride()
        optimiser.step()
        ends.append([p.detach().clone() for p in net.parameters()])
    for plain, fused_end in zip(*ends, strict=True):
        assert torch.allclose(plain, fused_end, atol=1e-14)
