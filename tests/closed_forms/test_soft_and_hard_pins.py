"""Pins in closed form: the paper's table of section 5.2, det of a pinned Laplacian, γ → ∞."""

import math

import pytest
import torch

from tests.reference.networks import linear_mlp, paper_network, randn, relu_mlp
from torchsheaf import Pin, Problem, encode, harmonic_extension, hold

# γ: (z1_1, z1_2, output), printed by the authors; [2,4,1], weights of seed 42, x = (1, 0.5).
PRINTED = {
    0.1: (0.364632, 0.317844, 1.162022),
    1.0: (0.200548, 0.174814, 0.639112),
    10.0: (0.036463, 0.031784, 0.116202),
    100.0: (0.003971, 0.003462, 0.012656),
}


@pytest.fixture(scope="module")
def paper() -> Problem:
    x = torch.tensor([[1.0, 0.5]], dtype=torch.float64)
    return hold(encode(paper_network([2, 4, 1], 42), x), x)


def test_the_forward_pass_has_the_printed_digits(paper: Problem) -> None:
    extension = harmonic_extension(paper)
    printed = torch.tensor([[0.4011, 0.3496, -1.216, 1.8892]], dtype=torch.float64)
    assert (extension.cochain["0"] - printed).abs().max() <= 0.5e-4 + 1e-12
    assert abs(float(extension.output) - 1.278224) <= 0.5e-6


@pytest.mark.parametrize("gamma", PRINTED)
def test_soft_pins_have_the_printed_digits(paper: Problem, gamma: float) -> None:
    """z¹ pulled towards 0 with weight γ: z¹ = forward/(1+γ) where active, and so the output."""
    extension = harmonic_extension(paper.pin(Pin("0", 0.0, weight=gamma)), tol=1e-12)
    first, second, out = PRINTED[gamma]
    assert abs(float(extension.cochain["0"][0, 0]) - first) <= 0.5e-6
    assert abs(float(extension.cochain["0"][0, 1]) - second) <= 0.5e-6
    assert abs(float(extension.output) - out) <= 0.5e-6
    forward = paper.start("forward")
    assert torch.allclose(extension.cochain["0"], forward["0"] / (1 + gamma), atol=1e-10)
    assert torch.allclose(extension.output, forward["2"] / (1 + gamma), atol=1e-10)


def test_a_hard_pin_has_the_printed_digits(paper: Problem) -> None:
    extension = harmonic_extension(paper.pin(Pin("0", 0.5, where=[0])), tol=1e-12)
    assert float(extension.cochain["0"][0, 0]) == 0.5
    assert abs(float(extension.output) - 1.310511) <= 0.5e-6


@pytest.mark.parametrize("gamma", [0.3, 1.0, 25.0])
def test_det_of_a_pinned_laplacian(gamma: float) -> None:
    """det(L + γPᵀP) = det(I + γ P L⁻¹ Pᵀ) ≥ 1, two pins of different weight together."""
    net, x = relu_mlp([3, 5, 4, 2], 3), randn(4, 2, 3)
    free = hold(encode(net, x), x)
    problem = free.pin(Pin("0", 0.2, where=[1, 3], weight=gamma), Pin("4", 1.0, weight=2 * gamma))
    at = problem.start("forward")
    pinned = problem.laplacian(at).to_dense()
    inverse = torch.linalg.inv(free.laplacian(at).to_dense())
    rows = torch.tensor([1, 3, problem.free.dim - 2, problem.free.dim - 1])
    gammas = torch.tensor([gamma, gamma, 2 * gamma, 2 * gamma], dtype=torch.float64)
    small = torch.eye(4).double() + gammas[:, None] * inverse[:, rows[:, None], rows]
    determinant = torch.linalg.det(pinned)
    assert torch.allclose(determinant, torch.linalg.det(small), rtol=1e-10)
    assert bool((determinant > 1).all())


def test_a_soft_pin_becomes_hard_at_rate_one_over_gamma() -> None:
    """‖c_γ − c_∞‖ = O(1/γ): slope −1 in the logarithms, on a net without gates."""
    net, x = linear_mlp([3, 4, 3, 2], 5), randn(6, 4, 3)
    free = hold(encode(net, x), x)

    def solved(gamma: float) -> torch.Tensor:
        problem = free.pin(Pin("1", randn(7, 2), where=[0, 2], weight=gamma))
        forward = problem.start("forward")
        step, _ = problem.laplacian(forward).solve(problem.gradient(forward))
        c = {n: forward[n] - step[n] if n in step else forward[n] for n in forward}
        return problem.sheaf.space.flatten(problem.clamp(c))

    hard = solved(math.inf)
    errors = [float((solved(g) - hard).norm()) for g in (1e2, 1e3, 1e4)]
    slopes = [math.log10(b / a) for a, b in zip(errors, errors[1:], strict=False)]
    assert errors[0] > 1e-4
    assert slopes == pytest.approx([-1, -1], abs=0.05)
