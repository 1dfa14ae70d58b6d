"""Exact elimination of z (docs/theory.md §9): the table, its kinks, and what it leaves over."""

import itertools

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from tests.closed_forms.theory_reference import OFF, ON, SLIDING, ReluPath, equilibria

reals = st.floats(-4, 4, allow_nan=False)
many = settings(max_examples=200, deadline=None)
few = settings(max_examples=25, deadline=None)
TIE = 1 + np.sqrt(2)


def local(z, c, a, slope=0.0):
    """What one gate and its incoming edge cost: ½(z−c)² + ½(a−σ(z))²."""
    return 0.5 * (z - c) ** 2 + 0.5 * (a - np.where(z >= 0, z, slope * z)) ** 2


def eliminate(c, a, slope=0.0):
    """(z, state, ψ) of the table, for any leaky slope in [0, 1)."""
    on = max((c + a) / 2, 0.0)
    off = min((c + slope * a) / (1 + slope**2), 0.0)
    z = min((on, off), key=lambda v: float(local(v, c, a, slope)))
    state = ON if z > 0 else OFF if z < 0 else SLIDING
    return z, state, float(local(z, c, a, slope))


@given(c=reals, a=reals, slope=st.sampled_from([0.0, 0.1, 0.5]))
@many
def test_table_is_the_global_minimum_over_z(c, a, slope):
    grid = np.linspace(-9, 9, 36_001)
    values = local(grid, c, a, slope)
    _, _, psi = eliminate(c, a, slope)
    assert psi <= values.min() + 1e-12
    assert psi >= values.min() - 1e-6


@given(c=reals, a=reals)
@many
def test_states_and_values_are_those_of_the_table(c, a):
    assume(min(abs(c), abs(c + a), abs(a - TIE * abs(c)), abs(a)) > 1e-6)
    _, state, psi = eliminate(c, a)
    if c > 0 > c + a:
        assert (state, psi) == (SLIDING, pytest.approx(0.5 * a * a + 0.5 * c * c))
    elif c < 0 and a < TIE * -c:
        assert (state, psi) == (OFF, pytest.approx(0.5 * a * a))
    else:
        assert (state, psi) == (ON, pytest.approx(0.25 * (a - c) ** 2))


@given(c=reals, a=reals)
@many
def test_gradient_of_the_reduced_cost_is_the_pair_of_residuals(c, a):
    assume(abs(a - TIE * abs(c)) > 1e-3 or c >= 0)
    h = 1e-6
    z, _, _ = eliminate(c, a)
    by_c = (eliminate(c + h, a)[2] - eliminate(c - h, a)[2]) / (2 * h)
    by_a = (eliminate(c, a + h)[2] - eliminate(c, a - h)[2]) / (2 * h)
    assume(c >= h or c < -h)
    assert (by_c, by_a) == pytest.approx((c - z, a - max(z, 0.0)), abs=1e-5)


@given(p=st.tuples(reals, reals), q=st.tuples(reals, reals), half=st.sampled_from(["on", "off"]))
@many
def test_both_branches_are_convex_and_their_minimum_is_the_reduced_cost(p, q, half):
    def branch(c, a):
        if half == "on":
            return 0.5 * (a * a + c * c) - 0.25 * max(c + a, 0.0) ** 2
        return 0.5 * a * a + 0.5 * max(c, 0.0) ** 2

    middle = ((p[0] + q[0]) / 2, (p[1] + q[1]) / 2)
    assert branch(*middle) <= 0.5 * (branch(*p) + branch(*q)) + 1e-12
    assert eliminate(*p)[2] <= branch(*p) + 1e-12


@given(s=st.floats(0.2, 4))
@many
def test_attracting_kink_is_gone_and_one_downward_kink_is_left(s):
    h = 1e-5

    def jump(point, direction):
        """Difference of one-sided slopes across a boundary of the table."""
        ahead, here, behind = (
            eliminate(point[0] + k * h * direction[0], point[1] + k * h * direction[1])[2]
            for k in (1, 0, -1)
        )
        return (ahead - here) / h - (here - behind) / h

    assert jump((s, -s), (1.0, 0.3)) == pytest.approx(0.0, abs=1e-3)  # on | sliding
    assert jump((0.0, -s), (1.0, 0.3)) == pytest.approx(0.0, abs=1e-3)  # off | sliding
    assert jump((-s, TIE * s), (0.0, 1.0)) < -0.1 * s  # off | on


