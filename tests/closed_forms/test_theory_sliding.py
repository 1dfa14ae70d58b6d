"""T4 of docs/theory.md: when a wall attracts, its generalisations, notions of critical."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from tests.closed_forms.theory_reference import ReluPath, equilibria

reals = st.floats(-3, 3, allow_nan=False).filter(lambda v: abs(v) > 1e-2)
many = settings(max_examples=200, deadline=None)
STEP = 1e-7


def forces(energy):
    """(left, right): minus the one-sided derivatives of a scalar function at 0."""
    left = -(energy(0.0) - energy(-STEP)) / STEP
    right = -(energy(STEP) - energy(0.0)) / STEP
    return left, right


def attracts(energy):
    left, right = forces(energy)
    return left > 1e-5 and right < -1e-5


@given(c=reals, a=reals)
@many
def test_relu_wall_attracts_iff_c_positive_and_c_plus_a_negative(c, a):
    assume(abs(c + a) > 1e-3)
    assert attracts(lambda z: 0.5 * (z - c) ** 2 + 0.5 * (a - max(z, 0)) ** 2) == (c > 0 > c + a)


@given(c=reals, a=reals, slope=st.floats(0, 0.9))
@many
def test_leaky_wall_attracts_iff_c_plus_slope_a_positive_and_c_plus_a_negative(c, a, slope):
    assume(abs(c + a) > 1e-3 and abs(c + slope * a) > 1e-3)

    def energy(z):
        post = z if z >= 0 else slope * z
        return 0.5 * (z - c) ** 2 + 0.5 * (a - post) ** 2

    assert attracts(energy) == (c + slope * a > 0 > c + a)


@given(c=reals, posts=st.lists(reals, min_size=2, max_size=4), skip=reals, out=reals, w=reals)
@many
def test_gate_read_by_several_edges_and_by_a_skip(c, posts, skip, out, w):
    """z feeds several gate edges (weight |w| each) and a residual join out = skip·z + …"""
    weight = abs(w)

    def energy(z):
        gated = sum((p - max(z, 0)) ** 2 for p in posts)
        return 0.5 * (z - c) ** 2 + 0.5 * weight * gated + 0.5 * (out - skip * z) ** 2

    off = c + skip * out
    on = off + weight * sum(posts)
    assume(abs(off) > 1e-3 and abs(on) > 1e-3)
    assert attracts(energy) == (off > 0 > on)


@given(
    shares=st.lists(st.floats(0, 1), min_size=2, max_size=4).filter(lambda v: sum(v) > 0.1),
    residual=st.floats(-3, -0.1),
    disturbance=st.sampled_from(["none", "negative", "sum"]),
)
@many
def test_max_pool_tie_is_stationary_iff_the_forces_share_the_pull(shares, residual, disturbance):
    """At a full tie with residual ρ < 0: 0 ∈ ∂E iff all F_i ≥ 0 and ΣF_i = −ρ."""
    pull = -residual * np.array(shares) / sum(shares)
    if disturbance == "negative":
        pull = pull + np.array([-pull[0] - 0.1, pull[0] + 0.1, *np.zeros(len(pull) - 2)])
    elif disturbance == "sum":
        pull = 1.1 * pull
    # Is F = |ρ| θ for some θ in the simplex? Asked of a linear-programming solver.
    k = len(pull)
    answer = linprog(
        np.zeros(k),
        A_eq=np.vstack([abs(residual) * np.eye(k), np.ones(k)]),
        b_eq=np.append(pull, 1.0),
        bounds=[(0, None)] * k,
    )
    formula = bool(np.all(pull >= 0) and np.isclose(pull.sum(), -residual))
    assert (answer.status == 0) == formula == (disturbance == "none")


@given(first=reals, second=reals, residual=reals)
@many
def test_two_way_tie_attracts_iff_force_difference_is_below_the_pull(first, second, residual):
    """u = z_1 − z_2 along the tie; E = −F_1 z_1 − F_2 z_2 + ½(ρ − max z)² near z = 0."""
    assume(abs(abs(first - second) + residual) > 1e-3)

    def energy(u):
        z = np.array([u, -u]) / 2
        return -first * z[0] - second * z[1] + 0.5 * (residual - z.max()) ** 2

    assert attracts(energy) == (abs(first - second) < -residual)


def test_three_notions_of_critical_disagree_at_a_downward_kink():
    """c = −1, a = 2, z = 0: Clarke says critical, the limiting test does not; it is a maximum."""

    def energy(z):
        return 0.5 * (z + 1) ** 2 + 0.5 * (2 - max(z, 0)) ** 2

    left, right = forces(energy)
    clarke = (min(-left, -right), max(-left, -right))
    assert clarke[0] < 0 < clarke[1]
    assert min(abs(left), abs(right)) > 0.9
    assert energy(0.0) > max(energy(-0.1), energy(0.1))
    assert (energy(-1.0), energy(0.5), energy(0.0)) == pytest.approx((2.0, 2.25, 2.5))


def scalar_net():
    one = np.array([[1.0]])
    return ReluPath((one, one), (np.zeros(1), np.zeros(1)))


def test_sliding_persists_when_the_output_is_held():
    """W = 1, x = 1, y = −3: the only equilibrium slides, E = 2.75; Euler chatters around it."""
    net, x, y = scalar_net(), np.array([1.0]), np.array([-3.0])
    (only,) = equilibria(net, x, y)
    np.testing.assert_allclose(only.cochain, [0.0, -1.5, -3.0])
    assert only.states == (2,)
    assert only.energy == pytest.approx(2.75)
    c, dt, signs, changes = net.substitute(x), 0.01, [], []
    c[-1] = y[0]
    for _ in range(3000):
        step = -dt * net.coboundary(net.mask_of(c)).T @ net.residual(c, x)
        step[-1] = 0.0
        c = c + step
        signs.append(c[0] >= 0)
        changes.append(np.abs(step).max())
    late = np.diff(np.array(signs[-1000:], dtype=int))
    assert np.count_nonzero(late) > 300
    assert min(changes[-1000:]) > 1e-3


def test_sliding_is_transient_when_only_the_input_is_held():
    net, x = scalar_net(), np.array([1.0])
    c = np.array([0.0, -5.0, -5.0])
    assert 1.0 > 0 > 1.0 + c[1]
    for _ in range(9000):
        c = c - 0.01 * net.coboundary(net.mask_of(c)).T @ net.residual(c, x)
    np.testing.assert_allclose(c, net.substitute(x), atol=1e-4)


@given(c=st.floats(0.1, 3), a=st.floats(-6, -0.2))
@many
def test_filippov_mask_on_the_wall_is_minus_c_over_a(c, a):
    assume(c + a < -1e-3)
    theta = -c / a
    assert 0 < theta < 1
    assert c + theta * a == pytest.approx(0.0, abs=1e-12)
