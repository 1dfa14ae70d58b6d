"""T5 of docs/theory.md: pins as one small dual problem; determinants, spectra, obstructions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.closed_forms.theory_reference import ReluPath, patterns, pinned_minimum

seeds = st.integers(0, 10_000)
few = settings(max_examples=40, deadline=None)


def random_problem(seed, pins=3):
    """A net with a fixed random pattern, its offset, random pinned rows and targets."""
    rng = np.random.default_rng(seed)
    net = ReluPath.random([2, 4, 3, 2], rng)
    delta = net.coboundary(rng.integers(0, 2, net.gates).astype(float))
    chosen = rng.choice(net.dimension, pins, replace=False)
    return rng, net, delta, net.offset(rng.standard_normal(2)), np.eye(net.dimension)[chosen]


def energy(delta, offset, c):
    return 0.5 * float(np.sum((delta @ c - offset) ** 2))


@given(seed=seeds, gamma=st.sampled_from([0.01, 1.0, 50.0, np.inf]))
@few
def test_pins_are_a_dual_problem_of_the_pins_own_size(seed, gamma):
    rng, net, delta, offset, rows = random_problem(seed)
    target = rng.standard_normal(len(rows))
    c = pinned_minimum(delta, offset, rows, target, gamma)
    forward = np.linalg.solve(delta, offset)
    a = rows @ np.linalg.inv(delta)
    gap = target - rows @ forward
    soft = 0.0 if np.isinf(gamma) else 1 / gamma
    lam = np.linalg.solve(a @ a.T + soft * np.eye(len(gap)), gap)
    np.testing.assert_allclose(delta @ c - offset, a.T @ lam, atol=1e-8)
    np.testing.assert_allclose(a @ a.T, rows @ np.linalg.inv(delta.T @ delta) @ rows.T, atol=1e-8)
    whole = energy(delta, offset, c) + (
        0.0 if np.isinf(gamma) else 0.5 * gamma * np.sum((rows @ c - target) ** 2)
    )
    assert whole == pytest.approx(0.5 * gap @ lam, rel=1e-7, abs=1e-10)


@given(seed=seeds)
@few
def test_edge_weights_enter_the_dual_through_their_inverse(seed):
    rng, net, delta, offset, rows = random_problem(seed)
    weights, gamma = (
        np.exp(rng.standard_normal(net.dimension)),
        np.exp(rng.standard_normal(len(rows))),
    )
    target = rng.standard_normal(len(rows))
    hessian = delta.T @ (weights[:, None] * delta) + rows.T @ (gamma[:, None] * rows)
    c = np.linalg.solve(hessian, delta.T @ (weights * offset) + rows.T @ (gamma * target))
    a = rows @ np.linalg.inv(delta)
    gap = target - rows @ np.linalg.solve(delta, offset)
    lam = np.linalg.solve(a @ (a / weights).T + np.diag(1 / gamma), gap)
    np.testing.assert_allclose(weights * (delta @ c - offset), a.T @ lam, atol=1e-7)
    # The force w r of every edge is the reverse sweep of one injected force per pin.
    np.testing.assert_allclose(delta.T @ (weights * (delta @ c - offset)), rows.T @ lam, atol=1e-7)


@given(seed=seeds, gamma=st.floats(0.01, 100))
@few
def test_output_energy_soft_and_hard(seed, gamma):
    rng, net, delta, offset, _ = random_problem(seed)
    rows, y = net.output_rows(), rng.standard_normal(net.n_out)
    k = rows @ np.linalg.inv(delta.T @ delta) @ rows.T
    e = rows @ np.linalg.solve(delta, offset) - y
    soft = pinned_minimum(delta, offset, rows, y, gamma)
    expected = 0.5 * e @ np.linalg.solve(np.eye(len(e)) / gamma + k, e)
    found = energy(delta, offset, soft) + 0.5 * gamma * np.sum((rows @ soft - y) ** 2)
    assert found == pytest.approx(expected, rel=1e-8)
    hard = energy(delta, offset, pinned_minimum(delta, offset, rows, y, np.inf))
    assert hard == pytest.approx(0.5 * e @ np.linalg.solve(k, e), rel=1e-8)
    assert found <= hard + 1e-12


@given(seed=seeds)
@few
def test_k_is_one_term_per_edge_and_bounded_by_the_gap(seed):
    rng = np.random.default_rng(seed)
    net = ReluPath.random([2, 4, 3, 2], rng)
    mask = rng.integers(0, 2, net.gates).astype(float)
    r1, r2 = np.diag(mask[:4]), np.diag(mask[4:])
    _, w2, w3 = net.weights
    terms = [np.eye(2), w3, w3 @ r2, w3 @ r2 @ w2, w3 @ r2 @ w2 @ r1]
    inverse = np.linalg.inv(net.coboundary(mask).T @ net.coboundary(mask))
    k = net.output_rows() @ inverse @ net.output_rows().T
    np.testing.assert_allclose(k, sum(t @ t.T for t in terms), atol=1e-9)
    gap = 1 / np.linalg.eigvalsh(inverse)[-1]
    assert gap <= 1 / np.linalg.norm(k, 2) + 1e-12
    least = np.linalg.svd(net.coboundary(mask), compute_uv=False)[-1]
    assert gap == pytest.approx(least**2, rel=1e-6)


@given(seed=seeds, gamma=st.floats(0.01, 100))
@few
def test_penalty_rows_raise_the_spectrum_interlace_and_change_the_determinant(seed, gamma):
    _, net, delta, _, rows = random_problem(seed)
    laplacian = delta.T @ delta
    raised = laplacian + gamma * rows.T @ rows
    old, new, m = np.linalg.eigvalsh(laplacian), np.linalg.eigvalsh(raised), len(rows)
    assert np.all(new >= old * (1 - 1e-9))
    assert np.all(new[:-m] <= old[m:] * (1 + 1e-9))
    small = np.eye(m) + gamma * rows @ np.linalg.inv(laplacian) @ rows.T
    assert np.prod(new) == pytest.approx(np.linalg.det(small), rel=1e-6)
    assert np.linalg.det(small) >= 1
    held = np.linalg.eigvalsh((laplacian)[np.ix_(*(2 * [np.flatnonzero(rows.sum(0) == 0)]))])
    assert held[0] >= old[0] * (1 - 1e-9)


@given(seed=seeds)
@few
def test_held_energy_is_the_norm_of_an_obstruction_class(seed):
    """½|r*|² is half the squared norm of the projection of b̃ on (im δ')^⊥ ≅ H¹(G, U)."""
    rng, net, delta, offset, _ = random_problem(seed)
    out = net.block("z", net.hidden + 1)
    y = rng.standard_normal(net.n_out)
    free, target = delta[:, : out.start], offset - delta[:, out] @ y
    q, _ = np.linalg.qr(free)
    harmonic = target - q @ (q.T @ target)
    hard = energy(delta, offset, pinned_minimum(delta, offset, net.output_rows(), y, np.inf))
    assert 0.5 * harmonic @ harmonic == pytest.approx(hard, rel=1e-8)
    assert delta.shape[0] - np.linalg.matrix_rank(free) == net.n_out


@given(seed=seeds)
@few
def test_newton_matrix_is_the_dual_matrix_of_pins_on_output_and_sliding_gates(seed):
    """I + GGᵀ = P δ⁻¹δ⁻ᵀ Pᵀ, mask 0 at sliding gates, P = sliding z rows and output rows."""
    rng = np.random.default_rng(seed)
    net = ReluPath.random([2, 4, 3, 2], rng)
    state = rng.integers(0, 3, net.gates)
    on, sliding = (state == 1) * 1.0, state == 2
    delta = net.coboundary(on)
    rows = np.vstack([np.eye(net.dimension)[net.gate_columns()[sliding]], net.output_rows()])
    g = reduced_newton_rows(net, on, sliding)
    np.testing.assert_allclose(
        np.eye(len(rows)) + g @ g.T, rows @ np.linalg.inv(delta.T @ delta) @ rows.T, atol=1e-9
    )


def reduced_newton_rows(net, on, sliding):
    """G = B T⁻¹ of the problem in a: T = D⁻¹(1 − S ∂c/∂a), B = ∂(c on sliding rows, c_out)/∂a."""
    n1, n2 = (w.shape[0] for w in net.weights[:-1])
    incoming = np.zeros((n1 + n2, n1 + n2))
    incoming[n1:, :n1] = net.weights[1]
    scale = np.where(on > 0, np.sqrt(2), 1.0)
    t = (np.eye(n1 + n2) - on[:, None] * incoming) / scale[:, None]
    output = np.hstack([np.zeros((net.n_out, n1)), net.weights[2]])
    return np.vstack([incoming[sliding], output]) @ np.linalg.inv(t)


@pytest.mark.parametrize("seed", range(3))
def test_dual_conjugate_gradient_ends_after_as_many_steps_as_pins(seed):
    rng, net, delta, offset, rows = random_problem(seed, pins=4)
    a = rows @ np.linalg.inv(delta)
    matrix, gap = a @ a.T, rng.standard_normal(4)
    lam, residual = np.zeros(4), gap.copy()
    direction = residual.copy()
    for _ in range(4):
        step = (residual @ residual) / (direction @ matrix @ direction)
        lam, fresh = lam + step * direction, residual - step * matrix @ direction
        direction = fresh + (fresh @ fresh) / (residual @ residual) * direction
        residual = fresh
    np.testing.assert_allclose(matrix @ lam, gap, atol=1e-6)


def test_positive_definite_for_every_pattern_with_pins_too():
    _, net, _, _, rows = random_problem(3)
    for mask in patterns(net.gates):
        delta = net.coboundary(mask)
        assert np.linalg.eigvalsh(delta.T @ delta + 0.5 * rows.T @ rows)[0] > 0
