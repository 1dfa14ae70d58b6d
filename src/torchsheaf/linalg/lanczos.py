"""Extreme eigenpairs of a batch of symmetric operators by block Lanczos."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Eigenpairs:
    """The largest eigenpairs of an operator, per sample.

    `values` (batch, k) descending; `vectors` (batch, n, k) with orthonormal columns; `residual`
    (batch, k) is ‖A v − θ v‖; `products` counts operator applications per sample (a block of p
    vectors counts p).
    """

    values: Tensor
    vectors: Tensor
    residual: Tensor
    products: int


def lanczos(
    operator: Callable[[Tensor], Tensor],
    start: Tensor,
    k: int,
    *,
    tol: float,
    max_basis: int = 400,
) -> Eigenpairs:
    """Largest k eigenpairs of symmetric A by block Lanczos with full reorthogonalisation.

    `operator` maps `(p, batch, n)` to the same shape (p vectors per sample at once). `start` is
    `(batch, n, p)`: with p ≥ k, eigenvalues of multiplicity up to p are found with their
    multiplicity, which single-vector Lanczos cannot do. Stops when every sample's Ritz residual
    is ≤ tol·|θ|, or the basis spans the space, or `max_basis` is reached (see `residual`).

    Cost: one application of A to p vectors per step; memory O(batch · n · basis).
    Reference: Golub & Van Loan, Matrix Computations, §10.3.
    """
    batch, n, block = start.shape
    k = min(k, n)
    basis = torch.linalg.qr(start)[0]
    images = basis.new_zeros(batch, n, 0)
    while True:
        fresh = basis[..., images.shape[2] :]
        image = operator(fresh.permute(2, 0, 1)).permute(1, 2, 0)
        images = torch.cat([images, image], 2)
        pairs = _ritz(basis, images, k)
        done = bool((pairs.residual <= tol * pairs.values.abs()).all())
        size = basis.shape[2]
        if (done and size > k) or size >= n or size + min(block, n - size) > max(max_basis, k):
            return pairs
        basis = _extend(basis, image)


def _ritz(basis: Tensor, images: Tensor, k: int) -> Eigenpairs:
    projected = basis.mT @ images
    theta, s = torch.linalg.eigh((projected + projected.mT) / 2)
    k = min(k, theta.shape[1])
    theta, s = theta[:, -k:].flip(1), s[..., -k:].flip(2)
    vectors = basis @ s
    residual = (images @ s - vectors * theta[:, None, :]).norm(dim=1)
    return Eigenpairs(theta, vectors, residual, basis.shape[2])


def _extend(basis: Tensor, image: Tensor) -> Tensor:
    """Append an orthonormal basis of the new directions; lost directions become random ones."""
    room = basis.shape[1] - basis.shape[2]
    block = image[..., : min(image.shape[2], room)]
    scale = block.norm(dim=1, keepdim=True).clamp_min(torch.finfo(block.dtype).tiny)
    block = block / scale
    block = block - basis @ (basis.mT @ block)
    # A direction that A does not leave (invariant subspace) carries only rounding: replace it, so
    # that a repeated eigenvalue in the complement is still found.
    generator = torch.Generator(device="cpu").manual_seed(basis.shape[2])
    noise = torch.randn(block.shape, generator=generator, dtype=block.dtype).to(block.device)
    lost = block.norm(dim=1, keepdim=True) < 1e3 * torch.finfo(block.dtype).eps
    block = torch.where(lost, noise, block)
    for _ in range(2):
        block = block - basis @ (basis.mT @ block)
        block = torch.linalg.qr(block)[0]
    return torch.cat([basis, block], 2)
