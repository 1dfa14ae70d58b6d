"""Newton on the reduced energy (docs/notes/newton-convergence.md) arrives with a line search."""

import numpy as np
import pytest

from tests.closed_forms.test_theory_elimination import TIE, reduced_energy
from tests.closed_forms.theory_reference import ReluPath, equilibria


def frozen_states(incoming, a):
    on = (incoming + a > 0) & ((incoming >= 0) | (a > TIE * np.abs(incoming)))
    sliding = (incoming > 0) & (incoming + a <= 0)
    return on, sliding


def newton_direction(net, x, y, a):
    """(gradient, step, states) of the frozen quadratic ½|T a − …|² + ½|B a − …|²."""
    count, start = net.gates, 0
    jacobian, incoming = np.zeros((count, count)), np.zeros(count)
    below, columns = x, np.zeros((len(x), count))
    for layer in range(net.hidden):
        width = net.weights[layer].shape[0]
        rows = slice(start, start + width)
        incoming[rows] = net.weights[layer] @ below + net.biases[layer]
        jacobian[rows] = net.weights[layer] @ columns
        below, columns = a[rows], np.eye(count)[rows]
        start += width
    on, sliding = frozen_states(incoming, a)
    scale = np.where(on, np.sqrt(2), 1.0)
    t = (np.eye(count) - on[:, None] * jacobian) / scale[:, None]
    rho_t = (a - on * incoming) / scale
    out = net.weights[-1] @ below + net.biases[-1] - y
    b = np.vstack([jacobian[sliding], net.weights[-1] @ columns])
    rho_b = np.concatenate([incoming[sliding], out])
    gradient = t.T @ rho_t + b.T @ rho_b
    return gradient, -np.linalg.solve(t.T @ t + b.T @ b, gradient)


def run(net, x, y, line_search, limit=60):
    a = net.outgoing(net.substitute(x))
    for _ in range(limit):
        gradient, step = newton_direction(net, x, y, a)
        if np.linalg.norm(gradient) <= 1e-10:
            return a, True
        length, slope, here = 1.0, gradient @ step, reduced_energy(net, x, y, a)
        while line_search and reduced_energy(net, x, y, a + length * step) > (
            here + 1e-4 * length * slope + 4e-15 * here
        ):
            length /= 2
        a = a + length * step
    return a, False


@pytest.mark.parametrize("seed", range(30))
def test_line_searched_newton_ends_at_a_three_state_equilibrium(seed):
    rng = np.random.default_rng(seed)
    net = ReluPath.random([2, 3, 3, 1], rng)
    x, y = rng.standard_normal(2), 4 * rng.standard_normal(1)
    a, arrived = run(net, x, y, line_search=True)
    assert arrived
    energy = reduced_energy(net, x, y, a)
    assert min(abs(e.energy - energy) for e in equilibria(net, x, y)) < 1e-8


def test_without_the_line_search_it_cycles_on_some_nets():
    cycles = 0
    for seed in range(25):
        rng = np.random.default_rng(seed)
        net = ReluPath.random([2, 5, 5, 1], rng)
        x, y = rng.standard_normal(2), 4 * rng.standard_normal(1)
        _, arrived = run(net, x, y, line_search=False)
        cycles += not arrived
        assert run(net, x, y, line_search=True, limit=200)[1]
    assert cycles >= 1
