"""The linear flow ċ = v − A(c − c₀) as a sum of decaying modes, by Lanczos or eigenvectors."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Modes:
    """c(s) = c₀ + Σ_i U_i φ(ρ_i, s), φ(ρ, s) = (1 − e^{−ρs})/ρ, per sample.

    `vectors` (batch, n, m) are mutually orthogonal with Σ_i U_i = ċ(0); `rates` (batch, m) > 0;
    up to time `horizon` (batch,) the error is at most the tolerance asked for (∞: exact).
    """

    vectors: Tensor
    rates: Tensor
    horizon: Tensor

    def shift(self, s: Tensor) -> Tensor:
        """c(s) − c₀ for times `(batch,)`."""
        return (self.vectors @ integral(self.rates, s[:, None])[..., None])[..., 0]

    def arrival(self, speed: float) -> Tensor:
        """First time at which ‖ċ‖ ≤ speed, `(batch,)`.

        log ‖ċ‖ is convex and decreasing, so Newton from s = 0 climbs to it monotonically.
        """
        weight = self.vectors.square().sum(1)
        target = 2 * torch.log(torch.as_tensor(speed, dtype=weight.dtype))
        s = torch.zeros_like(self.horizon)
        live = weight.sum(1) > speed**2
        for _ in range(100):
            decayed = weight * torch.exp(-2 * self.rates * s[:, None])
            total = decayed.sum(1).clamp_min(torch.finfo(weight.dtype).tiny)
            slope = (2 * self.rates * decayed).sum(1) / total
            excess = torch.log(total) - target.to(s.device)
            step = torch.where(live & (excess > 1e-12), excess / slope, 0.0)
            s = s + step.clamp_min(0)
            if not bool((step > 1e-13 * s).any()):
                break
        return s


def integral(rates: Tensor, s: Tensor) -> Tensor:
    """φ(ρ, s) = (1 − e^{−ρs})/ρ, without cancellation; ρ > 0."""
    return -torch.expm1(-rates * s) / rates


def spectral_modes(q: Tensor, eigenvalues: Tensor, velocity: Tensor) -> Modes:
    """Modes of ċ = v − A(c − c₀) from A = QΛQᵀ; v must lie in the range of A."""
    coefficients = (velocity[:, None, :] @ q)[:, 0]
    floor = eigenvalues.shape[1] * torch.finfo(q.dtype).eps * eigenvalues.amax(1, keepdim=True)
    null = eigenvalues <= floor
    vectors = q * torch.where(null, 0.0, coefficients)[:, None, :]
    rates = torch.where(null, torch.ones_like(eigenvalues), eigenvalues)
    return Modes(vectors, rates, torch.full_like(rates[:, 0], torch.inf))


def krylov_modes(
    operator: Callable[[Tensor], Tensor],
    velocity: Tensor,
    *,
    tol: Tensor,
    max_basis: int = 40,
    reach: Tensor | None = None,
) -> Modes:
    """Modes of ċ = v − A(c − c₀) on the Krylov space of v, A symmetric positive semidefinite.

    `operator` maps `(batch, n)` to A·. Lanczos with full reorthogonalisation; a sample whose space
    becomes invariant is exact. Otherwise the defect of the approximation is β_m |(eᵀ_m y(s))| with
    y its Krylov coordinates of ċ·, and because ‖e^{−sA}‖ ≤ 1 the error at s is at most the
    integral of the defect (times s-independent 1): `horizon` is where that reaches `tol` (batch,).
    Stops early once three samples of four see beyond their `reach`.

    Cost: one application of A per basis vector; memory O(batch · n · basis).
    Reference: Hochbruck & Lubich 1997, SIAM J. Numer. Anal. 34, sections 3 and 6.
    """
    batch, n = velocity.shape
    tiny = torch.finfo(velocity.dtype).tiny
    eps = torch.finfo(velocity.dtype).eps
    norm = velocity.norm(dim=1)
    alive = norm > tiny
    most = min(n, max_basis)
    stacked = velocity.new_zeros(batch, n, most)
    stacked[..., 0] = torch.where(alive[:, None], velocity / norm.clamp_min(tiny)[:, None], 0.0)
    projected = velocity.new_zeros(batch, most, most)
    scale = torch.zeros_like(norm)
    size = 0
    while True:
        image = operator(stacked[..., size])
        scale = torch.maximum(scale, image.norm(dim=1))
        size += 1
        known = stacked[..., :size]
        for _ in range(2):
            overlap = (image[:, None, :] @ known)[:, 0]
            projected[:, :size, size - 1] += overlap
            image = image - (known @ overlap[..., None])[..., 0]
        beta = image.norm(dim=1)
        alive = alive & (beta > 64 * eps * scale)
        beta = torch.where(alive, beta, 0.0)
        full = size == most or not bool(alive.any())
        if full or (reach is not None and size % 8 == 0):
            found = _ritz(known, projected[:, :size, :size], norm, beta, tol)
            if size == n:
                found = Modes(found.vectors, found.rates, torch.full_like(norm, torch.inf))
            seen = reach is not None and float((found.horizon >= reach).double().mean()) >= 0.75
            if full or seen:
                return found
        stacked[..., size] = torch.where(alive[:, None], image / beta.clamp_min(tiny)[:, None], 0.0)


def _ritz(basis: Tensor, projected: Tensor, norm: Tensor, beta: Tensor, tol: Tensor) -> Modes:
    theta, s = torch.linalg.eigh(projected, UPLO="U")
    # Directions that the space of this sample does not have carry the value 0 and no weight.
    floor = theta.shape[1] * torch.finfo(theta.dtype).eps * theta.amax(1, keepdim=True).clamp_min(0)
    null = theta <= floor
    weight = torch.where(null, 0.0, s[:, 0, :] * norm[:, None])
    rates = torch.where(null, torch.ones_like(theta), theta)
    vectors = (basis @ s) * weight[:, None, :]
    last = s[:, -1, :] * weight
    return Modes(vectors, rates, _horizon(last, rates, beta, tol))


def _horizon(last: Tensor, rates: Tensor, beta: Tensor, tol: Tensor) -> Tensor:
    """Where ∫₀ˢ β |Σ_i last_i φ(ρ_i, u)| du reaches tol, on a geometric grid of times."""
    grid = torch.logspace(-6, 8, 71, dtype=rates.dtype, device=rates.device)
    times = grid / rates.amax(1, keepdim=True)
    values = integral(rates[:, None, :], times[..., None]) * last[:, None, :]
    defect = beta[:, None] * values.sum(-1).abs()
    # The defect grows slowly on this grid; each cell takes the larger of its ends.
    width = torch.diff(times, dim=1, prepend=torch.zeros_like(times[:, :1]))
    upper = torch.maximum(defect, torch.nn.functional.pad(defect[:, :-1], (1, 0)))
    total = torch.cumsum(upper * width, 1)
    noise = 16 * torch.finfo(rates.dtype).eps * values.abs().sum(-1) * beta[:, None] * times
    passed = (total - noise <= tol[:, None]).to(torch.int64).cumprod(1).sum(1)
    reached = times.gather(1, (passed - 1).clamp_min(0)[:, None])[:, 0]
    return torch.where((beta == 0) | (passed == times.shape[1]), torch.inf, reached)
