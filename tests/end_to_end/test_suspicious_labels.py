"""Labels held for wrong: a sound network's own errors are not, labels that were flipped are."""

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from torchsheaf.boundary import hold
from torchsheaf.diagnose import Verdict
from torchsheaf.diagnose.suspicion import constant_part, suspicious_labels
from torchsheaf.sheaf import encode


@pytest.fixture(scope="module")
def digit_halves() -> tuple[Tensor, Tensor]:
    x, y = load_digits(return_X_y=True)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    return torch.tensor(x / 16).float()[order], torch.tensor(y)[order]


@pytest.mark.parametrize("gate", [nn.ReLU, nn.Tanh, nn.GELU, nn.LeakyReLU])
def test_errors_of_a_sound_classifier_are_not_put_down_to_labels(gate, digit_halves) -> None:
    """Nineteen of twenty unseen digits right; then 4% of the labels wrong."""
    x, y = digit_halves
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(64, 32), gate(), nn.Linear(32, 10))
    step = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(60):
        step.zero_grad()
        nn.functional.cross_entropy(net(x[:1200]), y[:1200]).backward()
        step.step()
    seen = hold(encode(net, x[1200:]), x[1200:])
    right = float((net(x[1200:]).argmax(1) == y[1200:]).double().mean())
    assert 0.92 < right < 0.98
    assert suspicious_labels(seen, y[1200:]).holds
    wrong = y[1200:].clone()
    wrong[:24] = (wrong[:24] + 3) % 10
    found = suspicious_labels(seen, wrong)
    assert not found.holds
    named = [int(w) for w in found.advice.split("samples ")[1].split(", …")[0].split(", ")]
    assert sum(n < 24 for n in named) >= 6


def test_a_network_that_is_not_trained_says_nothing_against_labels(digit_halves) -> None:
    x, y = digit_halves
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))
    assert suspicious_labels(hold(encode(net, x), x), y).verdict is Verdict.NOTED
    one = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 1))  # a coin toss agrees half
    assert suspicious_labels(hold(encode(one, x), x), (y > 4).long()).verdict is Verdict.NOTED


def train(net: nn.Module, x: Tensor, y: Tensor, steps: int, rate: float) -> None:
    step = torch.optim.Adam(net.parameters(), rate)
    for _ in range(steps):
        step.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        step.step()


UNDERFIT = {
    "logistic regression": (lambda: nn.Linear(64, 10), 40, 1e-2, 0.91),
    "sigmoid": (
        lambda: nn.Sequential(nn.Linear(64, 12), nn.Sigmoid(), nn.Linear(12, 10)), 50, 2e-2, 0.90,
    ),
    "ReLU": (
        lambda: nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10)), 30, 1e-2, 0.87
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", UNDERFIT)
@pytest.mark.parametrize("seed", range(3))
def test_a_sound_classifier_that_is_underfit_blames_no_label(name, seed, digit_halves) -> None:
    """One label in ten is beyond it; 1 to 4% lose by far, as its errors near the boundary say."""
    x, y = digit_halves
    make, steps, rate, right = UNDERFIT[name]
    torch.manual_seed(seed)
    net = make()
    train(net, x[:1200], y[:1200], steps, rate)
    sheaf = encode(net, x[1200:])
    seen = hold(sheaf, x[1200:])
    agreed = float((net(x[1200:]).argmax(1) == y[1200:]).double().mean())
    assert abs(agreed - right) < 0.035
    assert suspicious_labels(seen, y[1200:]).holds
    wrong = y[1200:].clone()
    wrong[:60] = (wrong[:60] + 3) % 10
    assert not suspicious_labels(seen, wrong).holds


@pytest.mark.parametrize("flips", [12, 24])
def test_two_flipped_labels_in_a_hundred_are_found_by_a_trained_network(
    flips, digit_halves
) -> None:
    x, y = digit_halves
    torch.manual_seed(2)
    net = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    train(net, x[:1200], y[:1200], 60, 1e-2)
    wrong = y[1200:].clone()
    wrong[:flips] = (wrong[:flips] + 3) % 10
    assert not suspicious_labels(hold(encode(net, x[1200:]), x[1200:]), wrong).holds


def test_a_constant_part_is_told_from_the_logistic_decline() -> None:
    """Labels drawn by the law, with and without a part that loses at any distance."""
    g = torch.Generator().manual_seed(0)
    distance = torch.rand(6000, generator=g, dtype=torch.float64) * 4

    def lost(part: float) -> Tensor:
        odds = part + (1 - 2 * part) * torch.sigmoid(-2 * distance)
        lose = torch.rand(len(distance), generator=g, dtype=torch.float64) < odds
        return torch.where(lose, 1.0, -1.0) * distance**2

    none, sure = constant_part(lost(0.0))
    assert none < 0.005
    assert sure < 2.5
    part, sure = constant_part(lost(0.05))
    assert part == pytest.approx(0.05, rel=0.25)
    assert sure > 8
