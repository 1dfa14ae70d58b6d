"""The equilibrium rule against finite differences of the equilibrium energy (envelope theorem)."""

import math

import pytest
import torch
from torch import Tensor, nn

from tests.reference.networks import linear_mlp, randn, relu_mlp
from torchsheaf.boundary import Pin, hold, stationarity
from torchsheaf.harmonic import harmonic_extension
from torchsheaf.outcome import ConvergenceError
from torchsheaf.sheaf import encode
from torchsheaf.train import EquilibriumRule, SheafTrainer
from torchsheaf.train.losses import HuberLoss, Loss, loss_named


def check_against_differences(
    model: nn.Module, x: Tensor, y: Tensor, loss: str | Loss, rule: EquilibriumRule
) -> None:
    """Directional derivatives of E*(θ) = min ½ Σ w‖r‖² + ε Φ along two random directions."""
    trainer = SheafTrainer(model, loss=loss, rule=rule)
    trainer.local_gradients(x, y)
    start = [p.detach().clone() for p in model.parameters()]
    grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    assert len(grads) == len(start)

    def energy(direction: list[Tensor], t: float) -> float:
        with torch.no_grad():
            for p, p0, way in zip(model.parameters(), start, direction, strict=True):
                p.copy_(p0 + t * way)
        batch = trainer.batch(x, y)
        found = rule.relax(batch)  # from the equilibrium found: the same local minimum
        phi = trainer.loss.potential(found.cochain[batch.output], batch.target)
        return float((found.problem.energy(found.cochain) + rule.output_weight * phi).mean())

    h = 2e-5
    for seed in range(2):
        way = [randn(100 * seed + i, *g.shape) for i, g in enumerate(grads)]
        expected = sum(float((g * w).sum()) for g, w in zip(grads, way, strict=True))
        values = [energy(way, t) for t in (-2 * h, -h, h, 2 * h)]
        slope = (values[0] - 8 * values[1] + 8 * values[2] - values[3]) / (12 * h)
        assert slope == pytest.approx(expected, rel=1e-8, abs=1e-8)
    energy(way, 0.0)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("widths", [[2, 12, 1], [3, 8, 6, 2], [2, 7, 5, 6, 1]])
def test_gradient_is_the_derivative_of_the_equilibrium_energy_with_sliding_neurons(
    widths: list[int], seed: int
) -> None:
    net = relu_mlp(widths, seed)
    x, y = randn(seed + 10, 10, widths[0]), 3 * randn(seed + 20, 10, widths[-1])
    rule = EquilibriumRule(warm=True, tol=1e-11)
    check_against_differences(net, x, y, "l2", rule)
    assert rule.last is not None
    held = rule.last.problem.pin(Pin("output", y, weight=1.0))
    sliding = stationarity(held, rule.last.cochain).gates.sliding
    assert int(sliding.sum()) > 0, "no neuron slides here, so the hard case is not tested"


def test_gradient_with_edge_weights_and_output_weight() -> None:
    net = relu_mlp([3, 6, 5, 2], 4)
    x, y = randn(1, 8, 3), randn(2, 8, 2)
    rule = EquilibriumRule(output_weight=0.3, weights={"0": 2.0, "3": 0.5}, warm=True, tol=1e-11)
    check_against_differences(net, x, y, "l2", rule)


@pytest.mark.parametrize("loss", ["cross_entropy", "bce", HuberLoss(0.5)])
def test_gradient_of_majorised_losses(loss: str | Loss) -> None:
    net = relu_mlp([3, 4, 3], 5)
    x = randn(3, 4, 3)
    y: Tensor = randn(4, 4, 3)
    if loss == "cross_entropy":
        y = torch.arange(4) % 3
    elif loss == "bce":
        y = (y > 0).double()
    rule = EquilibriumRule(warm=True, tol=1e-9, max_rounds=2000)
    check_against_differences(net, x, y, loss, rule)


def test_linear_network_against_the_closed_form() -> None:
    """E* = ½ eᵀ(I/ε + K)⁻¹e, K = Σ J_e J_eᵀ/w_e, by autograd through K(θ) assembled densely."""
    net = linear_mlp([2, 3, 4, 2], 1)
    x, y = randn(5, 7, 2), randn(6, 7, 2)
    eps = 0.7
    w1, w2, w3 = (layer.weight for layer in net)
    eye = torch.eye(2, dtype=torch.float64)
    k = eye / 3 + w3 @ w3.mT + w3 @ w2 @ w2.mT @ w3.mT / 0.5
    e = y - net(x)
    energy = 0.5 * (e * torch.linalg.solve(eye / eps + k, e.mT).mT).sum(1).mean()
    expected = torch.autograd.grad(energy, list(net.parameters()))
    SheafTrainer(
        net, loss="l2",
        rule=EquilibriumRule(output_weight=eps, weights={"2": 3.0, "0": 0.5}, tol=1e-11),
    ).local_gradients(x, y)  # fmt: skip
    for p, g in zip(net.parameters(), expected, strict=True):
        assert torch.allclose(p.grad, g, rtol=1e-9, atol=1e-10)
    assert w1.grad is not None


