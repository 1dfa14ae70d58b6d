"""Diagnosis of what cannot be diagnosed: the argument, what came, what to write."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import torchsheaf as ts
from tests.reference.networks import convnet, randn, relu_mlp
from torchsheaf.diagnose import (
    Familiarity,
    agreement,
    discord,
    fault_profile,
    label_energy,
    nudged_discord,
    pathologies,
    prediction,
    spectra,
    tension_correction,
    watch,
)

Y = torch.arange(24) % 2
BROKEN = r"weight '2\.weight' contains NaN or infinity"

DIAGNOSES: dict[str, Callable[[ts.Problem, ts.Cochain], object]] = {
    "pathologies": lambda p, _: pathologies(p, Y),
    "spectrum": lambda p, _: ts.spectrum(p),
    "spectra": lambda p, _: spectra(p),
    "label_energy": lambda p, _: label_energy(p, Y),
    "nudged_discord": lambda p, _: nudged_discord(p, Y),
    "fault_profile": lambda p, at: fault_profile(p, at),
    "discord": lambda p, at: discord(p, at),
    "prediction": lambda p, at: prediction(p, at, "0"),
    "tension_correction": lambda p, at: tension_correction(p, at, p),
    "Familiarity": lambda p, _: Familiarity.of(p),
}


@pytest.fixture
def held() -> ts.Problem:
    x = randn(2, 24, 3)
    return ts.hold(ts.encode(relu_mlp([3, 5, 2], 1), x), x)


def ruin(held: ts.Problem, value: float) -> None:
    with torch.no_grad():
        held.sheaf.network.state("2.weight")[1, 2] = value


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", DIAGNOSES)
def test_weights_that_broke_after_encode_are_named(
    held: ts.Problem, name: str, value: float
) -> None:
    forward = held.start("forward")
    DIAGNOSES[name](held, forward)
    ruin(held, value)
    with pytest.raises(ValueError, match=BROKEN):
        DIAGNOSES[name](held, forward)


def test_agreement_and_discord_of_an_extension_made_before(held: ts.Problem) -> None:
    forward = ts.harmonic_extension(held)
    known = Familiarity.of(held)
    table = discord(forward)
    ruin(held, float("nan"))
    assert torch.equal(discord(forward).values, table.values)  # read off, not computed
    with pytest.raises(ValueError, match=BROKEN):
        discord(forward, forward.cochain)
    with pytest.raises(ValueError, match=BROKEN):
        agreement(forward, forward.output)
    with pytest.raises(ValueError, match=BROKEN):
        known.finding(held)


def test_statistics_that_broke_after_encode_are_named() -> None:
    model, x = convnet(3), randn(1, 24, 1, 8, 8)
    problem = ts.hold(ts.encode(model, x), x)
    model[1].running_var[0] = float("nan")  # type: ignore[index, union-attr]
    with pytest.raises(ValueError, match=r"'1\.running_var' contains NaN"):
        pathologies(problem)


def test_a_look_that_fails_leaves_the_record_as_it_was() -> None:
    net, x = relu_mlp([3, 5, 2], 1), randn(2, 24, 3)
    monitor = watch(net, (x, Y))
    monitor()
    kept: Tensor = net[2].weight.detach().clone()
    with torch.no_grad():
        net[2].weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match=BROKEN):
        monitor()
    seen = monitor.evolution
    assert seen.steps == [0]
    assert len(seen.tables) == len(seen.gaps) == len(seen.findings) == 1
    with torch.no_grad():
        net[2].weight.copy_(kept)
    monitor()
    assert seen.steps == [0, 1]
