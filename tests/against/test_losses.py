"""Potentials and forces of the losses against autograd and torch's own losses."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.functional import cross_entropy

from tests.reference.networks import randn, relu_mlp
from torchsheaf.train import EquilibriumRule, SheafTrainer
from torchsheaf.train.losses import FunctionLoss, HuberLoss, Loss, PowerLoss, loss_named

LOSSES = [
    "l2",
    "l1",
    "huber",
    "bce",
    "cross_entropy",
    PowerLoss(1.5),
    PowerLoss(3.0),
    HuberLoss(0.3),
]


def sample_targets(loss: Loss) -> torch.Tensor:
    y = randn(2, 7, 4)
    if loss.name == "bce":
        return y.sigmoid()
    if loss.name == "cross_entropy":
        return y.softmax(1)
    return y


@pytest.mark.parametrize("named", LOSSES, ids=str)
def test_force_is_minus_the_gradient_of_the_potential(named: str | Loss) -> None:
    loss = loss_named(named)
    z = randn(1, 7, 4).requires_grad_()
    y = loss.target(z, sample_targets(loss))
    (expected,) = torch.autograd.grad(loss.potential(z, y).sum(), z)
    assert torch.allclose(loss.gradient(z, y), expected, atol=1e-13)


@pytest.mark.parametrize("named", ["l2", "huber", "bce", "cross_entropy", HuberLoss(0.3)], ids=str)
def test_curvature_bounds_the_hessian(named: str | Loss) -> None:
    """The majoriser of curvature κ lies above Φ: Φ(z + d) ≤ Φ(z) + ∂Φ·d + κ/2 ‖d‖²."""
    loss = loss_named(named)
    z = randn(1, 7, 4)
    y = loss.target(z, sample_targets(loss))
    for seed in range(5):
        d = 3 * randn(10 + seed, 7, 4)
        above = loss.potential(z, y) + (loss.gradient(z, y) * d).sum(1)
        above = above + 0.5 * loss.curvature * d.square().sum(1)
        assert bool((loss.potential(z + d, y) <= above + 1e-12).all())


def test_values_equal_torch() -> None:
    z, y = randn(1, 7, 4), randn(2, 7, 4)
    labels = torch.tensor([0, 1, 2, 3, 0, 1, 2])

    def ours(name: str | Loss, y: torch.Tensor) -> float:
        loss = loss_named(name)
        return float(loss.potential(z, loss.target(z, y)).mean())

    assert ours("l2", y) == pytest.approx(float(functional.mse_loss(z, y) * 4 / 2))
    assert ours("l1", y) == pytest.approx(float(functional.l1_loss(z, y) * 4))
    assert ours(HuberLoss(0.4), y) == pytest.approx(
        float(functional.huber_loss(z, y, delta=0.4) * 4)
    )
    assert ours("cross_entropy", labels) == pytest.approx(
        float(functional.cross_entropy(z, labels))
    )
    assert ours("bce", y.sigmoid()) == pytest.approx(
        float(functional.binary_cross_entropy_with_logits(z, y.sigmoid()) * 4)
    )
    p3 = PowerLoss(3.0)
    assert float(p3.potential(z, y).sum()) == pytest.approx(float(((z - y).abs() ** 3 / 3).sum()))


@pytest.mark.parametrize("rule", ["first-order", "edge", "recursive", "equilibrium"])
@pytest.mark.parametrize("name", ["l2", "huber", "bce"])
def test_one_number_per_sample_is_a_column_without_its_axis(name: str, rule: str) -> None:
    """A model that returns (batch,) trains as the one that returns (batch, 1).

    Dropping the axis is an edge more, which bends with the others at a finite output weight.
    """
    chosen = EquilibriumRule(output_weight=1e-4, tol=1e-12) if rule == "equilibrium" else rule
    net = relu_mlp([3, 5, 1], 4)
    flat = nn.Sequential(net, nn.Flatten(0))
    x, y = randn(1, 6, 3), randn(2, 6, 1).sigmoid()
    found = []
    for model, target in ((net, y), (flat, y[:, 0])):
        loss = SheafTrainer(model, loss=name, rule=chosen).local_gradients(x, target)
        found.append([loss, *(p.grad.clone() for p in net.parameters())])
    for ours, wanted in zip(*found, strict=True):
        assert torch.allclose(ours, wanted, rtol=1e-3, atol=1e-9)


WEIGHT = torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64)
LABELS = torch.tensor([0, 2, 1, -100, 1, 0])


def both(z: Tensor, y: Tensor) -> Tensor:
    """Two losses summed: cross-entropy, and a penalty on the size of the logits."""
    return cross_entropy(z, y, reduction="none") + 0.1 * z.square().sum(1)


def per_position(z: Tensor, y: Tensor) -> Tensor:
    return cross_entropy(z.transpose(1, 2), y, reduction="none").sum(1)


FUNCTIONS: list[tuple[Callable[[Tensor, Tensor], Tensor], Tensor, nn.Module]] = [
    (partial(cross_entropy, weight=WEIGHT, reduction="none"), LABELS.clamp_min(0), nn.Identity()),
    (
        partial(cross_entropy, label_smoothing=0.2, ignore_index=-100, reduction="none"),
        LABELS, nn.Identity(),
    ),
    (both, LABELS.clamp_min(0), nn.Identity()),
    (per_position, torch.arange(18).view(6, 3) % 4, nn.Unflatten(1, (3, 4))),
]  # fmt: skip


@pytest.mark.parametrize(("function", "y", "shape"), FUNCTIONS)
def test_a_function_is_a_loss(
    function: Callable[[Tensor, Tensor], Tensor], y: Tensor, shape: nn.Module
) -> None:
    """Its gradients are autograd's, and those of the relaxed energy tend to them (T6)."""
    net = nn.Sequential(relu_mlp([3, 7, 12 if y.ndim == 2 else 3], 1), shape)
    x = randn(2, 6, 3)
    wanted = function(net(x), y).mean()
    wanted.backward()
    expected = [p.grad.clone() for p in net.parameters()]
    found = SheafTrainer(net, loss=function, rule="first-order").local_gradients(x, y)
    assert float(found) == pytest.approx(wanted.item(), rel=1e-14)
    for p, g in zip(net.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, g, rtol=1e-12, atol=1e-14)
    rule = EquilibriumRule(output_weight=1e-5, tol=1e-12)
    SheafTrainer(net, loss=FunctionLoss(function, 2.0), rule=rule).local_gradients(x, y)
    for p, g in zip(net.parameters(), expected, strict=True):
        assert float((p.grad / 1e-5 - g).norm() / g.norm()) < 1e-3


