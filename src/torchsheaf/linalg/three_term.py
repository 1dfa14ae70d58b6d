"""The largest eigenvalue of a batch of symmetric operators in the memory of three vectors."""

from collections.abc import Callable

import torch
from torch import Tensor

from torchsheaf.linalg.lanczos import Eigenpairs


def three_term_lanczos(
    operator: Callable[[Tensor], Tensor],
    start: Tensor,
    *,
    tol: float,
    max_products: int = 400,
) -> Eigenpairs:
    """Largest eigenvalue of positive semidefinite A by the Lanczos recurrence, without vectors.

    `operator` maps `(batch, n)` to a new tensor of that shape; `start` (batch, n) is overwritten.
    The recurrence keeps two vectors and the product; without reorthogonalisation copies of
    converged eigenvalues appear later in the spectrum, which the largest one does not feel.
    `residual` of the result is the error estimate of the value, r min(1, r/δ), with r = β_m |s_m|
    and δ the distance to the next Ritz value; stops when it is ≤ tol·|θ| for every sample.
    `vectors` is empty.

    Cost: one application of A per step. Reference: Parlett, The Symmetric Eigenvalue Problem,
    §11.7 (|λ − θ| ≤ r²/δ with δ the distance to the other eigenvalues).
    """
    batch, n = start.shape
    v = start.div_(start.norm(dim=1, keepdim=True))
    before: Tensor | None = None
    alphas: list[Tensor] = []
    betas: list[Tensor] = []
    while True:
        w = operator(v)
        if before is not None:
            _subtract(w, betas[-1], before)
        alphas.append(torch.bmm(w[:, None], v[:, :, None])[:, 0, 0])  # no large temporary
        _subtract(w, alphas[-1], v)
        beta = w.norm(dim=1)
        theta, next_theta, last = _top(alphas, betas)
        residual = beta * last.abs()
        apart = theta - next_theta
        residual = torch.where(residual < apart, residual.square() / apart, residual)
        scale = torch.stack(alphas).abs().amax(0)
        ended = beta <= 10 * torch.finfo(v.dtype).eps * scale
        done = bool(((residual <= tol * theta.abs()) | ended).all())
        if done or len(alphas) >= min(max_products, n):
            return Eigenpairs(
                theta[:, None], v.new_zeros(batch, n, 0), residual[:, None], len(alphas)
            )
        before, v = v, w.div_(torch.where(ended, torch.ones_like(beta), beta)[:, None])
        # an exhausted Krylov space ends a sample: its further coefficients are zero
        v[ended] = 0
        betas.append(torch.where(ended, torch.zeros_like(beta), beta))


def _subtract(w: Tensor, factor: Tensor, v: Tensor) -> None:
    w.addcmul_(factor[:, None], v, value=-1)  # no large temporary


def _top(alphas: list[Tensor], betas: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Two largest eigenvalues of the tridiagonal matrices, and the largest's vector's last entry.

    Of a 1 × 1 matrix the two are one.
    """
    diagonal = torch.stack(alphas, 1).double()
    matrix = torch.diag_embed(diagonal)
    if betas:
        off = torch.stack(betas, 1).double()
        matrix = matrix + torch.diag_embed(off, 1) + torch.diag_embed(off, -1)
    theta, s = torch.linalg.eigh(matrix)
    dtype, second = alphas[0].dtype, max(theta.shape[1] - 2, 0)
    return theta[:, -1].to(dtype), theta[:, second].to(dtype), s[:, -1, -1].to(dtype)
