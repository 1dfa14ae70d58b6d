"""Block descent with the output held: [2, 30, 1] on the paraboloid, 500 samples."""

from itertools import pairwise

import pytest
import torch

from tests.reference.networks import generator, paper_network, randn
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
    assert torch.equal(partial.energy, returned.energy)
    assert torch.equal(partial.stationarity, returned.stationarity)


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


TOKENS = 4


def test_tokens_are_rows() -> None:
    """A net on (batch, tokens, features) is the same net on every token of its own."""
    net, x = paper_network([3, 6, 5, 2], 3), randn(4, 3, TOKENS, 3)
    y = randn(5, 3, TOKENS, 2)
    for solver in (SOLVER, "auto"):
        apart = x.flatten(0, 1)
        found = harmonic_extension(hold(encode(net, x), x).pin(Pin("output", y)), solver=solver)
        rows = harmonic_extension(
            hold(encode(net, apart), apart).pin(Pin("output", y.flatten(0, 1))), solver=solver
        )
        assert found.start == rows.start == "forward, one block step"
        for name, value in found.cochain.items():
            expected = rows.cochain[name].reshape(value.shape)
            torch.testing.assert_close(value, expected, rtol=0, atol=1e-6)
    assert harmonic_extension(hold(encode(net[0], x), x).pin(Pin("output", 0.3))).outcome.ok


@pytest.mark.parametrize("weight", [torch.inf, 0.7])
def test_tokens_with_pins_of_their_own(weight: float) -> None:
    """Pins between the layers that differ from token to token, hard or soft."""
    net, x = paper_network([3, 6, 5, 2], 3), randn(4, 3, TOKENS, 3)
    y = randn(5, 3, TOKENS, 2)
    pins = [
        Pin("1", 0.4, where=[0, 3, 2 * 6 + 1], weight=weight),
        Pin("2", -0.2, where=[5 + 2, 3 * 5], weight=weight),
    ]
    problem = hold(encode(net, x), x).pin(Pin("output", y), *pins)
    found = harmonic_extension(problem, solver=SOLVER, start="forward", tol=1e-9)
    assert float(found.stationarity.max()) <= 1e-9
    assert all(b <= a * (1 + 1e-12) for a, b in pairwise(found.energies))
    if weight == torch.inf:
        flat = found.cochain["1"].flatten(1)
        assert torch.equal(flat[:, [0, 3, 13]], torch.full((3, 3), 0.4, dtype=torch.float64))
    assert harmonic_extension(problem).outcome is Outcome.SETTLED