def test_a_large_output_weight_tends_to_the_output_held() -> None:
    """ε → ∞: S → K and `.grad` → −w (∂f/∂θ)ᵀ r with the output held at y, up to O(1/ε)."""
    net = relu_mlp([2, 8, 6, 2], 5)
    x, y = randn(5, 7, 2), randn(6, 7, 2)
    problem = hold(encode(net, x), x)
    start = harmonic_extension(problem.pin(Pin("output", y, weight=1e3)), tol=1e-11).cochain
    held = harmonic_extension(problem.pin(Pin("output", y)), start=start, tol=1e-11)
    layers = {"0": net[0], "2": net[2], "4": net[4]}
    errors = []
    for eps in (1e3, 1e4, 1e5):
        rule = EquilibriumRule(output_weight=eps, tol=1e-10)
        SheafTrainer(net, loss="l2", rule=rule).local_gradients(x, y)
        errors.append(
            max(
                float((layer.bias.grad + held.residual[name].mean(0)).norm())
                for name, layer in layers.items()
            )
        )
    for coarse, fine in zip(errors, errors[1:], strict=False):
        assert 8 < coarse / fine < 12, errors


@pytest.mark.parametrize("eps", [0.1, 1.0, 10.0])
def test_the_default_output_weight_halves_the_error_at_least(eps: float) -> None:
    """K ≥ I (the edge into the output), so S = I/ε + K shortens e by 1 + 1/ε or more."""
    assert EquilibriumRule().output_weight == 1.0
    net = linear_mlp([3, 5, 4, 2], 2)
    x, y = randn(7, 9, 3), randn(8, 9, 2)
    rule = EquilibriumRule(output_weight=eps, tol=1e-11)
    SheafTrainer(net, loss="l2", rule=rule).local_gradients(x, y)
    assert rule.last is not None
    left = rule.last.problem.residual(rule.last.cochain)["2"].norm(dim=1)
    e = (y - net(x)).norm(dim=1)
    assert bool((left <= e / (1 + 1 / eps) * (1 + 1e-9)).all())


def test_residuals_carry_the_backpropagated_error_times_the_inverse_of_s() -> None:
    """Per unit of rate the last bias moves by S⁻¹e, S = I + K, where back-propagation has e."""
    net = linear_mlp([2, 5, 1], 3)
    x, y = randn(7, 4, 2), randn(8, 4, 1)
    SheafTrainer(net, loss="l2", rule=EquilibriumRule(tol=1e-11)).local_gradients(x, y)
    w2 = net[1].weight.detach()
    s = 1 + 1 + float(w2 @ w2.mT)
    assert torch.allclose(net[1].bias.grad, (net(x) - y).mean(0) / s, atol=1e-10)


def test_losses_without_bounded_curvature_are_refused() -> None:
    net = relu_mlp([2, 3, 1], 0)
    trainer = SheafTrainer(net, loss="l1", rule="equilibrium")
    with pytest.raises(ValueError, match="bounded curvature"):
        trainer.local_gradients(randn(0, 4, 2), randn(1, 4, 1))


def test_too_few_rounds_end_in_an_outcome_and_few_passes_do_not() -> None:
    net = relu_mlp([3, 6, 3], 5)
    x, y = randn(3, 6, 3), torch.arange(6) % 3
    with pytest.raises(ConvergenceError, match="rounds"):
        SheafTrainer(net, rule=EquilibriumRule(tol=1e-12, max_rounds=2)).local_gradients(x, y)
    for loss, target in (("cross_entropy", y), ("l2", randn(4, 6, 3))):
        rough = EquilibriumRule(max_passes=4)
        SheafTrainer(net, loss=loss, rule=rough).local_gradients(x, target)
        assert rough.last is not None
        assert not rough.last.settled
        assert math.isfinite(float(rough.last.gap.max()))
    for budget in (20, 25, 30):
        rough = EquilibriumRule(max_passes=budget, tol=1e-12)
        SheafTrainer(net, rule=rough).local_gradients(x, y)
        assert rough.last is not None
        assert rough.last.rounds > 1
        assert rough.last.passes <= budget + 1


def test_the_model_of_the_output_is_counted_and_a_budget_is_not_spent_on_it() -> None:
    """It costs a reverse pass for each coordinate of the output, and three."""
    net, x, y = relu_mlp([3, 6, 4], 5), randn(3, 6, 3), torch.arange(6) % 4
    for budget, passes in ((None, 4 + 3), (5, 0)):
        rule = EquilibriumRule(max_passes=budget)
        first = rule._first(SheafTrainer(net, rule=rule).batch(x, y))
        assert first.passes == passes
        assert (first.model is None) == (budget is not None)


def test_warm_start_begins_where_the_last_update_ended() -> None:
    net = relu_mlp([2, 20, 1], 1)
    x, y = randn(1, 30, 2), randn(2, 30, 1)
    cold, warm = EquilibriumRule(tol=1e-9), EquilibriumRule(tol=1e-9, warm=True)
    for rule in (cold, warm):
        trainer = SheafTrainer(net, loss="l2", rule=rule)
        trainer.local_gradients(x, y)
        trainer.local_gradients(x, y)
    assert cold.last is not None
    assert warm.last is not None
    assert warm.last.passes < cold.last.passes
    # Another batch of the same shape must not start from the old one's cochain.
    trainer.local_gradients(x.flip(0), y.flip(0))
    assert warm.last.passes == cold.last.passes


def test_a_memory_of_another_type_is_not_where_to_start() -> None:
    """`model.double()` between two updates, on inputs that compare equal in both types."""
    net, x, y = relu_mlp([2, 5, 1], 1, dtype=torch.float32), torch.ones(4, 2), torch.ones(4, 1)
    warm, cold = EquilibriumRule(warm=True), EquilibriumRule()
    SheafTrainer(net, loss="l2", rule=warm).local_gradients(x, y)
    net.double()
    found = []
    for rule in (warm, cold):
        SheafTrainer(net, loss="l2", rule=rule).local_gradients(x.double(), y.double())
        found.append([p.grad.clone() for p in net.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_loss_named_agrees_with_the_objects() -> None:
    assert loss_named("l2").curvature == 1.0
    assert math.isinf(loss_named("l1").curvature)
