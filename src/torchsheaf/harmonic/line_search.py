"""How far to go along a direction: Armijo backtracking on the true energy, then secant steps."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

SUFFICIENT = 1e-4
NOISE = 4e-15
"""Relative rounding error allowed in the energy, float64; scaled by eps for other types."""

Along = Callable[[Tensor], tuple[Tensor, Tensor]]
"""t (batch,) ↦ (φ(t), φ′(t)) per sample."""


@dataclass(frozen=True)
class Step:
    """Step lengths (0 where no decrease was found), the energy there, and evaluations used."""

    length: Tensor
    energy: Tensor
    trials: int


def rounding(energy: Tensor) -> Tensor:
    """Differences of the energy below this are rounding error."""
    return NOISE * max(1.0, torch.finfo(energy.dtype).eps / 2.3e-16) * energy


def line_search(
    along: Along, energy: Tensor, slope: Tensor, *, whole: tuple[Tensor, Tensor] | None = None,
    refine: int = 3, max_halvings: int = 40,
) -> Step:  # fmt: skip
    """Per sample: t = 1, then quadratic interpolation until φ(t) ≤ φ(0) + 1e-4 t φ′(0).

    Where that succeeds, up to `refine` secant steps on φ′ inside [0.1 t, 3 t], each kept only if
    φ is lower. `whole` is (φ(1), φ′(1)) where the caller knows it. For a frozen branch E_s ≥ E
    this is Armijo on E too (docs/notes/solver.md §3).
    """
    noise = rounding(energy)
    t = torch.ones_like(energy)
    value, derivative = along(t) if whole is None else whole
    trials = int(whole is None)

    def too_high() -> Tensor:
        return ~(value <= energy + SUFFICIENT * t * slope + noise)

    failed = too_high()
    while bool(failed.any()) and max_halvings:
        curvature = value - energy - t * slope
        guess = -slope * t * t / (2 * curvature)
        guess = torch.where(guess.isfinite(), guess, 0.1 * t)
        t = torch.where(failed, guess.clamp(0.1 * t, 0.5 * t), t)
        fresh, fresh_derivative = along(t)
        trials += 1
        max_halvings -= 1
        value = torch.where(failed, fresh, value)
        derivative = torch.where(failed, fresh_derivative, derivative)
        failed = too_high()
    if not max_halvings:  # those that are still too high stay where they are
        t, value = torch.where(failed, 0, t), torch.where(failed, energy, value)
    low, high = 0.1 * t, 3 * t
    before, slope_before = torch.zeros_like(t), slope
    for _ in range(refine):
        gap = derivative - slope_before
        guess = t - derivative * (t - before) / gap
        guess = torch.where(gap == 0, t, guess).clamp(low, high)
        worth = (guess - t).abs() > 1e-2 * t  # not where t is 0, nor where the guess is none
        if not bool(worth.any()):
            break
        fresh, fresh_derivative = along(guess)
        trials += 1
        lower = worth & (fresh < value)
        if not bool(lower.any()):
            break
        before = torch.where(lower, t, before)
        slope_before = torch.where(lower, derivative, slope_before)
        t, value = torch.where(lower, guess, t), torch.where(lower, fresh, value)
        derivative = torch.where(lower, fresh_derivative, derivative)
    return Step(t, value, trials)
