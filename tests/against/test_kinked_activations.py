"""Smooth activations with kinks, output held: every sample ends at a local minimum."""

import pytest
import torch
from torch import nn

from tests.reference.networks import fill, randn
from torchsheaf import Cochain, Pin, Problem, encode, harmonic_extension, heat_flow, hold

ACTIVATIONS = {
    "selu": nn.SELU,
    "elu, alpha 2": lambda: nn.ELU(2.0),
    "elu, alpha 0.4": lambda: nn.ELU(0.4),
    "hardswish": nn.Hardswish,
}


def held(activation: str, samples: int = 40) -> Problem:
    act = ACTIVATIONS[activation]
    net = fill(
        nn.Sequential(nn.Linear(6, 8), act(), nn.Linear(8, 8), act(), nn.Linear(8, 3)), seed=1
    )
    x = 2 * randn(2, samples, 6)
    return hold(encode(net, x), x).pin(Pin("output", 4 * randn(3, samples, 3)))


def drawn(problem: Problem, c: Cochain, seed: int) -> Cochain:
    """A random direction of norm 1 in the free coordinates."""
    source = torch.Generator().manual_seed(seed)
    d = problem.free.random(problem.batch, problem.like, source)
    d = problem.clamp({n: d.get(n, torch.zeros_like(t)) for n, t in c.items()}) - problem.clamp(
        {n: torch.zeros_like(t) for n, t in c.items()}
    )
    return d * (1 / d.norm())


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_sample_settles_and_no_direction_descends(activation: str) -> None:
    problem = held(activation)
    found = harmonic_extension(problem, max_passes=2000)
    assert float(found.stationarity.max()) <= 1e-8
    assert int(found.gates.sliding.sum()) > 0
    for seed in range(20):
        d = drawn(problem, found.cochain, seed)
        for size in (1e-5, 1e-3):
            energy = problem.energy(found.cochain + size * d)
            assert bool((energy > found.energy - 1e-14).all())


def test_the_flow_slides_on_the_kinks_too() -> None:
    problem = held("selu", samples=4)
    end = harmonic_extension(problem)
    start = end.cochain + 0.05 * drawn(problem, end.cochain, 5)
    flow = heat_flow(problem, until=200.0, method="ode", start=start)
    torch.testing.assert_close(flow.energy[-1], end.energy, rtol=1e-4, atol=1e-8)
