"""The exact flow of a piecewise linear network: region by region, wall by wall."""

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from torchsheaf.arguments import whole_number
from torchsheaf.boundary import Problem
from torchsheaf.cochain import is_finite
from torchsheaf.flow.crossing import Guards, first_crossing
from torchsheaf.flow.method import RAISE, Course, FlowMethod, Task, jumps, never
from torchsheaf.flow.region import KrylovRegions, Piece, Region, RegionSolver, SpectralRegions
from torchsheaf.flow.walls import Walls
from torchsheaf.linalg.exponential import integral
from torchsheaf.outcome import Outcome

CHUNK = 1 << 22
"""Numbers handled at once when states at the recorded times are written out."""


@final
@dataclass(frozen=True)
class Exact(FlowMethod):
    """Solves ċ = −α(Lc − h) in closed form inside each region and finds every crossing.

    Samples advance independently, each by one region per round, all at once. On a wall the two
    one-sided forces decide: through, or sliding (Filippov) until one of them turns. The jump of
    the velocity at a wall of coordinate j is along e_j only, in the fused form too, so several
    walls met or slid on together never couple. `solver`: "spectral" (an eigendecomposition per
    distinct region), "krylov" (matrix-free), None: by size. `max_events` per sample.
    """

    solver: str | None = None
    max_events: int = 20_000
    name = "exact"

    def __post_init__(self) -> None:
        if self.solver not in (None, "spectral", "krylov"):
            raise ValueError(f'solver is {self.solver!r}; write "spectral", "krylov" or None')
        object.__setattr__(self, "max_events", whole_number("max_events", self.max_events))

    def refuses(self, problem: Problem, walls: Walls, adjoint_output: bool) -> str | None:
        if not problem.sheaf.is_piecewise_affine:
            smooth = [e.name for e in problem.sheaf.edges.values() if not e.node.piecewise_affine]
            return f"edges {', '.join(smooth[:4])} are not piecewise linear"
        if jumping := jumps(problem):
            return jumping
        if walls.unread:
            return f"gate {walls.unread[0]} does not switch coordinate by coordinate"
        if problem.like.dtype not in (torch.float32, torch.float64):
            return f"it solves in the network's type, {problem.like.dtype}: encode model.float()"
        if not adjoint_output:
            return "the output force without Jacobian is not the gradient of the energy"
        if problem.free.differs:
            return "samples hold different coordinates"
        if problem.sheaf.network.fixed_batch is not None and problem.batch > 1:
            return "this capture fixes its batch size; encode it with a dynamic batch"
        return None

    def regions(self, problem: Problem, walls: Walls) -> RegionSolver:
        """The region solver that the settings and the size choose."""
        small = SpectralRegions.fits(problem, walls)
        if self.solver == "spectral" and not small:
            raise ValueError(
                "solver='spectral' is for at most 32 free coordinates, and pins with the same "
                "weights in all samples; use 'krylov'"
            )
        return SpectralRegions() if small and self.solver != "krylov" else KrylovRegions()

    @torch.no_grad()
    def integrate(self, task: Task) -> Course:
        run = _Run.begin(task, self.regions(task.problem, task.walls))
        rounds, most = 0, 2 * self.max_events
        while run.active.numel() and rounds < min(task.max_steps, most):
            if not is_finite(run.flat):
                break
            run.advance()
            rounds += 1
            if math.isfinite(task.until):
                task.progress(float(run.time.min()) / task.until)
        final = task.problem.clamp(task.problem.free.unflatten(run.flat))
        outcome, where = Outcome.COMPLETED, ""
        if not final.is_finite():
            bad = (~run.flat.isfinite()).any(1).nonzero()[0, 0]
            outcome = Outcome.NONFINITE
            where = f"{final.first_nonfinite()} at t = {float(run.time[bad]):.4g}"
        elif run.active.numel():
            outcome = Outcome.STEP_LIMIT
        elif bool(run.stopped.isfinite().all()):
            outcome = Outcome.SETTLED
        assert run.first is not None
        advice = RAISE if task.max_steps <= most else (
            f"write method=Exact(max_events=…) with more than {self.max_events}, or loosen tol"
        )  # fmt: skip
        return Course(final, run.first, run.events, run.stopped, rounds, outcome, where, advice)