def reduced_energy(net, x, y, flat):
    """E(a) with every z eliminated and the output held at y."""
    total, below, start = 0.0, x, 0
    for layer in range(net.hidden):
        incoming = net.weights[layer] @ below + net.biases[layer]
        width = len(incoming)
        below = flat[start : start + width]
        total += sum(eliminate(c, a, net.slope)[2] for c, a in zip(incoming, below, strict=True))
        start += width
    return total + 0.5 * np.sum((net.weights[-1] @ below + net.biases[-1] - y) ** 2)


@pytest.mark.parametrize("seed", range(10))
def test_reduced_minima_are_three_state_equilibria(seed):
    rng = np.random.default_rng(seed)
    net = ReluPath.random([2, 3, 1], rng)
    x, y = rng.standard_normal(2), 4 * rng.standard_normal(1)
    known = equilibria(net, x, y)
    lowest = min(
        minimize(lambda a: reduced_energy(net, x, y, a), start, tol=1e-12).fun
        for start in rng.standard_normal((6, net.gates)) * 2
    )
    assert lowest == pytest.approx(known[0].energy, abs=1e-6)


@given(seed=st.integers(0, 5000))
@few
def test_each_branch_is_strongly_convex_so_minima_are_finitely_many(seed):
    """E_s with the branch frozen is convex with Hessian ⪰ TᵀT; so at most 2^gates local minima."""
    rng = np.random.default_rng(seed)
    net = ReluPath.random([2, 2, 2, 1], rng)
    x, y = rng.standard_normal(2), 2 * rng.standard_normal(1)

    def frozen(flat, branch):
        total, below = 0.0, x
        for layer in range(net.hidden):
            incoming = net.weights[layer] @ below + net.biases[layer]
            below = flat[2 * layer : 2 * layer + 2]
            for c, a, on in zip(incoming, below, branch[2 * layer :], strict=False):
                total += 0.5 * a * a + (
                    0.5 * c * c - 0.25 * max(c + a, 0.0) ** 2 if on else 0.5 * max(c, 0.0) ** 2
                )
        return total + 0.5 * np.sum((net.weights[-1] @ below + net.biases[-1] - y) ** 2)

    p, q = 2 * rng.standard_normal((2, net.gates))
    for branch in itertools.product((0, 1), repeat=net.gates):
        shift = np.zeros((net.gates, net.gates))
        shift[2:, :2] = net.weights[1] * np.array(branch[2:])[:, None]
        scale = np.where(branch, np.sqrt(2), 1.0)
        least = (
            np.linalg.svd((np.eye(net.gates) - shift) / scale[:, None], compute_uv=False)[-1] ** 2
        )
        middle = frozen((p + q) / 2, branch)
        gain = 0.5 * (frozen(p, branch) + frozen(q, branch)) - middle
        assert gain >= 0.125 * least * np.sum((p - q) ** 2) * (1 - 1e-9) - 1e-9


def test_two_local_minima_with_the_output_held():
    """x = 1, W1 = −1, W2 = 1, y = 4.5: minima 81/16 (off) and 121/24 (on), a ridge between."""
    one = np.array([[1.0]])
    net = ReluPath((-one, one), (np.zeros(1), np.zeros(1)))
    x, y = np.array([1.0]), np.array([4.5])
    on, off = equilibria(net, x, y)
    assert (on.states, off.states) == ((ON,), (OFF,))
    assert (on.energy, off.energy) == pytest.approx((121 / 24, 81 / 16))
    np.testing.assert_allclose(on.cochain, [5 / 6, 8 / 3, 4.5])
    np.testing.assert_allclose(off.cochain, [-1.0, 2.25, 4.5])
    ridge = reduced_energy(net, x, y, np.array([TIE]))
    assert ridge > off.energy > on.energy
    for a, target in ((2.3, 2.25), (2.5, 8 / 3)):
        found = minimize(lambda v: reduced_energy(net, x, y, v), [a], method="BFGS").x
        assert found == pytest.approx(target, abs=1e-4)
