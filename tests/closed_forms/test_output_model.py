"""The relaxed output of cross-entropy and its like: predicted, and against plain majorisation."""

import pytest
import torch
from torch import Tensor, nn

from tests.reference.networks import linear_mlp, randn, relu_mlp
from torchsheaf.boundary import Pin, hold, stationarity
from torchsheaf.cochain import Cochain, coordinates
from torchsheaf.harmonic import harmonic_extension
from torchsheaf.train import EquilibriumRule, SheafTrainer
from torchsheaf.train.loss_edge import OutputModel
from torchsheaf.train.losses import BinaryCrossEntropy, CrossEntropy, HuberLoss, Loss

LOSSES = [CrossEntropy(), BinaryCrossEntropy(), HuberLoss(0.3)]
TOL = 1e-8


def targets(loss: Loss, samples: int) -> Tensor:
    classes = torch.arange(samples) % 3
    hot = nn.functional.one_hot(classes, 3).double()
    return classes if loss.name == "cross_entropy" else 4 * hot if loss.name == "huber" else hot


def tangent_at_the_present_output(
    net: nn.Module, x: Tensor, y: Tensor, loss: Loss, eps: float
) -> tuple[Cochain, int]:
    """The slow way: every majoriser tangent where the last one ended; and its rounds."""
    batch = SheafTrainer(net, loss=loss, rule="equilibrium").batch(x, y)
    held, state = hold(batch.sheaf, x), batch.values
    for rounds in range(1, 3000):
        z = state[batch.output]
        goal = z - loss.gradient(z, batch.target) / loss.curvature
        pin = Pin(batch.output, goal, weight=eps * loss.curvature)
        state = harmonic_extension(held.pin(pin), start=state, tol=TOL).cochain
        new = state[batch.output]
        left = loss.gradient(new, batch.target) - loss.curvature * (new - goal)
        if float(eps * left.norm(dim=1).max()) <= TOL:
            return state, rounds
    raise AssertionError("the slow way does not arrive")


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
def test_second_derivatives_of_the_losses(loss: Loss) -> None:
    z, y = randn(1, 5, 3), loss.target(randn(1, 5, 3), targets(loss, 5))
    bent = loss.hessian(z, y)
    assert bent is not None
    for way in randn(2, 4, 3):
        h = 1e-6
        slope = (loss.gradient(z + h * way, y) - loss.gradient(z - h * way, y)) / (2 * h)
        torch.testing.assert_close(bent @ way, slope, rtol=1e-8, atol=1e-8)
    assert bool((torch.linalg.eigvalsh(bent) <= loss.curvature + 1e-12).all())


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
def test_a_network_without_gates_takes_one_round(loss: Loss) -> None:
    """There V is the quadratic that the model says, so the first majoriser touches the minimum."""
    net, x = linear_mlp([4, 6, 5, 3], 2), 2 * randn(3, 7, 4)
    rule = EquilibriumRule(output_weight=0.7, weights={"1": 2.0}, tol=TOL)
    SheafTrainer(net, loss=loss, rule=rule).local_gradients(x, targets(loss, 7))
    assert rule.last is not None
    assert rule.last.rounds == 1


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
def test_the_relaxed_cochain_is_that_of_plain_majorisation(loss: Loss) -> None:
    """Large logits and sliding gates: an equilibrium too, in a fraction of the rounds.

    It is the same one unless another branch has a local minimum that the shorter way runs into.
    """
    net, x, y = relu_mlp([4, 12, 12, 3], 5), 3 * randn(3, 12, 4), targets(loss, 12)
    rule = EquilibriumRule(tol=TOL)
    trainer = SheafTrainer(net, loss=loss, rule=rule)
    trainer.local_gradients(x, y)
    found, target = rule.last, trainer.batch(x, y).target
    assert found is not None
    z = found.cochain["4"]
    tangent = Pin("4", z - loss.gradient(z, target) / loss.curvature, weight=loss.curvature)
    assert float(stationarity(found.problem.pin(tangent), found.cochain).distance.max()) < 10 * TOL
    energy = found.problem.energy(found.cochain) + loss.potential(z, target)
    torch.testing.assert_close(found.energy, energy, rtol=1e-9, atol=1e-9)
    slow, rounds = tangent_at_the_present_output(net, x, y, loss, 1.0)
    other = found.problem.energy(slow) + loss.potential(slow["4"], target)
    same = (energy - other).abs() < 1e-6
    assert int(same.sum()) >= 8
    for name, value in slow.items():
        torch.testing.assert_close(found.cochain[name][same], value[same], rtol=1e-4, atol=1e-4)
    assert found.rounds <= 12
    assert rounds > 2 * found.rounds


def test_secants_of_a_quadratic_give_its_curvature() -> None:
    """After d steps, each conjugate to those before, K is the inverse of the curvature."""
    a = randn(1, 6, 4, 4)
    inverse = a @ a.mT + torch.eye(4).double()
    z, nothing = randn(2, 6, 4), torch.ones(6, dtype=torch.bool)
    start = torch.eye(4).double().expand(6, 4, 4)

    def force(z: Tensor) -> Tensor:
        return (inverse @ z[..., None])[..., 0]

    model = OutputModel(z, force(z), start, nothing)
    vectors = torch.linalg.eigh(inverse).eigenvectors
    for k in range(4):
        z = model.z + vectors[:, :, k]
        model = model.after(z, force(z), nothing, 1e-12)
    torch.testing.assert_close(model.compliance, torch.linalg.inv(inverse), rtol=1e-9, atol=1e-9)


def test_a_sample_that_is_taken_back_stays_where_it_was_and_is_not_trusted() -> None:
    z, force = randn(1, 3, 2), randn(2, 3, 2)
    lower = torch.tensor([True, False, True])
    model = OutputModel(z, force, torch.eye(2).double().expand(3, 2, 2), torch.ones(3).bool())
    new = model.after(z + 1, force + 2, lower, 1e-12)
    assert torch.equal(new.trusted, lower)
    for before, after, step in ((z, new.z, 1), (force, new.force, 2)):
        torch.testing.assert_close(after, before + step * lower[:, None])
    assert torch.equal(new.after(z, force, ~lower, 1e-12).trusted, torch.zeros(3).bool())


def test_a_prediction_that_raises_the_energy_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that is wrong by a factor costs rounds, not the result."""
    loss, net, x = CrossEntropy(), relu_mlp([4, 8, 3], 5), randn(3, 9, 4)
    y = targets(loss, 9)
    monkeypatch.setattr(
        OutputModel, "rest", lambda self, loss, y, weight, like: torch.where(
            self.trusted[:, None], self.z + 40 * (1 + coordinates(y)), self.z
        ),
    )  # fmt: skip
    rule = EquilibriumRule(tol=TOL)
    trainer = SheafTrainer(net, loss=loss, rule=rule)
    batch = trainer.batch(x, y)
    before = rule._first(batch)
    after = rule._round(batch, before, TOL)
    assert torch.equal(after.energy, before.energy)
    assert all(torch.equal(after.cochain[n], t) for n, t in before.cochain.items())
    trainer.local_gradients(x, y)
    slow, _ = tangent_at_the_present_output(net, x, y, loss, 1.0)
    assert rule.last is not None
    assert not bool(rule.last.model.trusted.any())  # type: ignore[union-attr]
    for name, value in slow.items():
        torch.testing.assert_close(rule.last.cochain[name], value, rtol=1e-5, atol=1e-5)
