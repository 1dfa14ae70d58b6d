"""Preconditioned conjugate gradients for a batch of positive definite operators."""

from collections.abc import Callable

import torch

from torchsheaf.cochain import Cochain

Operator = Callable[[Cochain], Cochain]


def conjugate_gradient(
    operator: Operator,
    b: Cochain,
    precondition: Operator,
    *,
    tol: float,
    max_steps: int = 10_000,
) -> tuple[Cochain, int]:
    """Solve A x = b per sample, with M⁻¹ ≈ A⁻¹; returns x and the number of steps.

    A sample stops moving when its preconditioned residual norm √(rᵀM⁻¹r) is ≤ tol times the
    first. Reference: Saad, Iterative Methods, algorithm 9.1.
    """
    x = b.map(torch.zeros_like)
    r = b
    z = precondition(r)
    p = z
    rz = r.dot(z)
    goal = tol**2 * rz
    for step in range(max_steps):
        active = rz > goal
        if not bool(active.any()):
            return x, step
        q = operator(p)
        curvature = p.dot(q)
        safe = active & (curvature > 0)
        alpha = torch.where(safe, rz / torch.where(safe, curvature, torch.ones_like(rz)), 0)
        x = x + alpha * p
        r = r - alpha * q
        z = precondition(r)
        fresh = r.dot(z)
        beta = torch.where(safe & (rz > 0), fresh / torch.where(rz > 0, rz, 1), 0)
        p = z + beta * p
        rz = torch.where(active, fresh, rz)
    return x, max_steps