@dataclass
class _Run:
    """The moving state of an exact integration, one row per sample."""

    task: Task
    solver: RegionSolver
    flat: Tensor
    time: Tensor
    state: Tensor
    before: Tensor
    stopped: Tensor
    active: Tensor
    fresh: Tensor
    written: Tensor
    hint: Tensor
    events: list[tuple[Tensor, ...]]
    first: Tensor | None = None

    @classmethod
    def begin(cls, task: Task, solver: RegionSolver) -> "_Run":
        """Start: gates by their side, those exactly on a wall still to be decided."""
        flat = task.problem.free.flatten(task.start)
        walls = task.walls
        state = walls.state(flat)
        z = flat[:, walls.index, None]
        fresh = (z == walls.thresholds).any(-1)
        everyone = torch.arange(flat.shape[0], device=flat.device)
        stopped = never(task.problem)
        return cls(
            task, solver, flat, torch.zeros_like(stopped), torch.where(fresh, state - 1, state),
            state.clone(), stopped, everyone, fresh, torch.zeros_like(everyone),
            torch.full_like(flat[:, 0], 1 / task.alpha), [],
        )  # fmt: skip

    def advance(self) -> None:
        """Every active sample: decide its walls, solve its region, go to the next event."""
        task, walls, at = self.task, self.task.walls, self.active
        problem = task.problem if at.numel() == task.problem.batch else task.problem.samples(at)
        c = problem.clamp(problem.free.unflatten(self.flat[at]))
        region = Region(problem, walls, c, self.state[at], task.alpha)
        above = region.gradient(True)
        below = region.gradient(False) if region.any_sliding else above
        size = 1 + self.flat[at].abs().amax(1)
        drift = 64 * torch.finfo(above.dtype).eps * (size + above.abs().amax(1)) * task.alpha
        gradient = self._decide(above, below, drift)
        if self.first is None:
            self.first = self.state.clone()
        region = Region(problem, walls, c, self.state[at], task.alpha)
        velocity = -task.alpha * region.moving * gradient
        left = (task.until - self.time[at]).to(above.dtype)
        piece = self.solver.solve(region, velocity, torch.minimum(left, self.hint[at]))
        rest = piece.modes.arrival(0.99 * task.alpha * task.tol)
        horizon = torch.minimum(torch.minimum(left, piece.modes.horizon), rest)
        guards = _guards(region, piece, above, below, drift)
        crossing = first_crossing(guards, piece.modes.rates, horizon)
        resting = (crossing.row < 0) & (crossing.time >= rest)
        ended = resting | ((crossing.row < 0) & (crossing.time >= left))
        # How far the next piece will want to see: twice as far as this one went, four times if
        # it could not see its end.
        growth = torch.where(crossing.row >= 0, 2.0, 4.0).to(crossing.time.dtype)
        self.hint[at] = (growth * crossing.time).clamp_min(0.25 / task.alpha)
        self._record(problem, region, piece, crossing.time, ended)
        self._move(region, piece, crossing.time, crossing.row)
        self.stopped[at[resting]] = self.time[at[resting]]
        self.active = at[~ended]

    def _decide(self, above: Tensor, below: Tensor, drift: Tensor) -> Tensor:
        """Walls just reached: up if the force above pushes up, else down if the one below pulls
        down, else slide. Rounding level counts as a slide, which its own guards then end.
        Returns the gradient in the regions decided on."""
        at, rows = self.active, self.task.walls.index
        fresh, state = self.fresh[at], self.state[at]
        if not bool(fresh.any()):
            return above
        up = -above[:, rows] * self.task.alpha > drift[:, None]
        down = -below[:, rows] * self.task.alpha < -drift[:, None]
        decided = torch.where(up, state + 1, torch.where(down, state - 1, state))
        new = torch.where(fresh, decided, state)
        self.state[at] = new
        changed = (fresh & (new != self.before[at])).nonzero()
        if self.first is not None and changed.numel():
            self._note(at[changed[:, 0]], changed[:, 1], new[changed[:, 0], changed[:, 1]])
        self.before[at] = torch.where(fresh, new, self.before[at])
        self.fresh[at] = False
        gradient = above.clone()
        gradient[:, rows] = torch.where(new < state, below[:, rows], above[:, rows])
        return gradient

    def _note(self, sample: Tensor, wall: Tensor, after: Tensor) -> None:
        self.events.append((self.time[sample], sample, wall, self.before[sample, wall], after))

    def _move(self, region: Region, piece: Piece, time: Tensor, row: Tensor) -> None:
        """Go to the end of the piece; put a crossing coordinate exactly on its wall."""
        at, walls = self.active, self.task.walls
        self.flat[at] = self.flat[at] + piece.modes.shift(time)
        self.time[at] = self.time[at] + time.to(torch.float64)
        hit = (row >= 0).nonzero()[:, 0]
        if hit.numel() == 0:
            return
        sample, wall, side = at[hit], row[hit] // 2, row[hit] % 2
        state = self.state[sample, wall]
        exits = state % 2 == 1
        # Side 0 guards the lower end: the wall below is left downwards, a slide ends downwards.
        new = torch.where(side == 0, state - 1, state + 1)
        self.state[sample, wall] = new
        arrive = ~exits
        if bool(arrive.any()):
            s, w = sample[arrive], wall[arrive]
            self.flat[s, walls.index[w]] = walls.thresholds[w, new[arrive] // 2]
            self.fresh[s, w] = True
        if bool(exits.any()):
            s, w = sample[exits], wall[exits]
            self._note(s, w, new[exits])
            self.before[s, w] = new[exits]

    def _record(
        self, problem: Problem, region: Region, piece: Piece, length: Tensor, ended: Tensor
    ) -> None:
        """Write the recorded times that lie in this piece (and beyond, for samples that end)."""
        at, times = self.active, self.task.recorder.times
        begin = self.time[at]
        first = self.written[at]
        last = torch.searchsorted(times, begin + length.to(torch.float64), right=True)
        last = torch.where(ended, times.numel(), last)
        count = (last - first).clamp_min(0)
        self.written[at] = torch.maximum(self.written[at], last)
        local = torch.arange(at.numel(), device=at.device).repeat_interleave(count)
        if local.numel() == 0:
            return
        offset = torch.cumsum(count, 0) - count
        k = torch.arange(local.numel(), device=at.device) - offset[local] + first[local]
        s = torch.minimum((times[k] - begin[local]).to(length.dtype), length[local]).clamp_min(0)
        phi = integral(piece.modes.rates[local], s[:, None])
        chunk = max(1, CHUNK // max(1, piece.modes.vectors[0].numel()))
        for lo in range(0, local.numel(), chunk):
            part = slice(lo, lo + chunk)
            who = local[part]
            shift = (piece.modes.vectors[who] @ phi[part, :, None])[..., 0]
            flat = self.flat[at[who]] + shift
            sub = problem.samples(who)
            c = sub.clamp(sub.free.unflatten(flat))
            self.task.recorder.write(k[part], at[who], c, sub)


def _guards(region: Region, piece: Piece, above: Tensor, below: Tensor, drift: Tensor) -> Guards:
    """Two rows per wall: distance to the lower and the upper breakpoint of its interval; for a
    slide, the upward force below and the downward force above."""
    walls, state = region.walls, region.state
    z = region.problem.free.flatten(region.c)[:, walls.index]
    moves = piece.modes.vectors[:, walls.index]
    interval = (state // 2)[..., None]
    padded = walls.padded.expand(state.shape[0], -1, -1)
    low = z - padded.gather(2, interval)[..., 0]
    high = padded.gather(2, interval + 1)[..., 0] - z
    rows_low, rows_high = moves, -moves
    eps = torch.finfo(z.dtype).eps
    noise = 16 * eps * (1 + z.abs())
    floor = drift[:, None].expand_as(z)
    if piece.upper is not None and piece.lower is not None:
        slides = region.sliding
        low = torch.where(slides, -below[:, walls.index], low)
        high = torch.where(slides, above[:, walls.index], high)
        wide = slides[..., None]
        rows_low = torch.where(wide, -piece.lower, rows_low)
        rows_high = torch.where(wide, piece.upper, rows_high)
        noise = torch.where(slides, floor / region.alpha, noise)
        top = 1 + piece.modes.rates.amax(1, keepdim=True)
        floor = torch.where(slides, floor * top, floor)
    start = torch.stack([low, high], 2).flatten(1)
    rows = torch.stack([rows_low, rows_high], 2).flatten(1, 2)
    rows = torch.where(start.isinf()[..., None], 0.0, rows)
    pair = torch.stack([noise, noise], 2).flatten(1)
    return Guards(start, rows, pair, torch.stack([floor, floor], 2).flatten(1))
