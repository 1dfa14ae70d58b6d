"""Block descent with the output held: [2, 30, 1] on the paraboloid, 500 samples."""

import pytest
import torch

from tests.reference.networks import generator, paper_network
from torchsheaf import ConvergenceError, Outcome, Pin, Problem, encode, harmonic_extension, hold
from torchsheaf.harmonic.block_descent import BlockDescent

SOLVER = "block descent"


@pytest.fixture(scope="module")
def paraboloid() -> Problem:
    """f = x₁² + x₂² − 2/3 on [−2, 2]², at initialisation."""
    x = 4 * torch.rand(500, 2, generator=generator(42), dtype=torch.float64) - 2
    y = x.square().sum(1, keepdim=True) - 2 / 3
    return hold(encode(paper_network([2, 30, 1], 42), x), x).pin(Pin("output", y))


def test_every_sample_is_stationary_and_energy_never_rises(paraboloid: Problem) -> None:
    extension = harmonic_extension(paraboloid, solver=SOLVER)
    assert extension.outcome is Outcome.SETTLED
    assert float(extension.stationarity.max()) <= 1e-8
    assert bool(extension.settled.all())
    steps = torch.tensor(extension.energies, dtype=torch.float64).diff()
    assert len(steps) >= 2
    assert float(steps.max()) <= 1e-12 * extension.energies[0]
    assert extension.energies[-1] < 0.9 * extension.energies[0]
    assert torch.equal(extension.output, paraboloid.values["2"])
    # some gates slide: the state that explicit Euler never reaches
    assert int(extension.gates.sliding.sum()) > 0


def test_too_few_passes_is_an_error_that_carries_the_result(paraboloid: Problem) -> None:
    few = paraboloid.samples(torch.arange(40))
    with pytest.raises(ConvergenceError, match="step limit.*of 40 samples") as caught:
        harmonic_extension(few, solver=SOLVER, tol=1e-12, max_passes=4)
    partial = caught.value.result
    assert caught.value.outcome is Outcome.STEP_LIMIT
    returned = harmonic_extension(few, solver=SOLVER, tol=1e-12, max_passes=4, throw=False)
    assert returned.outcome is Outcome.STEP_LIMIT
    assert float(returned.stationarity.max()) > 1e-12
    assert partial is not None


def test_a_loose_tolerance_stops_sooner(paraboloid: Problem) -> None:
    few = paraboloid.samples(torch.arange(40))
    loose = harmonic_extension(few, solver=SOLVER, tol=1e-1)
    tight = harmonic_extension(few, solver=SOLVER, tol=1e-10)
    assert loose.passes < tight.passes
    assert float(loose.stationarity.max()) <= 1e-1
    assert float(tight.stationarity.max()) <= 1e-10


def test_a_stationary_start_is_left_alone(paraboloid: Problem) -> None:
    """A run that must stop at once: nothing moves, and one test of stationarity is all it costs."""
    few = paraboloid.samples(torch.arange(40))
    found = harmonic_extension(few, solver=SOLVER, tol=1e-10)
    again = BlockDescent().solve(few, found.cochain, 1e-10, 20_000)
    assert again.passes == 2
    assert all(torch.equal(again.cochain[n], found.cochain[n]) for n in found.cochain)
