"""The reduced energy and its Newton system against autograd and dense linear algebra."""

import pytest
import torch

import torchsheaf as ts
from tests.reference.frozen import frozen_at
from tests.reference.held import MODELS, held_output
from tests.reference.networks import randn
from torchsheaf.harmonic.frozen_system import newton_direction
from torchsheaf.harmonic.reduced_energy import forces
from torchsheaf.harmonic.reduction import Reduction

pytestmark = pytest.mark.usefixtures("no_grad")


PINS = {
    "output": lambda p: p,
    "hidden soft": lambda p: p.pin(ts.Pin(list(p.sheaf.edges)[0], 0.3, where=[0, 2], weight=0.7)),
    "hidden hard": lambda p: p.pin(ts.Pin(list(p.sheaf.edges)[0], 0.4, where=[1, 3])),
    "post hard": lambda p: p.pin(ts.Pin(list(p.sheaf.edges)[1], 0.2, where=[0, 1])),
    "post soft": lambda p: p.pin(ts.Pin(list(p.sheaf.edges)[1], 0.2, where=[2], weight=3.0)),
    # what enters a later vertex moves, so that its held coordinates leave a row behind
    "later hard": lambda p: p.pin(ts.Pin(list(p.sheaf.edges)[3], 0.2, where=[0, 1, 2, 3])),
}


def at_random(problem: ts.Problem, seed: int):
    """A system at a generic point: no kink is active there."""
    return frozen_at(problem, problem.start("random", torch.Generator().manual_seed(seed)))


def value(reduction: Reduction, c: torch.Tensor) -> torch.Tensor:
    return forces(reduction, c, reduction.incoming(c)).energy


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("pins", PINS)
def test_derivative_is_that_of_the_reduced_energy(name, pins):
    problem = PINS[pins](held_output(name))
    reduction, c, m, here, system = at_random(problem, 5)
    gradient = system.reverse(here.on_variables, here.on_values, substitute=False, scaled=False)
    if reduction.holds.keep is not None:
        gradient = gradient * reduction.holds.keep
    direction, h = randn(7, *c.shape), 1e-6
    if reduction.holds.keep is not None:
        direction = direction * reduction.holds.keep
    slope = (value(reduction, c + h * direction) - value(reduction, c - h * direction)) / (2 * h)
    torch.testing.assert_close((gradient * direction).sum(1), slope, rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("pins", PINS)
def test_reverse_is_the_adjoint_of_forward(name, pins):
    _, c, m, _, system = at_random(PINS[pins](held_output(name)), 6)
    u, on_c, on_m = randn(8, *c.shape), randn(9, *c.shape), randn(10, *m.shape)
    dc, dm = system.forward(u)
    right = (system.reverse(on_c, on_m) * u).sum(1)
    torch.testing.assert_close((on_c * dc).sum(1) + (on_m * dm).sum(1), right)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("pins", PINS)
def test_given_work_space_changes_no_result(name, pins):
    _, c, m, _, system = at_random(PINS[pins](held_output(name)), 6)
    u, on_c, on_m = randn(8, *c.shape), randn(9, *c.shape), randn(10, *m.shape)
    left = torch.full_like(c, torch.nan), torch.full_like(m, torch.nan)
    plain = system.forward(u)
    torch.testing.assert_close(system.forward(u, left), plain, rtol=0, atol=0)
    left = torch.full_like(c, torch.nan), torch.full_like(m, torch.nan)
    torch.testing.assert_close(system.pinned(*plain, left), system.pinned(*plain), rtol=0, atol=0)
    expected = system.reverse(on_c, on_m)
    assert torch.equal(on_c, randn(9, *c.shape))
    overwritten = system.reverse(on_c.clone(), on_m, overwrite=True)
    torch.testing.assert_close(overwritten, expected, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("name", ["mlp", "leaky", "hardtanh", "shared", "post-activation"])
@pytest.mark.parametrize("pins", PINS)
def test_product_is_the_second_derivative_and_at_least_the_identity(name, pins):
    problem = PINS[pins](held_output(name).samples(torch.tensor([0])))
    reduction, c, m, here, system = at_random(problem, 7)
    eye = torch.eye(c.shape[1], dtype=c.dtype)
    dense = torch.cat([system.product(row[None])[0] for row in eye])
    torch.testing.assert_close(dense, dense.mT)
    keep = eye.new_ones(c.shape[1]) if reduction.holds.keep is None else reduction.holds.keep[0]
    inner = dense[keep > 0][:, keep > 0]
    assert float(torch.linalg.eigvalsh(inner)[0]) >= 1 - 1e-9
    u, h = randn(11, *c.shape) * keep, 1e-4
    dc, _ = system.forward(u)
    values = [float(value(reduction, c + t * dc)) for t in (-h, 0.0, h)]
    second = (values[0] - 2 * values[1] + values[2]) / h**2
    assert float((u * system.product(u)[0]).sum()) == pytest.approx(second, rel=1e-4, abs=1e-5)


def test_conjugate_gradients_solve_the_system_and_carry_the_step_along():
    problem = held_output("mlp").samples(torch.arange(4))
    _, c, m, here, system = at_random(problem, 8)
    g = system.reverse(here.on_variables, here.on_values)
    found = newton_direction(system, g, torch.full((4,), 1e-12, dtype=c.dtype))
    torch.testing.assert_close(system.product(found.u)[0], -g)
    dc, dm = system.forward(found.u)
    torch.testing.assert_close(found.dc, dc)
    torch.testing.assert_close(found.dm, dm)
    # at most one step per pinned row (two outputs, the sliding gates) and one for the identity
    sliding = int(here.gates.stuck.sum(1).max())
    assert found.steps <= 2 + sliding + 2
