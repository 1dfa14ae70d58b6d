"""Extreme eigenpairs against SciPy on the assembled Laplacian, multiplicities included."""

from collections.abc import Sequence

import numpy as np
import pytest
import scipy.sparse
import scipy.sparse.linalg
import torch
from torch import nn

from tests.reference.networks import classifier, convnet, randn, relu_mlp, residual_block
from torchsheaf import ConvergenceError, Pin, Problem, encode, hold, spectrum
from torchsheaf.linalg import lanczos

TOLERANCE = 1e-8


def held(model: nn.Module, shape: Sequence[int], batch: int = 2, seed: int = 1) -> Problem:
    x = randn(seed, batch, *shape)
    return hold(encode(model, x), x)


def agrees(problem: Problem, k: int = 3, **options: object) -> None:
    """Both ends of the spectrum, every sample, and the vectors as eigenvectors."""
    at = problem.start("forward")
    laplacian = problem.laplacian(at)
    for which in ("smallest", "largest"):
        found = spectrum(problem, k, which=which, **options)  # type: ignore[arg-type]
        for m in range(problem.batch):
            dense = laplacian.to_scipy(m).toarray()
            expected = np.linalg.eigvalsh(dense)
            expected = expected[:k] if which == "smallest" else expected[::-1][:k]
            np.testing.assert_allclose(found.values[m], expected, rtol=TOLERANCE, atol=0)
            vectors = found.vectors[m].numpy()
            np.testing.assert_allclose(vectors.T @ vectors, np.eye(k), rtol=0, atol=1e-10)
            if which == "smallest":
                defect = np.linalg.solve(dense, vectors) * expected - vectors
            else:
                defect = dense @ vectors / expected - vectors
            norms = np.linalg.norm(defect, axis=0)
            assert norms.max() <= 2e-7
            np.testing.assert_allclose(found.residual[m], norms, rtol=0, atol=2e-8)


@pytest.mark.parametrize("widths", [[2, 1], [2, 4, 1], [3, 20, 15, 10, 2], [4, *[12] * 10, 3]])
def test_relu_mlps(widths: list[int]) -> None:
    agrees(held(relu_mlp(widths, 2), widths[:1]), k=1 if widths == [2, 1] else 3)


def test_other_architectures() -> None:
    agrees(held(convnet(3), (1, 8, 8)))
    agrees(held(classifier(4), (6,)))
    agrees(held(residual_block(5), (3,)))


@pytest.mark.parametrize("gamma", [0.5, 1e4, float("inf")])
def test_with_pins_and_edge_weights(gamma: float) -> None:
    """Where L is not a product of triangles, each product is a preconditioned solve."""
    x = randn(6, 2, 3)
    problem = hold(encode(relu_mlp([3, 10, 8, 2], 6), x), x, weights={"2": 3.0, "1": 0.25})
    agrees(problem)
    agrees(problem.pin(Pin("output", 0.3, weight=gamma), Pin("0", 0.1, where=[2, 5], weight=gamma)))


def test_two_thousand_free_coordinates() -> None:
    """Against sparse SciPy, whose shift-invert mode needs the assembled matrix."""
    problem = held(relu_mlp([10, 300, 300, 200, 150, 80, 4], 7), (10,), batch=1)
    assert 1_900 <= problem.free.dim <= 2_100
    matrix = problem.laplacian(problem.start("forward")).to_scipy(0).tocsc()
    start = np.random.default_rng(0).standard_normal(matrix.shape[0])
    options = {"k": 2, "return_eigenvectors": False, "tol": 1e-12, "v0": start}
    low = scipy.sparse.linalg.eigsh(matrix, sigma=0, **options)
    high = scipy.sparse.linalg.eigsh(matrix, which="LA", **options)
    found = spectrum(problem, 2, tol=1e-8).values[0]
    np.testing.assert_allclose(found, np.sort(low), rtol=TOLERANCE)
    found = spectrum(problem, 2, which="largest", tol=1e-8).values[0]
    np.testing.assert_allclose(found, np.sort(high)[::-1], rtol=TOLERANCE)


class Copies(nn.Module):
    """The same network on every part of the input: a block-diagonal Laplacian."""

    def __init__(self, copies: int) -> None:
        super().__init__()
        self.copies = copies
        self.first, self.second = nn.Linear(2, 5), nn.Linear(5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = x.reshape(-1, self.copies, 2)
        return self.second(torch.relu(self.first(parts)))


@pytest.mark.parametrize("copies", [2, 3])
def test_multiplicities_are_kept(copies: int) -> None:
    """Equal inputs to every copy: each eigenvalue occurs `copies` times, and so it is reported."""
    model = Copies(copies).double()
    single = randn(8, 3, 2)
    x = single.repeat(1, copies)
    problem = hold(encode(model, x), x)
    for which in ("smallest", "largest"):
        values = spectrum(problem, 2 * copies, which=which).values
        grouped = values.reshape(3, 2, copies)
        spread = (grouped.amax(2) - grouped.amin(2)) / grouped.amax(2)
        assert float(spread.max()) <= TOLERANCE
        assert bool(((grouped[:, 0, 0] - grouped[:, 1, 0]).abs() > 1e-3 * grouped[:, 0, 0]).all())
    agrees(problem, k=copies)


def test_the_identity_has_one_eigenvalue() -> None:
    """One linear layer: L = I, every direction an eigenvector, as many copies as asked for."""
    problem = held(nn.Linear(3, 6).double(), (3,))
    for which in ("smallest", "largest"):
        values = spectrum(problem, 6, which=which).values
        assert torch.allclose(values, torch.ones(2, 6).double(), rtol=1e-12)


def test_a_basis_that_is_too_small_is_an_error_with_the_partial_result() -> None:
    problem = held(relu_mlp([4, *[12] * 10, 3], 2), (4,))
    with pytest.raises(ConvergenceError, match="Lanczos") as caught:
        spectrum(problem, 2, which="largest", max_basis=6)
    partial = caught.value.result
    assert partial is not None
    returned = spectrum(problem, 2, which="largest", max_basis=6, throw=False)
    assert torch.equal(returned.values, partial.values)  # type: ignore[attr-defined]
    assert float(returned.residual.max()) > 1e-7


def test_block_energy_is_a_partition() -> None:
    problem = held(relu_mlp([3, 6, 4, 2], 9), (3,))
    found = spectrum(problem, 2)
    for i in range(2):
        energy = found.block_energy(i)
        assert set(energy) == set(problem.free.names)
        assert torch.allclose(sum(energy.values()), torch.ones(2).double())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"which": "middle"}, "which"), ({"k": 0}, "k is 0"), ({"k": 999}, "k is 999")],
)
def test_bad_arguments(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        spectrum(held(relu_mlp([2, 3, 1], 0), (2,)), **arguments)  # type: ignore[arg-type]


def test_no_sample_is_taken_before_it_has_converged() -> None:
    """The largest of 60 eigenvalues in one sample is far from the others, in the other close."""
    close = torch.linspace(0, 1, 60).double()
    diagonal = torch.stack([close, close**200])
    start = randn(3, 2, 60, 1)
    found = lanczos(lambda block: block * diagonal, start, 1, tol=1e-9)
    assert 8 < found.products < 60
    assert float(found.residual.max()) <= 1e-9
    torch.testing.assert_close(found.values, torch.ones(2, 1).double(), rtol=1e-13, atol=0)
    last = torch.eye(60).double()[:, -1:].expand(2, 60, 1)
    torch.testing.assert_close(found.vectors.abs(), last, rtol=0, atol=1e-7)
