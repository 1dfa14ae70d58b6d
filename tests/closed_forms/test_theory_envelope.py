"""T6 of docs/theory.md: dE*/dθ is the local derivative at the relaxed cochain, sliding included."""

import dataclasses

import numpy as np
import pytest

from tests.closed_forms.theory_reference import (
    SLIDING,
    ReluPath,
    equilibria,
    equilibrium_in,
)

STEP = 1e-6


def moved(net, layer, index, amount, what):
    """The net with one weight or bias entry changed."""
    tensors = list(net.weights if what == "weights" else net.biases)
    changed = tensors[layer].copy()
    changed[index] += amount
    tensors[layer] = changed
    return dataclasses.replace(net, **{what: tuple(tensors)})


def branch_energy(net, x, y, weight, states):
    """E* of the equilibrium with these gate states; it must still exist."""
    found = equilibrium_in(net, x, y, states, weight)
    assert found is not None
    return found.energy


def local_derivative(net, x, cochain, layer):
    """(∂E/∂W, ∂E/∂b) of one edge from its own two ends: −r ⊗ a and −r."""
    zs, posts = net.split(cochain)
    below = [x, *posts][layer]
    residual = zs[layer] - net.weights[layer] @ below - net.biases[layer]
    return -np.outer(residual, below), -residual


@pytest.mark.parametrize("weight", [1.0, np.inf])
@pytest.mark.parametrize("seed", range(12))
def test_local_derivative_equals_finite_difference_of_the_relaxed_energy(seed, weight):
    rng = np.random.default_rng(seed)
    net = ReluPath.random([2, 2, 2, 1], rng)
    x, y = rng.standard_normal(2), np.array([-5.0])
    for point in equilibria(net, x, y, weight, margin=1e-3):
        for layer in range(3):
            by_weight, by_bias = local_derivative(net, x, point.cochain, layer)
            for index in np.ndindex(by_weight.shape):
                slope = difference(net, x, y, weight, point.states, layer, index, "weights")
                assert slope == pytest.approx(by_weight[index], abs=2e-7, rel=1e-5)
            slope = difference(net, x, y, weight, point.states, layer, (0,), "biases")
            assert slope == pytest.approx(by_bias[0], abs=2e-7, rel=1e-5)


def difference(net, x, y, weight, states, layer, index, what):
    ahead, behind = (
        branch_energy(moved(net, layer, index, amount, what), x, y, weight, states)
        for amount in (STEP, -STEP)
    )
    return (ahead - behind) / (2 * STEP)


def test_the_check_above_does_meet_sliding_gates():
    met = 0
    for seed in range(12):
        rng = np.random.default_rng(seed)
        net = ReluPath.random([2, 2, 2, 1], rng)
        x = rng.standard_normal(2)
        for point in equilibria(net, x, np.array([-5.0]), margin=1e-3):
            met += SLIDING in point.states
    assert met >= 5


def test_derivative_stays_continuous_where_a_gate_starts_to_slide():
    """E*(θ) is C¹ across on|sliding: its one-sided difference quotients agree at the boundary."""
    one = np.array([[1.0]])
    x = np.array([1.0])
    # With W = x = 1 the three edges share the gap y − 1, so z = 1 + (y − 1)/3: on iff y > −2.
    # Moving y is moving −b2.
    energies = {}
    for y in (-2.0 - 2e-3, -2.0 - 1e-3, -2.0 + 1e-3, -2.0 + 2e-3):
        net = ReluPath((one, one), (np.zeros(1), np.zeros(1)))
        (point,) = equilibria(net, x, np.array([y]))
        energies[y] = (point.energy, point.states)
    values = list(energies.values())
    assert values[0][1] != values[3][1]
    below = (values[1][0] - values[0][0]) / 1e-3
    above = (values[3][0] - values[2][0]) / 1e-3
    assert below == pytest.approx(above, abs=5e-3)
