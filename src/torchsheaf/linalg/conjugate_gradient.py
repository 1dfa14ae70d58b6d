"""Preconditioned conjugate gradients for a batch of positive definite operators."""

from collections.abc import Callable

import torch

from torchsheaf.cochain import Cochain
from torchsheaf.outcome import ConvergenceError, Outcome

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
    first. Raises `ConvergenceError` with x when a direction has no curvature (A is singular, so
    there may be no x), or after `max_steps`. Reference: Saad, Iterative Methods, algorithm 9.1.
    """
    x = b.map(torch.zeros_like)
    r = b
    z = precondition(r)
    p = z
    rz = r.dot(z)
    goal, flat = tol**2 * rz, torch.finfo(b.dtype).eps
    for step in range(max_steps + 1):
        active = ~(rz <= goal)
        if not bool(active.any()):
            return x, step
        if step == max_steps:
            break
        q = operator(p)
        curvature = p.dot(q)
        if not bool((curvature > flat * p.norm() * q.norm())[active].all()):
            raise _failure(Outcome.STALLED, "a search direction has no curvature", rz / goal, x)
        alpha = torch.where(active, rz / torch.where(active, curvature, 1), 0)
        x = x + alpha * p
        r = r - alpha * q
        z = precondition(r)
        fresh = r.dot(z)
        beta = torch.where(active, fresh / torch.where(active, rz, 1), 0)
        p = z + beta * p
        rz = torch.where(active, fresh, rz)
    raise _failure(Outcome.STEP_LIMIT, f"{max_steps} steps", rz / goal, x)


def _failure(outcome: Outcome, what: str, excess: torch.Tensor, x: Cochain) -> ConvergenceError:
    worst = float(excess.clamp_min(0).max().sqrt())
    return ConvergenceError(
        outcome, f"conjugate gradients: {what}; residual {worst:.1e} × tolerance", x
    )
