"""Models that read token numbers: their inputs are integers, everything after them is real."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import torchsheaf as ts
from tests.reference.networks import fill, generator, randn
from torchsheaf.train.equilibrium import EquilibriumRule


class FixedBatch(nn.Module):
    """A token model that, like many exported ones, asks for one batch size."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(7, 4), nn.Linear(12, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        parts = self.table(tokens).unbind(0)  # the number of parts is the batch
        return self.head(torch.stack(parts).flatten(1))


def tokens(seed: int, batch: int) -> Tensor:
    return torch.randint(0, 7, (batch, 3), generator=generator(seed))


def classifier(dtype: torch.dtype = torch.float64) -> nn.Module:
    return fill(nn.Sequential(nn.Embedding(7, 4), nn.Flatten(), nn.Linear(12, 2)), 1, dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_cochain_is_of_the_type_of_its_real_numbers(dtype: torch.dtype) -> None:
    x = tokens(2, 5)
    at = ts.encode(classifier(dtype), x).forward(x)
    assert at["input"].dtype == torch.int64
    assert at.dtype == dtype
    assert ts.Cochain({"n": x}).dtype == torch.int64  # nothing real in it


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_agreement_of_a_token_model(dtype: torch.dtype) -> None:
    model, x = classifier(dtype), tokens(2, 12)
    forward = ts.harmonic_extension(ts.hold(ts.encode(model, x), x))
    found = ts.agreement(forward, model(x).detach())
    assert all(finding.holds for finding in found)
    determinant = next(f for f in found if "det δ" in f.name)
    assert determinant.bound == (1e-10 if dtype == torch.float64 else 1e-5)


def test_a_report_on_a_token_model(tmp_path: Path) -> None:
    x = tokens(2, 24)
    page = ts.report(classifier(), x, x.sum(1) % 2)
    assert page


def test_the_equilibrium_rule_relaxes_token_models_to_their_own_tolerance() -> None:
    rule = EquilibriumRule()
    y = torch.tensor([0, 1, 1, 0])
    ts.SheafTrainer(classifier(), rule=rule).local_gradients(tokens(2, 4), y)
    assert rule.last is not None
    assert float(rule.last.gap.max()) <= 1e-8


def test_a_fixed_batch_is_read_at_another_one() -> None:
    model = fill(FixedBatch(), 1)
    sheaf = ts.encode(model, tokens(2, 4))
    assert sheaf.network.fixed_batch == 4
    other = sheaf.at_batch(3)
    assert torch.equal(other.forward(tokens(3, 3))[other.outputs[0]], model(tokens(3, 3)))


class FixedGate(nn.Module):
    """The same of real numbers, with a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(torch.stack(self.inner(x).unbind(0))))


def test_another_batch_is_read_in_the_form_and_type_of_now() -> None:
    model, x = fill(FixedGate(), 1), randn(2, 4, 3)
    sheaf = ts.encode(model, x, form="fused")
    model.float()
    other = sheaf.at_batch(3)
    assert (
        list(other.vertices) == list(sheaf.vertices) != list(ts.encode(model, x.float()).vertices)
    )
    given = x[:3].float()
    assert torch.equal(other.forward(given)[other.outputs[0]], model(given))


def test_training_on_a_smaller_last_batch_of_tokens() -> None:
    model = fill(FixedBatch(), 1)
    trainer = ts.SheafTrainer(model, rule="first-order")
    for batch in (4, 3, 4):
        x, y = tokens(batch, batch), torch.arange(batch) % 2
        trainer.local_gradients(x, y)
        ours = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        model.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        wanted = [p.grad for p in model.parameters()]
        assert len(ours) == len(wanted)
        for a, b in zip(ours, wanted, strict=True):
            torch.testing.assert_close(a, b)


def test_token_numbers_are_no_coordinates_of_familiarity() -> None:
    """Exchanging the numbers of two tokens, and their rows of the table, changes nothing."""
    x = tokens(2, 40)
    first, second = classifier(), classifier()
    order = torch.tensor([6, 1, 2, 3, 4, 5, 0])
    with torch.no_grad():
        second[0].weight.copy_(first[0].weight[order])  # type: ignore[index]
    distances = []
    for model, numbers in ((first, x), (second, order[x])):
        problem = ts.hold(ts.encode(model, numbers), numbers)
        known = ts.Familiarity.of(problem)
        assert set(known.means).isdisjoint(problem.sheaf.network.integral)
        distances.append(known.distance(problem.start("forward")))
    torch.testing.assert_close(*distances)
    with pytest.raises(ValueError, match="holds integers"):
        ts.Familiarity.of(problem, problem.sheaf.inputs)
