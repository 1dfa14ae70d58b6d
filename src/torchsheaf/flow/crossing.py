"""The first time at which one of many sums of exponentials becomes negative, per sample."""

from dataclasses import dataclass

import torch
from torch import Tensor

from torchsheaf.linalg.exponential import integral

MAX_MARCH = 2000
"""Steps of the march, far above what a run needs (tens)."""


@dataclass(frozen=True)
class Guards:
    """Rows that must stay positive: f(s) = start + Σ_i rows_i φ(ρ_i, s).

    `start` (batch, R), ∞ for a row that is not there; `rows` (batch, R, m). `noise` and `drift`
    (batch, R) are the rounding levels of f and f′.
    """

    start: Tensor
    rows: Tensor
    noise: Tensor
    drift: Tensor

    def samples(self, index: Tensor) -> "Guards":
        """The chosen samples."""
        return Guards(self.start[index], self.rows[index], self.noise[index], self.drift[index])


@dataclass(frozen=True)
class Crossing:
    """`time` (batch,) of the first crossing, or the horizon; `row` (batch,), −1 without one."""

    time: Tensor
    row: Tensor


def first_crossing(guards: Guards, rates: Tensor, horizon: Tensor) -> Crossing:
    """March every sample to its first crossing, never past one.

    From s on, f″ ≥ −N with N = Σ_{rows>0} rows_i ρ_i e^{−ρ_i s}, so f stays above the parabola
    f + f′h − ½Nh², and the march steps to the parabola's first zero. It approaches a simple root
    from below quadratically, as Newton does, and cannot skip two roots close together. A root
    counts when f reaches rounding level while falling; a graze (a minimum not below rounding
    level) does not. A row that starts at 0 is left by its first nonzero derivative, using
    f‴ ≥ −Σ_{rows<0} |rows_i| ρ_i² e^{−ρ_i s}. A sample is done at once when no row can come back
    before the horizon: f − Σ_{rows<0} |rows_i| e^{−ρ_i s} φ(ρ_i, H − s) > 0.

    Cost: five products of (batch, R, m) per step; 5–20 steps per crossing.
    Source: docs/flow.md, section "Crossings".
    """
    batch = horizon.shape[0]
    time, row = torch.zeros_like(horizon), torch.full((batch,), -1, device=horizon.device)
    if guards.rows.shape[1] == 0:  # a network without gates has no wall
        return Crossing(horizon.clone(), row)
    magnitude = guards.rows.abs()
    live = torch.arange(batch, device=horizon.device)
    for _ in range(MAX_MARCH):
        if live.numel() == 0:
            return Crossing(time, row)
        if live.numel() == batch:
            g, mag, rho, end = guards, magnitude, rates, horizon
        else:
            g, mag, rho, end = guards.samples(live), magnitude[live], rates[live], horizon[live]
        s = time[live]
        crossed, step = _look(g, mag, rho, s, end)
        hit = crossed >= 0
        row[live[hit]] = crossed[hit]
        s_next = torch.minimum(s + torch.where(hit, step, step.clamp_min(1e-15 * s)), end)
        time[live] = s_next
        live = live[~hit & (s_next < end)]
    raise AssertionError("the march to the next crossing did not end")


def _look(g: Guards, mag: Tensor, rho: Tensor, s: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    """The row that crosses here (−1: none) and the safe step (or Newton's correction)."""
    decay = torch.exp(-rho * s[:, None])
    rest = integral(rho, (end - s)[:, None])
    basis = torch.stack([integral(rho, s[:, None]), decay, rho * decay, decay * rest], 2)
    signed = g.rows @ basis
    absolute = mag @ basis[..., 2:]
    f, f1, f2 = g.start + signed[..., 0], signed[..., 1], -signed[..., 2]
    bend = (absolute[..., 0] - f2) / 2
    safe = f - (absolute[..., 1] - signed[..., 3]) / 2 > 0
    near = f <= g.noise
    flat = f1.abs() <= g.drift
    dip = f1.square() / (2 * f2.clamp_min(torch.finfo(f.dtype).tiny))
    graze = near & (f1 < 0) & ~flat & (f2 > 0) & (f - dip >= -4 * g.noise)
    inward = near & ((f1 > g.drift) | (flat & (f2 > 0)))
    cross = near & ~inward & ~graze
    root = torch.sqrt(f1.square() + 2 * bend * f.clamp_min(0).nan_to_num(posinf=0))
    falling = 2 * f / (root - f1)
    rising = (f1 + root) / bend
    step = torch.where(f1 < 0, falling, rising)
    step = torch.where((bend <= 0) & (f1 >= 0), torch.inf, step)
    step = torch.where(safe & ~near, torch.inf, step)
    if bool(near.any()):
        cubic = rho.square() * decay
        fall = ((mag @ cubic[..., None])[..., 0] - (g.rows @ cubic[..., None])[..., 0]) / 2
        leave = torch.where(f1 > g.drift, f1 / bend, 1.5 * f2 / fall)
        step = torch.where(inward, leave.nan_to_num(nan=torch.inf), step)
        step = torch.where(graze, -f1 / f2, step)
    step = torch.where(f.isinf(), torch.inf, step)
    crossed = torch.where(cross, f, torch.inf).min(1)
    hit = crossed.values < torch.inf
    at = crossed.indices[:, None]
    newton = (f / -f1).gather(1, at)[:, 0].nan_to_num(0.0, 0.0, 0.0)
    steep = (~flat & (f1 < 0)).gather(1, at)[:, 0]
    correction = torch.where(steep, newton, 0.0)
    correction = torch.maximum(correction, -s)
    return torch.where(hit, crossed.indices, -1), torch.where(hit, correction, step.min(1).values)
