"""Extreme eigenpairs of a batch of symmetric operators by block Lanczos."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from torchsheaf.draws import standard_normal


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
    """The largest eigenpair by the three-term recurrence, its basis kept for the vector.

    The projected matrix is tridiagonal and the residual is β_m |s_m|. Orthogonality is lost only
    towards Ritz vectors that have converged (Paige 1980), and a sample takes no further part once
    its largest one has, so nothing is reorthogonalised: a step costs its product and little more.
    """
    batch, n = start.shape
    tiny, eps = torch.finfo(start.dtype).tiny, torch.finfo(start.dtype).eps
    basis = start.new_zeros(min(most, 16), batch, n)
    torch.mul(start, 1 / start.norm(dim=1, keepdim=True).clamp_min(tiny), out=basis[0])
    found = Eigenpairs(
        start.new_zeros(batch, 1), torch.zeros_like(start)[..., None], start.new_zeros(batch, 1), 0
    )
    scale = start.new_zeros(batch)
    alive = torch.ones(batch, dtype=torch.bool, device=start.device)
    left = alive.clone()
    alphas: list[Tensor] = []
    betas: list[Tensor] = []
    look, before = min(8, most), (0, 0.0)
    while True:
        size = len(alphas) + 1
        v = basis[size - 1]
        w = operator(v[None])[0]
        if size > 1:
            w = torch.addcmul(w, betas[-1][:, None], basis[size - 2], value=-1)
        alphas.append(torch.linalg.vecdot(w, v))
        w = torch.addcmul(w, alphas[-1][:, None], v, value=-1)
        beta = torch.linalg.vector_norm(w, dim=1)
        scale = torch.maximum(scale, alphas[-1].abs() + beta)
        alive = alive & (beta > 64 * eps * scale)
        betas.append(torch.where(alive, beta, 0.0))
        if size >= look or size == most or not bool(alive.any()):
            excess = _take(found, basis[:size], alphas, betas, left, tol, last=size == most)
            if not bool(left.any()):
                return replace(found, products=size)
            look, before = _next_look(size, excess, before), (size, excess)
            alive = alive & left
        if size == basis.shape[0]:
            basis = torch.cat([basis, basis.new_zeros(min(size, most - size), batch, n)])
        torch.mul(w, (alive / beta.clamp_min(tiny))[:, None], out=basis[size])


def _take(
    found: Eigenpairs, basis: Tensor, alphas: list[Tensor], betas: list[Tensor], left: Tensor,
    tol: float, *, last: bool,
) -> float:  # fmt: skip
    """Write the pairs of the samples that have converged; log₁₀ of the worst residual over tol.

    A sample whose Krylov space ended earlier has β = 0 there: what follows is no part of it.
    """
    index = left.nonzero().squeeze(1)
    alpha, beta = torch.stack(alphas, 1)[index], torch.stack(betas, 1)[index]
    ended = (beta[:, :-1] == 0).cumsum(1) > 0
    floor = alpha.amin(1, keepdim=True) - 4 * (alpha.abs() + beta).amax(1, keepdim=True) - 1
    alpha[:, 1:] = torch.where(ended, floor, alpha[:, 1:])
    theta, s = _tridiagonal(alpha, beta[:, :-1])
    residual = beta[:, -1] * s[:, -1].abs()
    ratio = residual / (tol * theta.abs()).clamp_min(torch.finfo(theta.dtype).tiny)
    done = torch.ones_like(ratio, dtype=torch.bool) if last else ratio <= 1
    where = index[done]
    vectors = torch.einsum("bm,mbn->bn", s[done], basis[:, where])
    found.values[where, 0], found.residual[where, 0] = theta[done], residual[done]
    found.vectors[where, :, 0] = vectors / vectors.norm(dim=1, keepdim=True)
    left[where] = False
    return float(ratio.amax().log10())


def _next_look(size: int, excess: float, before: tuple[int, float]) -> int:
    """Where the worst residual should reach tol, extrapolated; a third further at most."""
    furthest = size + max(1, size // 3)
    slope = (before[1] - excess) / (size - before[0]) if before[0] else 0.0
    return min(furthest, size + max(1, round(excess / slope))) if slope > 0 else furthest


def _tridiagonal(alpha: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    """Largest eigenpair of each symmetric tridiagonal matrix, diagonals `(batch, m)`, `m − 1`."""
    matrix = torch.diag_embed(alpha) + torch.diag_embed(beta, 1)
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
    noise = standard_normal(block.shape, generator, block.dtype, block.device)
    lost = block.norm(dim=1, keepdim=True) < 1e3 * torch.finfo(block.dtype).eps
    block = torch.where(lost, noise, block)
    for _ in range(2):
        block = block - basis @ (basis.mT @ block)
        block = torch.linalg.qr(block)[0]
    return torch.cat([basis, block], 2)
