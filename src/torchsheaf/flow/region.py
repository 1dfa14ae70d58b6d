"""The flow inside one activation region, slides included, as a sum of decaying modes."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import final

import torch
from torch import Tensor

from torchsheaf.boundary import Problem
from torchsheaf.cochain import Cochain
from torchsheaf.flow.walls import Walls
from torchsheaf.linalg.exponential import Modes, krylov_modes, spectral_modes


@dataclass(frozen=True)
class Region:
    """Samples inside their regions: gate states (batch, walls), a state in each region's closure.

    A wall at an odd state slides: its coordinate is held, and its gate is taken on the upper or
    the lower side only to read the two forces on it.
    """

    problem: Problem
    walls: Walls
    c: Cochain
    state: Tensor
    alpha: float

    @cached_property
    def sliding(self) -> Tensor:
        """Which walls slide, `(batch, walls)`."""
        return self.state % 2 == 1

    @cached_property
    def any_sliding(self) -> bool:
        """Whether any does."""
        return bool(self.sliding.any())

    @cached_property
    def moving(self) -> Tensor:
        """1 on free coordinates that move, 0 on those that slide, `(batch, n)`."""
        mask = self.problem.like.new_ones(self.state.shape[0], self.problem.free.dim)
        if self.any_sliding:
            mask[:, self.walls.index] = (~self.sliding).to(mask.dtype)
        return mask

    def operator(self, upper: bool) -> Callable[[Tensor], Tensor]:
        """v ↦ Lv for flat vectors, sliding gates on their upper or lower piece."""
        chosen = self.walls.selections(self.problem, self.c, self.state, upper)
        return self.problem.laplacian(self.c, chosen).apply_flat

    def gradient(self, upper: bool) -> Tensor:
        """∇E, sliding gates on their upper or lower piece, `(batch, n)`."""
        chosen = self.walls.selections(self.problem, self.c, self.state, upper)
        return self.problem.free.flatten(self.problem.gradient(self.c, chosen))


@dataclass(frozen=True)
class Piece:
    """Modes of a region, and L times the modes on the rows of the walls, sliding gates above and
    below (batch, walls, m); None where nothing slides."""

    modes: Modes
    upper: Tensor | None
    lower: Tensor | None


class RegionSolver(ABC):
    """Turns a region and its velocity into modes."""

    @abstractmethod
    def solve(self, region: Region, velocity: Tensor, reach: Tensor) -> Piece:
        """Modes of ċ = velocity − αMLM(c − c₀), M the projection on the moving coordinates."""


@final
class KrylovRegions(RegionSolver):
    """Lanczos per sample: matrix-free, two sweeps per basis vector, any size."""

    def __init__(self, max_basis: int = 32) -> None:
        self.max_basis = max_basis

    def solve(self, region: Region, velocity: Tensor, reach: Tensor) -> Piece:
        alpha, moving = region.alpha, region.moving
        above = region.operator(True)
        eps = torch.finfo(velocity.dtype).eps
        size = region.problem.free.flatten(region.c).norm(dim=1)
        modes = krylov_modes(
            lambda v: alpha * moving * above(v),
            velocity,
            tol=64 * eps * (1 + size),
            max_basis=self.max_basis,
            reach=reach,
        )
        if not region.any_sliding:
            return Piece(modes, None, None)
        rows = region.walls.index
        below = region.operator(False)
        columns = modes.vectors.unbind(2)  # over modes, not over samples
        return Piece(
            modes,
            torch.stack([above(v)[:, rows] for v in columns], 2),
            torch.stack([below(v)[:, rows] for v in columns], 2),
        )


@final
@dataclass
class SpectralRegions(RegionSolver):
    """One eigendecomposition per distinct region, kept: regions recur across samples and time.

    For small problems: n² numbers per region, O(n³) to make one. `capacity` regions are kept.
    """

    capacity: int = 20_000
    keys: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    tables: list[Tensor] = field(default_factory=list)

    @staticmethod
    def fits(problem: Problem, walls: Walls) -> bool:
        """Whether the states of all walls fit one 64-bit key and decide L, and n is small."""
        base = 2 * walls.thresholds.shape[1] + 1
        coded = len(walls) * math.log2(base) < 62
        alike = problem.is_uniform and not walls.reads_held
        return problem.free.dim <= 32 and coded and alike

    def solve(self, region: Region, velocity: Tensor, reach: Tensor) -> Piece:
        alpha = region.alpha
        slot = self._slots(region)
        q, values, upper, lower = self.tables
        rows = q[slot] * region.moving[..., None]
        modes = spectral_modes(rows, alpha * values[slot], velocity)
        if not region.any_sliding:
            return Piece(modes, None, None)
        return Piece(modes, upper[slot] @ modes.vectors, lower[slot] @ modes.vectors)

    def _slots(self, region: Region) -> Tensor:
        """Where each sample's region lies in the tables, made on first sight."""
        base = 2 * region.walls.thresholds.shape[1] + 1
        power = base ** torch.arange(len(region.walls), device=region.state.device)
        key = (region.state * power).sum(1)
        distinct, place = key.unique(return_inverse=True)
        self.keys = self.keys.to(key.device)
        if self.keys.numel() + distinct.numel() > self.capacity:
            self.keys, self.tables = self.keys[:0], []
        fresh = ~torch.isin(distinct, self.keys)
        if bool(fresh.any()):
            example = place.new_empty(distinct.numel())
            example[place] = torch.arange(place.numel(), device=place.device)
            self._add(region, distinct[fresh], example[fresh])
        order = torch.argsort(self.keys)
        return order[torch.searchsorted(self.keys[order], distinct)][place]

    def _add(self, region: Region, keys: Tensor, example: Tensor) -> None:
        part = Region(
            region.problem.samples(example), region.walls, region.c.samples(example),
            region.state[example], region.alpha,
        )  # fmt: skip
        above = _dense(part.operator(True), part)
        below = _dense(part.operator(False), part) if part.any_sliding else above
        moving = part.moving
        values, q = torch.linalg.eigh(moving[:, :, None] * above * moving[:, None, :])
        rows = region.walls.index
        new = [q, values.clamp_min(0), above[:, rows], below[:, rows]]
        self.keys = torch.cat([self.keys, keys])
        self.tables = (
            [torch.cat([t, u]) for t, u in zip(self.tables, new, strict=True)]
            if self.tables
            else new
        )


def _dense(operator: Callable[[Tensor], Tensor], region: Region) -> Tensor:
    n, batch = region.problem.free.dim, region.state.shape[0]
    like = region.problem.like
    columns = torch.eye(n, dtype=like.dtype, device=like.device)
    images = torch.vmap(lambda e: operator(e.expand(batch, n)), chunk_size=64)(columns)
    return images.permute(1, 2, 0).contiguous()
