"""T3 of docs/theory.md: the rate λ*, why binary patterns decide it, a bound without them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.closed_forms.theory_reference import ReluPath, patterns

seeds = st.integers(0, 10_000)
few = settings(max_examples=40, deadline=None)


def least_eigenvalue(delta, weights=None):
    scaled = delta if weights is None else np.sqrt(weights)[:, None] * delta
    return np.linalg.svd(scaled, compute_uv=False)[-1] ** 2


def worst_binary(net, weights=None):
    return min(least_eigenvalue(net.coboundary(mask), weights) for mask in patterns(net.gates))


@given(seed=seeds)
@few
def test_no_fractional_pattern_is_worse_than_the_worst_binary_one(seed):
    rng = np.random.default_rng(seed)
    net = ReluPath.random([2, 3, 3, 1], rng)
    weights = np.exp(rng.standard_normal(net.dimension))
    plain, weighted = worst_binary(net), worst_binary(net, weights)
    for _ in range(30):
        delta = net.coboundary(rng.random(net.gates))
        assert least_eigenvalue(delta) >= plain * (1 - 1e-10)
        assert least_eigenvalue(delta, weights) >= weighted * (1 - 1e-10)


@given(seed=seeds)
@few
def test_inverse_coboundary_is_affine_in_each_gate_and_not_in_all(seed):
    rng = np.random.default_rng(seed)
    net = ReluPath.random([2, 3, 3, 1], rng)
    mask, gate = rng.random(net.gates), int(rng.integers(net.gates))

    def inverse(value):
        changed = mask.copy()
        changed[gate] = value
        return np.linalg.inv(net.coboundary(changed))

    np.testing.assert_allclose(inverse(0.3), 0.7 * inverse(0.0) + 0.3 * inverse(1.0), atol=1e-9)


@given(seed=seeds)
@few
def test_binary_patterns_suffice_in_the_fused_form_too(seed):
    """Fused: one mask entry scales a whole column of W, and sits in every child of the vertex."""
    rng = np.random.default_rng(seed)
    first, skip = rng.standard_normal((2, 3, 3))

    def fused(mask):
        delta = np.eye(9)
        delta[3:6, :3] = -first * mask[:3]
        delta[6:, :3] = -skip * mask[:3]
        delta[6:, 3:6] = -first * mask[3:]
        return delta

    worst = min(least_eigenvalue(fused(mask)) for mask in patterns(6))
    for _ in range(30):
        assert least_eigenvalue(fused(rng.random(6))) >= worst * (1 - 1e-10)


@given(seed=seeds)
@few
def test_two_sweeps_with_absolute_weights_bound_the_rate_from_below(seed):
    net = ReluPath.random([2, 4, 3, 1], np.random.default_rng(seed))
    strictly_lower = np.eye(net.dimension) - net.coboundary(np.ones(net.gates))
    comparison = np.linalg.inv(np.eye(net.dimension) - np.abs(strictly_lower))
    bound = 1 / np.linalg.norm(comparison, 2) ** 2
    assert 0 < bound <= worst_binary(net) * (1 + 1e-10)


@pytest.mark.parametrize("seed", range(4))
def test_energy_stays_below_the_exponential_along_the_switching_flow(seed):
    """Explicit Euler at dt = 2e-3 follows the flow up to O(dt); the bound has room for it."""
    rng = np.random.default_rng(seed)
    net = ReluPath.random([2, 4, 1], rng)
    x, c = rng.standard_normal(2), 2 * rng.standard_normal(net.dimension)
    rate, dt, steps = worst_binary(net), 2e-3, 3000
    energies, switches, mask = [net.energy(c, x)], 0, net.mask_of(c)
    for _ in range(steps):
        c = c - dt * net.coboundary(net.mask_of(c)).T @ net.residual(c, x)
        energies.append(net.energy(c, x))
        switches += int(np.any(net.mask_of(c) != mask))
        mask = net.mask_of(c)
    bound = energies[0] * np.exp(-2 * rate * dt * np.arange(steps + 1))
    assert np.all(np.array(energies) <= bound * (1 + 5e-3))
    distance = np.linalg.norm(c - net.substitute(x))
    assert distance <= np.sqrt(2 * energies[-1] / rate) * (1 + 1e-9)
    assert switches > 0
