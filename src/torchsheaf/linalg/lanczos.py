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
    if k == 1 and block == 1:
        return _single(operator, start[..., 0], tol=tol, most=min(n, max(max_basis, 1)))
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


def _single(
    operator: Callable[[Tensor], Tensor], start: Tensor, *, tol: float, most: int
) -> Eigenpairs:
    """The largest eigenpair by the three-term recurrence, its basis kept and reorthogonalised.

    The projected matrix is tridiagonal and the residual is β_m |s_m|, so that a step costs little
    more than its product: with many small samples the block version's algebra outweighs it.
    """
    batch, n = start.shape
    tiny, eps = torch.finfo(start.dtype).tiny, torch.finfo(start.dtype).eps
    basis = start.new_zeros(batch, min(most, 16), n)
    basis[:, 0] = start / start.norm(dim=1, keepdim=True).clamp_min(tiny)
    scale = start.new_zeros(batch)
    alive = torch.ones(batch, dtype=torch.bool, device=start.device)
    alphas: list[Tensor] = []
    betas: list[Tensor] = []
    # One small eigenproblem per sample: with many samples, only at geometrically spaced sizes.
    sparing = 3 if batch > 32 else most
    look = 8 if batch > 32 else 2
    while True:
        size = len(alphas) + 1
        known = basis[:, :size]
        v = known[:, -1]
        w = operator(v[None])[0]
        alpha = (w * v).sum(1)
        scale = torch.maximum(scale, w.norm(dim=1))
        # An exhausted Krylov space gets a diagonal entry below its own eigenvalues: no part in it.
        alphas.append(torch.where(alive, alpha, alphas[0] - 4 * scale - 1 if alphas else alpha))
        w = w - v * alpha[:, None]
        w = torch.baddbmm(w[:, None, :], w[:, None, :] @ known.mT, known, alpha=-1)[:, 0]
        beta = w.norm(dim=1)
        alive = alive & (beta > 64 * eps * scale)
        betas.append(torch.where(alive, beta, 0.0))
        last = size == most or not bool(alive.any())
        if last or size >= look:
            theta, s = _tridiagonal(alphas, betas[:-1])
            residual = betas[-1] * s[:, -1].abs()
            if last or bool((residual <= tol * theta.abs()).all()):
                vectors = (s[:, None, :] @ known)[:, 0]
                vectors = vectors / vectors.norm(dim=1, keepdim=True).clamp_min(tiny)
                return Eigenpairs(theta[:, None], vectors[..., None], residual[:, None], size)
            look = size + max(1, size // sparing)
        if size == basis.shape[1]:
            basis = torch.cat([basis, basis.new_zeros(batch, min(size, most - size), n)], 1)
        torch.mul(w, (alive / beta.clamp_min(tiny))[:, None], out=basis[:, size])


def _tridiagonal(alphas: list[Tensor], betas: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Largest eigenpair of each sample's tridiagonal matrix."""
    matrix = torch.diag_embed(torch.stack(alphas, 1))
    if betas:
        matrix = matrix + torch.diag_embed(torch.stack(betas, 1), 1)
    theta, s = torch.linalg.eigh(matrix, UPLO="U")
    return theta[:, -1], s[..., -1]


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
