"""Exact elimination of pre-activations: the best z of a gate, given what enters and what leaves."""

from dataclasses import dataclass

import torch
from torch import Tensor

from torchsheaf.boundary import Weight

FAR = 100.0
"""A single breakpoint beyond this is not moved to 0."""


@dataclass(frozen=True)
class Piece:
    """σ(z) = slope·z + offset on [low, high]."""

    low: float
    high: float
    slope: float
    offset: float


@dataclass(frozen=True)
class Pieces:
    """A continuous piecewise linear scalar function, lowest interval first."""

    pieces: tuple[Piece, ...]

    @classmethod
    def of(
        cls, breakpoints: tuple[float, ...], slopes: tuple[float, ...], anchor: float
    ) -> "Pieces":
        """From slopes between breakpoints, and σ(t_1) = `anchor`."""
        edges = (-float("inf"), *breakpoints, float("inf"))
        offsets = [anchor - slopes[0] * breakpoints[0]]
        for t, below, above in zip(breakpoints, slopes, slopes[1:], strict=False):
            offsets.append(offsets[-1] + (below - above) * t)
        return cls(
            tuple(
                Piece(edges[i], edges[i + 1], float(s), float(o))
                for i, (s, o) in enumerate(zip(slopes, offsets, strict=True))
            )
        )

    def value(self, z: Tensor) -> Tensor:
        """σ(z)."""
        first = self.pieces[0]
        out = first.slope * z + first.offset
        for piece in self.pieces[1:]:
            out = torch.where(z >= piece.low, piece.slope * z + piece.offset, out)
        return out


@dataclass(frozen=True)
class Eliminated:
    """The minimiser z, σ(z), the slope of its piece (0 where z is stuck) and whether it is stuck.

    A stuck z sits on a breakpoint that attracts it from both sides (sliding), or is held there.
    """

    z: Tensor
    value: Tensor
    slope: Tensor
    stuck: Tensor

    def samples(self, keep: Tensor) -> "Eliminated":
        """The chosen samples."""
        return Eliminated(self.z[keep], self.value[keep], self.slope[keep], self.stuck[keep])


@dataclass(frozen=True)
class Pull:
    """A soft pin on z: γ/2 (z − target)² per coordinate, γ `(1 or batch, n)`, 0 where is none."""

    gamma: Tensor
    target: Tensor


@dataclass(frozen=True)
class Held:
    """Coordinates of z that are held: `mask` `(1 or batch, n)`, `value` `(batch, n)`."""

    mask: Tensor
    value: Tensor


def eliminate(
    pieces: Pieces,
    m: Tensor,
    a: Tensor,
    w_in: Weight,
    w_out: Weight,
    pull: Pull | None = None,
    held: Held | None = None,
) -> Eliminated:
    """argmin_z  ½ w_in (z − m)² + ½ w_out (a − σ(z))² + ½ γ (z − p)², coordinate by coordinate.

    On each piece the cost is a parabola, so the global minimum is the best of the pieces'
    minimisers clamped to their intervals. A clamped minimiser can only win on a breakpoint that
    attracts from both sides: the sliding state. Of equal minima the higher piece's is taken.

    Cost: a few elementwise passes. Source: docs/notes/solver.md §1; the three ReLU states are T4.
    """
    goal, weight = (m, w_in) if pull is None else _merge(m, w_in, pull)
    near = abs(pieces.pieces[-1].low) <= FAR  # a shift by the breakpoint rounds by eps of it
    of = _of_two if len(pieces.pieces) == 2 and near else _of_many
    found = of(pieces.pieces, goal, a, weight, w_out)
    if held is None:
        return found
    return Eliminated(
        torch.where(held.mask, held.value, found.z),
        torch.where(held.mask, pieces.value(held.value), found.value),
        found.slope * ~held.mask,
        found.stuck | held.mask,
    )


def _of_two(
    pieces: tuple[Piece, ...], m: Tensor, a: Tensor, weight: Weight, w_out: Weight
) -> Eliminated:  # fmt: skip
    """One breakpoint: three states, told apart by two linear forms in (m, a).

    With the breakpoint at 0 and σ(0) = 0, the cost falls to the right at the rate
    p₁ = w m + s₁ w_a a and, on the right piece alone, by ½ q₁² in all, q₁ = p₁ / √(w + s₁² w_a); to
    the left by ½ q₀² with q₀ = −p₀ / √(w + s₀² w_a). So the larger of q₁, q₀ wins, and z is stuck
    where both are negative.
    """
    left, right = pieces
    at, height = right.low, right.slope * right.low + right.offset
    m = m - at if at else m
    a = a - height if height else a
    root, falls = [], []
    for sign, s in ((-1, left.slope), (1, right.slope)):
        stiffness = (weight + s * s * w_out) ** 0.5
        fall = m * (sign * weight / stiffness)
        if s:
            share = sign * s * w_out / stiffness
            fall = (
                fall.add_(a, alpha=share) if isinstance(share, float) else fall.addcmul_(share, a)
            )
        root.append(stiffness)
        falls.append(fall)
    stuck = torch.maximum(*falls) < 0
    to_left = falls[0].clamp_min_(0)
    # by arithmetic, 1 for yes: torch.where and a cast of truth values cost many additions, on CPU
    chosen = torch.ge(falls[1], to_left, out=torch.empty_like(to_left))
    z = torch.lerp(to_left.mul_(-1 / root[0]), falls[1].mul_(1 / root[1]), chosen)
    slope = right.slope * chosen
    if left.slope:
        slope = torch.lerp(torch.full_like(z, left.slope), slope, chosen) * ~stuck
    value = slope * z
    return Eliminated(z + at if at else z, value + height if height else value, slope, stuck)


def _of_many(
    pieces: tuple[Piece, ...], goal: Tensor, a: Tensor, weight: Weight, w_out: Weight
) -> Eliminated:  # fmt: skip
    """Any number of breakpoints: every piece's clamped minimiser in turn, the lowest one kept."""
    least: Tensor | None = None
    z = value = slope = stuck = goal
    for piece in reversed(pieces):
        s = piece.slope
        aim = a - piece.offset if piece.offset else a
        share = s * w_out / (weight + s * s * w_out)
        free = goal if s == 0 else ((1 - s * share) * goal).add_(share * aim)
        here = free.clamp(piece.low, piece.high)
        clamped = here != free
        out = here if (s, piece.offset) == (1, 0) else s * here + piece.offset
        cost = (here - goal).square_().mul_(weight).add_((a - out).square_().mul_(w_out))
        steep = here.new_tensor(s)
        if least is None:
            z, value, slope, stuck, least = here, out, steep.expand_as(here), clamped, cost
            continue
        lower = cost < least
        stuck = stuck ^ (lower & (stuck ^ clamped))
        chosen, least = lower.to(here.dtype), torch.minimum(cost, least)
        z, value = torch.lerp(z, here, chosen), torch.lerp(value, out, chosen)
        slope = torch.lerp(slope, steep, chosen)
    return Eliminated(z, value, slope * ~stuck, stuck)


def _merge(m: Tensor, w_in: Weight, pull: Pull) -> tuple[Tensor, Weight]:
    weight = w_in + pull.gamma
    return (w_in * m + pull.gamma * pull.target) / weight, weight
