"""What the Krylov solvers say of their own error, against dense algebra."""

import pytest
import torch
from torch import Tensor

from tests.reference.networks import randn
from torchsheaf.linalg import lanczos, three_term_lanczos
from torchsheaf.linalg.exponential import krylov_modes


def symmetric(seed: int, batch: int, n: int) -> Tensor:
    """Positive definite, eigenvalues 0.05 … about 5."""
    q = torch.linalg.qr(randn(seed, batch, n, n))[0]
    values = torch.linspace(0.2, 2.2, n).double().square()
    return (q * values) @ q.mT


@pytest.mark.parametrize(("k", "block", "most"), [(1, 1, 5), (2, 3, 9), (2, 2, 4)])
def test_the_residual_of_a_pair_is_that_of_its_vector(k: int, block: int, most: int) -> None:
    a = symmetric(1, 4, 12)
    found = lanczos(
        lambda v: (a @ v[..., None])[..., 0], randn(2, 4, 12, block), k, tol=1e-14, max_basis=most
    )
    left = a @ found.vectors - found.vectors * found.values[:, None]
    torch.testing.assert_close(found.residual, left.norm(dim=1), rtol=1e-9, atol=1e-13)
    assert float(found.residual.min()) > 1e-4
    torch.testing.assert_close(
        found.vectors.mT @ found.vectors, torch.eye(k).double().expand(4, k, k)
    )
    assert found.products == most


def test_a_block_that_loses_a_direction_goes_on_with_a_random_one() -> None:
    """Eigenvalues 3, 3, 2, 1 and a start inside one eigenspace: the second 3 is found."""
    a = torch.diag(torch.tensor([3.0, 3.0, 2.0, 1.0, 0.5])).double()[None]
    start = torch.zeros(1, 5, 2).double()
    start[0, 0, 0] = start[0, 3, 1] = 1
    found = lanczos(lambda v: (a @ v[..., None])[..., 0], start, 2, tol=1e-12)
    torch.testing.assert_close(found.values, torch.tensor([[3.0, 3.0]]).double())


def test_a_space_that_ends_before_the_others_adds_no_eigenvalue() -> None:
    """All eigenvalues are negative: a row of zeros would be the largest of them."""
    values = -torch.linspace(1.0, 5.0, 9).double()
    start = torch.stack([torch.eye(9).double()[4], torch.ones(9).double()])[..., None]
    found = lanczos(lambda v: v * values, start, 1, tol=1e-12)
    torch.testing.assert_close(found.values[:, 0], values[[4, 0]])
    torch.testing.assert_close(found.vectors[0, :, 0].abs(), torch.eye(9).double()[4])


@pytest.mark.parametrize("products", [1, 2, 4])
def test_the_error_of_a_value_is_estimated_by_its_gap(products: int) -> None:
    a, start = symmetric(3, 4, 12), randn(4, 4, 12)
    found = three_term_lanczos(
        lambda v: (a @ v[..., None])[..., 0], start.clone(), tol=1e-14, max_products=products
    )
    powers = [start]
    for _ in range(products - 1):
        powers.append((a @ powers[-1][..., None])[..., 0])
    q = torch.linalg.qr(torch.stack(powers, 2))[0]
    theta, s = torch.linalg.eigh(q.mT @ a @ q)
    vector = (q @ s)[..., -1]
    r = ((a @ vector[..., None])[..., 0] - theta[:, -1:] * vector).norm(dim=1)
    apart = theta[:, -1] - theta[:, max(products - 2, 0)]
    expected = torch.where(r < apart, r.square() / apart, r)
    torch.testing.assert_close(found.values[:, 0], theta[:, -1])
    torch.testing.assert_close(found.residual[:, 0], expected, rtol=1e-8, atol=0)
    assert found.products == products


@pytest.mark.parametrize("basis", [3, 6, 9, 12])
def test_modes_are_as_exact_as_they_say_up_to_their_horizon(basis: int) -> None:
    a, velocity = symmetric(5, 6, 12), randn(6, 6, 12)
    tol = torch.tensor([1e-10, 1e-8, 1e-6, 1e-4, 1e-2, 1e-1]).double()
    modes = krylov_modes(lambda v: (a @ v[..., None])[..., 0], velocity, tol=tol, max_basis=basis)
    rates, q = torch.linalg.eigh(a)
    if basis == 12:
        assert bool(modes.horizon.isinf().all())
    else:
        assert bool((modes.horizon.diff() > 0).all())  # a looser tolerance sees further
    for part in (0.1, 1.0):
        s = part * modes.horizon.clamp_max(50.0)
        weight = -torch.expm1(-rates * s[:, None]) / rates
        exact = (q @ (weight * (velocity[:, None] @ q)[:, 0])[..., None])[..., 0]
        error = (modes.shift(s) - exact).norm(dim=1)
        assert bool((error <= tol + 1e-13).all())
        # nor much shorter than need be: the bound is not far above the error
        assert part < 1 or basis == 12 or bool((error >= 1e-3 * tol).all())


def test_modes_of_samples_whose_space_ends_early_are_exact() -> None:
    """Velocities in the span of 0, 1, 2 and 3 eigenvectors, together."""
    rates = torch.linspace(0.2, 5.0, 12).double()
    velocity = torch.zeros(4, 12).double()
    for m in range(4):
        velocity[m, 3 : 3 + m] = 1.0
    modes = krylov_modes(
        lambda v: v * rates, velocity, tol=torch.full((4,), 1e-9).double(),
        max_basis=6,
    )  # fmt: skip
    assert bool(modes.horizon.isinf().all())
    s = torch.full((4,), 2.5).double()
    exact = velocity * -torch.expm1(-rates * 2.5) / rates
    torch.testing.assert_close(modes.shift(s), exact, rtol=0, atol=1e-12)