def test_a_function_that_is_a_named_loss_relaxes_as_it() -> None:
    """Same energy, gradients and second derivatives: the same relaxed state at any weight."""
    net, x, y = relu_mlp([3, 7, 4], 1), randn(2, 6, 3), torch.arange(6) % 4
    named = loss_named("cross_entropy")
    own = FunctionLoss(partial(cross_entropy, reduction="none"), named.curvature)
    z = net(x).detach()
    second = named.hessian(z, named.target(z, y))
    assert second is not None
    torch.testing.assert_close(own.hessian(z, y), second, rtol=1e-13, atol=1e-15)
    found = []
    for loss in (named, own):
        rule = EquilibriumRule(output_weight=3.0, tol=1e-11)
        SheafTrainer(net, loss=loss, rule=rule).local_gradients(x, y)
        assert rule.last is not None
        assert rule.last.rounds < 12
        found.append([p.grad.clone() for p in net.parameters()])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)
    linear = FunctionLoss(lambda z, y: z.sum(1))
    assert not linear.hessian(z, y).any()


def test_the_force_of_a_power_vanishes_where_the_target_is_met() -> None:
    z = randn(1, 3, 2)
    for p in (1.0, 1.5, 3.0):
        assert not PowerLoss(p).gradient(z, z).any()


def test_rows_that_are_no_probabilities_are_refused() -> None:
    loss, z = loss_named("cross_entropy"), randn(1, 2, 4)
    y = torch.full((2, 4), 0.25)
    assert torch.equal(loss.target(z, y), y.double())
    for wrong in (y * 1.01, y - torch.tensor([0.5, 0, 0, -0.5])):
        with pytest.raises(ValueError, match="must be probabilities"):
            loss.target(z, wrong)


@pytest.mark.parametrize(
    "options", [{"label_smoothing": 0.1}, {"ignore_index": 2}, {"reduction": "sum"}], ids=str
)
def test_settings_of_a_module_that_the_named_loss_lacks_are_refused(options: dict) -> None:
    assert loss_named(nn.CrossEntropyLoss()).name == "cross_entropy"
    with pytest.raises(ValueError, match="write 'cross_entropy', which is the mean"):
        loss_named(nn.CrossEntropyLoss(**options))
