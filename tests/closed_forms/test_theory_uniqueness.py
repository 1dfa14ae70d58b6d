"""T1 and T2 of docs/theory.md: unitriangular, one critical point, exponential decay."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import solve_ivp

from tests.closed_forms.theory_graphs import PIECEWISE, SMOOTH, randn, random_graph
from tests.closed_forms.theory_reference import ReluPath, patterns, smallest_in_hull

seeds = st.integers(0, 10_000)
mixtures = st.sampled_from([PIECEWISE, SMOOTH, PIECEWISE + SMOOTH])
few = settings(max_examples=40, deadline=None)


@given(seed=seeds, kinds=mixtures)
@few
def test_residual_jacobian_is_unit_lower_triangular_on_any_graph(seed, kinds):
    graph = random_graph(seed, kinds)
    jacobian = graph.jacobian(randn(seed + 1, graph.dimension), randn(seed + 2, graph.width))
    assert torch.equal(jacobian, torch.tril(jacobian))
    assert torch.equal(torch.diagonal(jacobian), torch.ones(graph.dimension, dtype=torch.float64))


@given(seed=seeds, kinds=mixtures)
@few
def test_substitution_inverts_the_residual_map(seed, kinds):
    graph = random_graph(seed, kinds)
    x, rho = randn(seed + 1, graph.width), 0.7 * randn(seed + 2, graph.dimension)
    c = graph.substitute(x, rho)
    torch.testing.assert_close(graph.residual(c, x), rho, atol=1e-11, rtol=1e-11)
    back = graph.substitute(x, graph.residual(rho, x))
    torch.testing.assert_close(back, rho, atol=1e-9, rtol=1e-9)


@given(seed=seeds, kinds=mixtures)
@few
def test_slope_of_the_energy_bounds_the_energy(seed, kinds):
    """|∇E|² ≥ 2 λ_min(DDᵀ) E, the pointwise form of the decay estimate."""
    graph = random_graph(seed, kinds)
    c, x = randn(seed + 1, graph.dimension), randn(seed + 2, graph.width)
    c.requires_grad_(True)
    energy = 0.5 * graph.residual(c, x).square().sum()
    (slope,) = torch.autograd.grad(energy, c)
    jacobian = graph.jacobian(c.detach(), x)
    least = torch.linalg.svdvals(jacobian)[-1] ** 2
    assert least > 0
    assert slope.square().sum() >= 2 * least * energy.detach() * (1 - 1e-9)


@pytest.mark.parametrize("seed", range(8))
def test_every_pattern_gives_a_positive_definite_laplacian_with_determinant_one(seed):
    net = ReluPath.random([2, 3, 4, 2], np.random.default_rng(seed))
    for mask in patterns(net.gates):
        delta = net.coboundary(mask)
        eigenvalues = np.linalg.eigvalsh(delta.T @ delta)
        assert eigenvalues[0] > 0
        assert np.prod(eigenvalues) == pytest.approx(1.0, abs=1e-7)
        assert eigenvalues[0] <= 1.0 + 1e-12 <= eigenvalues[-1] + 1e-9


@given(seed=seeds, zeros=st.integers(1, 3))
@settings(max_examples=25, deadline=None)
def test_no_clarke_critical_point_but_the_forward_pass(seed, zeros):
    """At a kink, every convex combination of limiting gradients stays away from 0 unless r = 0."""
    rng = np.random.default_rng(seed)
    net = ReluPath.random([2, 3, 1], rng)
    x = rng.standard_normal(2)
    c = rng.standard_normal(net.dimension)
    c[net.gate_columns()[:zeros]] = 0.0
    residual = net.residual(c, x)
    mask = net.mask_of(c)
    limits, least = [], np.inf
    for bits in itertools.product((0.0, 1.0), repeat=zeros):
        delta = net.coboundary(np.concatenate([bits, mask[zeros:]]))
        limits.append(delta.T @ residual)
        least = min(least, np.linalg.svd(delta, compute_uv=False)[-1])
    shortest = smallest_in_hull(np.array(limits))
    assert shortest >= least * np.linalg.norm(residual) * (1 - 1e-4)


@given(seed=seeds)
@few
def test_chain_rule_along_a_curve_inside_a_wall(seed):
    """While z_1 stays 0, d/dt E is the same for both one-sided gradients (T2, step 4)."""
    rng = np.random.default_rng(seed)
    net = ReluPath.random([2, 3, 1], rng)
    x, c, speed = (
        rng.standard_normal(2),
        rng.standard_normal(net.dimension),
        rng.standard_normal(net.dimension),
    )
    c[0] = speed[0] = 0.0
    h = 1e-6
    derivative = (net.energy(c + h * speed, x) - net.energy(c - h * speed, x)) / (2 * h)
    for bit in (0.0, 1.0):
        mask = net.mask_of(c)
        mask[0] = bit
        slope = net.coboundary(mask).T @ net.residual(c, x)
        assert slope @ speed == pytest.approx(derivative, abs=1e-5 * (1 + np.linalg.norm(slope)))


@pytest.mark.parametrize("seed", range(4))
def test_energy_decays_at_the_stated_rate_on_a_smooth_graph_with_skips(seed):
    graph = random_graph(seed, SMOOTH, size=6)
    x = randn(seed + 100, graph.width)
    start = randn(seed + 200, graph.dimension).numpy()

    def velocity(_, c):
        state = torch.from_numpy(c)
        return -(graph.jacobian(state, x).T @ graph.residual(state, x)).numpy()

    times = np.linspace(0, 6, 61)
    path = solve_ivp(velocity, (0, 6), start, t_eval=times, rtol=1e-9, atol=1e-11).y.T
    energies, least = [], np.inf
    for c in path:
        state = torch.from_numpy(c)
        energies.append(0.5 * float(graph.residual(state, x).square().sum()))
        least = min(least, float(torch.linalg.svdvals(graph.jacobian(state, x))[-1]) ** 2)
    assert np.all(np.diff(energies) <= 1e-12)
    # 2% off the rate: its minimum is taken over sampled times only.
    bound = energies[0] * np.exp(-2 * 0.98 * least * times)
    assert np.all(np.array(energies) <= bound + 1e-12)
    assert energies[-1] < energies[0]


def test_distance_to_the_solution_may_grow_while_the_energy_falls():
    """The example of docs/theory.md T2: two gates, started on the wrong side of the second."""
    net = ReluPath(
        (np.array([[1.0]]), np.array([[8.0]]), np.array([[1.0]])),
        (np.zeros(1), np.array([-10.0]), np.zeros(1)),
    )
    x = np.array([1.0])
    goal = net.substitute(x)
    c = np.array([1.0, 1.375, 1.0, 2.0, 2.0])
    slope = net.coboundary(net.mask_of(c)).T @ net.residual(c, x)
    step = -1e-3 * slope
    assert np.linalg.norm(c + step - goal) > np.linalg.norm(c - goal)
    assert net.energy(c + step, x) < net.energy(c, x)
    assert (c - goal) @ slope == pytest.approx(-0.859375)


@pytest.mark.parametrize("held", [0, 1, 3])
def test_holding_more_keeps_injectivity_and_opens_as_many_obstructions(held):
    """Relative H⁰ = 0 always; dim H¹ = number of held coordinates beyond the input."""
    net = ReluPath.random([2, 4, 3], np.random.default_rng(held))
    for mask in patterns(net.gates):
        delta = net.coboundary(mask)[:, : net.dimension - held]
        rank = np.linalg.matrix_rank(delta)
        assert delta.shape[1] - rank == 0
        assert delta.shape[0] - rank == held
