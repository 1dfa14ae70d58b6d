"""Conjugate gradients that end where they leave a trust region (Steihaug 1983)."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import torchsheaf as ts
from tests.reference.frozen import frozen_at
from tests.reference.held import held_attention, held_output
from tests.reference.networks import fill, randn
from torchsheaf.harmonic.curvature import Curvature
from torchsheaf.harmonic.frozen_system import FrozenSystem, newton_direction

TIGHT = 1e-10


def linear(m: int, n: int) -> torch.nn.Linear:
    return torch.nn.Linear(m, n, dtype=torch.float64)


@torch.no_grad()
def system_of(problem: ts.Problem) -> tuple[FrozenSystem, Tensor]:
    """The model with second derivatives at the forward pass, and its gradient."""
    reduction, c, _, here, system = frozen_at(problem, problem.start("forward"))
    pull = here.on_values.clone()
    gradient = system.reverse(here.on_variables.clone(), pull, overwrite=True)
    point = reduction.point(c)
    network = problem.sheaf.network
    curvature = Curvature(reduction.layout, network, system.maps, point, pull) or None
    return replace(system, curvature=curvature), gradient


def constant(value: float, like: Tensor) -> Tensor:
    return like.new_full((like.shape[0],), value)


def model(system: FrozenSystem, gradient: Tensor, u: Tensor) -> Tensor:
    return torch.linalg.vecdot(u, gradient + 0.5 * system.product(u)[0])


@torch.no_grad()
def test_a_wide_region_changes_nothing():
    system, g = system_of(held_output("mlp").samples(torch.arange(4)))
    plain = newton_direction(system, g, constant(TIGHT, g))
    wide = newton_direction(system, g, constant(TIGHT, g), radius=constant(1e6, g))
    torch.testing.assert_close(wide.u, plain.u)
    assert not wide.edge.any()
    torch.testing.assert_close(wide.model, model(system, g, wide.u))
    torch.testing.assert_close(wide.norm, wide.u.norm(dim=1))


@torch.no_grad()
def test_every_sample_ends_on_its_own_edge_or_inside_it():
    system, g = system_of(held_output("mlp").samples(torch.arange(4)))
    whole = newton_direction(system, g, constant(TIGHT, g))
    share = torch.tensor([0.1, 0.5, 0.9, 2.0], dtype=g.dtype)
    radius = share * whole.norm
    found = newton_direction(system, g, constant(TIGHT, g), radius=radius)
    assert found.edge.tolist() == [True, True, True, False]
    expected = torch.where(found.edge, radius, whole.norm)
    torch.testing.assert_close(found.u.norm(dim=1), expected)
    torch.testing.assert_close(found.model, model(system, g, found.u))
    # the model falls along the path of the conjugate gradients
    assert bool((found.model[:3] > whole.model[:3]).all())
    assert bool((found.model < 0).all())
    dc, dm = system.forward(found.u)
    torch.testing.assert_close(found.dc, dc)
    torch.testing.assert_close(found.dm, dm)


@torch.no_grad()
def test_a_tiny_region_gives_steepest_descent():
    system, g = system_of(held_attention(0))
    radius = constant(1e-7, g)
    found = newton_direction(system, g, constant(TIGHT, g), radius=radius)
    expected = -g / g.norm(dim=1, keepdim=True) * radius[:, None]
    torch.testing.assert_close(found.u, expected, rtol=1e-5, atol=1e-14)


@torch.no_grad()
def test_where_the_model_bends_downwards_the_edge_is_reached():
    """Without a region such a direction stops its sample; with one it is followed to the edge."""
    problem = held_attention(2)
    system, g = system_of(problem)
    stopped = newton_direction(system, g, constant(TIGHT, g))
    residual = (system.product(stopped.u)[0] + g).norm(dim=1)
    bent = residual > 1e-3 * g.norm(dim=1)
    assert bent.any(), "the example has no negative curvature"
    radius = 2 * stopped.norm + 1
    found = newton_direction(system, g, constant(TIGHT, g), radius=radius)
    assert found.edge[bent].all()
    torch.testing.assert_close(found.norm[bent], radius[bent])
    assert bool((found.model[bent] < stopped.model[bent]).all())


@pytest.mark.parametrize("scale", [1.0, 0.1, 0.01])
def test_free_inputs_may_move_farther_than_the_residuals_are_large(scale):
    """Weights times s: the inputs must move by 1/s, however small the energy is by then."""
    net = fill(torch.nn.Sequential(linear(4, 8), torch.nn.Tanh(), linear(8, 2)), 0)
    with torch.no_grad():
        net[0].weight.mul_(scale)
        wanted = net(randn(2, 10, 4))
    x = randn(1, 10, 4)
    held = ts.hold(ts.encode(net, x), x, where=[]).pin(ts.Pin("output", wanted))
    found = ts.harmonic_extension(held, max_passes=1000)
    assert float(found.energy.max()) < 1e-10


def test_a_tolerance_below_rounding_stalls_and_one_above_does_not():
    held = held_attention(0)
    found = ts.harmonic_extension(held, tol=1e-17, max_passes=20_000, throw=False)
    assert found.outcome is ts.Outcome.STALLED
    assert found.passes < 2_000
    assert float(found.stationarity.max()) < 1e-9
    settled = ts.harmonic_extension(held, tol=1e-10, max_passes=20_000)
    torch.testing.assert_close(settled.energy, found.energy, rtol=1e-12, atol=0)


@pytest.mark.parametrize("seed", range(3))
def test_attention_converges_at_second_order(seed):
    """To 1e-11: fused attention has no second derivative, and without it 20,000 passes fail."""
    found = ts.harmonic_extension(held_attention(seed), tol=1e-11, max_passes=800)
    assert float(found.stationarity.max()) <= 1e-11
