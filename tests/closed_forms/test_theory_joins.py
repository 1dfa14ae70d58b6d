"""Sums on graphs: two binary edges cannot express one; what the chord model solves instead."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from tests.closed_forms.theory_reference import ReluPath, pinned_minimum

seeds = st.integers(0, 10_000)
few = settings(max_examples=40, deadline=None)


def residual_branch(seed, n=3):
    """out = ReLU(W2 ReLU(W1 x + b1) + b2) as a path; its last affine edge is an identity copy."""
    rng = np.random.default_rng(seed)
    first, second = rng.standard_normal((2, n, n)) / np.sqrt(n)
    return rng, ReluPath(
        (first, second, np.eye(n)), (*(0.3 * rng.standard_normal((2, n))), np.zeros(n))
    )


@given(seed=seeds, chord=st.floats(0.05, 20))
@few
def test_chord_is_a_soft_pin_of_the_output_at_the_input(seed, chord):
    """With the pattern fixed: E* = ½ dᵀ(K + I/γ)⁻¹ d, d = x − f(x); never the residual block."""
    rng, net = residual_branch(seed)
    x = rng.standard_normal(3)
    forward = net.substitute(x)
    delta, rows = net.coboundary(net.mask_of(forward)), net.output_rows()
    stacked = np.vstack([delta, np.sqrt(chord) * rows])
    target = np.concatenate([net.offset(x), np.sqrt(chord) * x])
    c, *_ = np.linalg.lstsq(stacked, target)
    found = 0.5 * np.sum((stacked @ c - target) ** 2)
    k = rows @ np.linalg.inv(delta.T @ delta) @ rows.T
    d = x - rows @ forward
    lam = np.linalg.solve(k + np.eye(3) / chord, d)
    assert found == pytest.approx(0.5 * d @ lam, rel=1e-8)
    np.testing.assert_allclose(rows @ c, rows @ forward + k @ lam, atol=1e-8)
    np.testing.assert_allclose(c, pinned_minimum(delta, net.offset(x), rows, x, chord), atol=1e-8)
    assert np.linalg.norm(rows @ c - (rows @ forward + x)) > 1e-3
    assert found >= 0.5 * d @ d / (1 / chord + np.linalg.norm(k, 2)) * (1 - 1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_lower_bound_for_the_chord_with_real_relus(seed):
    """min E ≥ ½|x − f(x)|² / (1/γ + Λ²), Λ = worst pattern's norm of the output rows of δ⁻¹."""
    rng, net = residual_branch(seed, n=2)
    x, rows = rng.standard_normal(2), net.output_rows()
    worst = max(
        np.linalg.norm(rows @ np.linalg.inv(net.coboundary(np.array(bits))), 2)
        for bits in itertools.product((0.0, 1.0), repeat=net.gates)
    )
    gap = x - rows @ net.substitute(x)

    def energy(c):
        return net.energy(c, x) + 0.5 * np.sum((rows @ c - x) ** 2)

    starts = [net.substitute(x), *rng.standard_normal((4, net.dimension))]
    best = min(minimize(energy, s, method="Powell", options={"maxiter": 60}).fun for s in starts)
    assert best >= 0.5 * gap @ gap / (1 + worst**2) * (1 - 1e-9)
    assert best > 1e-4


def test_binary_edges_that_hold_on_every_sum_hold_everywhere():
    """All linear pairs (F_v, F_u) with F_v(c1 + c2) = F_u c1 for all c1, c2: only zero."""
    n = 2
    equations = []
    for c1, c2 in itertools.product(np.eye(n), np.zeros((1, n)).tolist() + np.eye(n).tolist()):
        total = c1 + np.array(c2)
        equations.append(np.concatenate([total, -c1]))
    for c2 in np.eye(n):
        equations.append(np.concatenate([c2, np.zeros(n)]))
    # One row of (F_v, F_u) at a time; its solutions are the kernel.
    assert np.linalg.matrix_rank(np.array(equations)) == 2 * n


@given(seed=seeds)
@few
def test_join_row_restores_determinant_one_and_the_forward_pass(seed):
    rng, net = residual_branch(seed)
    x = rng.standard_normal(3)
    offset = net.offset(x)
    offset[net.block("z", 3)] += x  # row: out − a2 − x
    delta = net.coboundary(net.mask_of(net.substitute(x)))
    c = np.linalg.solve(delta, offset)
    branch = net.output_rows() @ net.substitute(x)
    np.testing.assert_allclose(net.output_rows() @ c, branch + x, atol=1e-10)
    assert np.linalg.det(delta) == pytest.approx(1.0, abs=1e-9)


@given(seed=seeds, copy=st.floats(0.1, 100), weight=st.floats(0.1, 10))
@few
def test_product_vertex_puts_its_copies_in_series_with_the_join(seed, copy, weight):
    """min over the product vertex p = ½ sᵀ (I/w + Σ A_uA_uᵀ/w_copy)⁻¹ s, s = c_v − Σ A_u c_u."""
    rng = np.random.default_rng(seed)
    maps = rng.standard_normal((2, 3, 2))
    head, parents = rng.standard_normal(3), rng.standard_normal((2, 2))
    joined = np.hstack(list(maps))
    system = np.vstack([np.sqrt(weight) * joined, np.sqrt(copy) * np.eye(4)])
    target = np.concatenate([np.sqrt(weight) * head, np.sqrt(copy) * parents.ravel()])
    p, *_ = np.linalg.lstsq(system, target)
    s = head - joined @ parents.ravel()
    series = np.eye(3) / weight + joined @ joined.T / copy
    found = 0.5 * np.sum((system @ p - target) ** 2)
    assert found == pytest.approx(0.5 * s @ np.linalg.solve(series, s), rel=1e-8)
    assert found <= 0.5 * weight * s @ s + 1e-12
