"""Newton's method where every sample is at a stage of its own and no sample waits for another."""

from dataclasses import replace

import torch
from torch import Tensor

from torchsheaf.cochain import Cochain, is_finite
from torchsheaf.harmonic.elimination import Eliminated
from torchsheaf.harmonic.frozen_system import FrozenSystem, Maps
from torchsheaf.harmonic.line_search import line_search
from torchsheaf.harmonic.reduced_energy import Branch, Forces, branch, forces, restored
from torchsheaf.harmonic.reduction import Reduction, rows_of
from torchsheaf.harmonic.segments import Segments
from torchsheaf.harmonic.solver import Progress, Solution
from torchsheaf.harmonic.stages import Rows, Stage
from torchsheaf.harmonic.stall import note_progress
from torchsheaf.outcome import Outcome

FORCING = 0.7
"""A direction is good enough at ‖residual‖ ≤ min(FORCING, ‖g‖^½) ‖g‖."""
MAX_STEPS = 400
"""Conjugate gradient steps per direction."""
FRESH_EVERY = 64
"""Ticks after which M is recomputed instead of updated, against rounding drift."""
WAITING = 8
"""Line searches are made when one sample in so many waits for one."""
PATIENCE = 5
"""Tests of arrival that may fail without progress."""
EXACT = 1e-6
"""Relative error of the predicted decrease below which a frozen model counts as exact."""


class AsynchronousNewton:
    """One run of inexact Newton for networks whose maps are affine once gates are eliminated.

    A tick is one forward and one reverse sweep over all samples in work. In it every sample makes
    what its stage asks for: since the frozen model is diagonal but for the maps, which all share,
    one sweep serves them all. A sample whose direction has met its forcing tries the whole step:
    where no gate changes its state the model is exact, and conjugate gradients go on to the
    tolerance with no restart; otherwise it is searched along the true energy and frozen anew.

    Source: docs/notes/solver.md §3.
    """

    def __init__(
        self, reduction: Reduction, start: Cochain, tol: float, max_passes: int
    ) -> None:  # fmt: skip
        self.whole, self.tol, self.max_passes = reduction, tol, max_passes
        self.divisible = reduction.problem.sheaf.network.fixed_batch is None
        c = reduction.layout.gather(start)
        m = reduction.incoming(c)
        self.final_c, self.final_m = c.clone(), m.clone()
        self.settled = torch.zeros(c.shape[0], dtype=torch.bool, device=c.device)
        self.stuck = torch.zeros_like(self.settled)
        self.passes, self.ticks = 1, 0
        self.reduction = reduction
        self.rows = self._fresh(c, m)
        self.space = tuple(torch.empty_like(t) for t in (c, m, c, m))
        self.energy = self.rows.energy.clone()
        self.trace = [float(self.energy.sum())]

    def run(self, tell: Progress) -> Solution:
        """Tick until every sample has arrived or cannot move, or the passes are used up."""
        outcome = Outcome.SETTLED
        self.maps: Maps = self.reduction.linearise(self.rows.c)
        if not is_finite(self.energy):
            return self._solution(Outcome.NONFINITE)
        counts = self.rows.counts()
        while True:
            self._tick(counts)
            rows = self.rows
            if not is_finite(rows.rr):
                outcome = Outcome.NONFINITE
                break
            counts = rows.counts()
            waiting = counts[Stage.READY]
            if waiting and (waiting * WAITING >= len(rows.index) or not counts[Stage.DESCENT]):
                self._search()
                counts = rows.counts()
            left = len(rows.index) - counts[Stage.OVER]
            tell(1 - left / len(self.settled))
            if not left:
                break
            if self.passes >= self.max_passes:
                outcome = Outcome.STEP_LIMIT
                break
            if self.divisible and left <= 0.75 * len(rows.index):
                self._compact()
                counts[Stage.OVER] = 0
            if self.ticks % FRESH_EVERY == 0:
                self.rows.m = self.reduction.incoming(self.rows.c)
                self.passes += 1
        if outcome is Outcome.SETTLED and bool(self.stuck.any()):
            outcome = Outcome.STALLED
        return self._solution(outcome)

    def _fresh(self, c: Tensor, m: Tensor) -> Rows:
        """Every sample at the gradient stage."""
        here = forces(self.reduction, c, m)
        model = branch(self.reduction, c, here.gates)
        self.gamma, self.identity = model.gamma, model.identity
        n = c.shape[0]
        slope, stuck = _states(here.gates, c)
        return Rows(
            index=torch.arange(n, device=c.device),
            stage=torch.full((n,), Stage.GRADIENT, device=c.device),
            c=c, m=m, energy=here.energy, on_c=here.on_variables, on_m=here.on_values,
            gate_slope=slope, gate_stuck=stuck, model_slope=model.slope, model_scale=model.scale,
            model_omega=model.omega, dc=torch.zeros_like(c), dm=torch.zeros_like(m),
            r=torch.zeros_like(c), p=torch.zeros_like(c), rr=c.new_zeros(n), goal=c.new_zeros(n),
            slope=c.new_zeros(n), steps=torch.zeros(n, dtype=torch.long, device=c.device),
            quiet=torch.ones(n, dtype=torch.bool, device=c.device),
            tested=torch.full((n,), torch.inf, dtype=c.dtype, device=c.device),
            least=torch.full((n,), torch.inf, dtype=c.dtype, device=c.device),
            lowest=torch.full((n,), torch.inf, dtype=c.dtype, device=c.device),
            failed=torch.zeros(n, dtype=torch.long, device=c.device),
        )  # fmt: skip

    def _tick(self, counts: list[int]) -> None:
        """One forward and one reverse sweep; no forward one when nobody descends."""
        rows, layout = self.rows, self.reduction.layout
        model = Branch(
            rows.model_slope, rows.model_scale, rows.model_omega, self.gamma, self.identity
        )
        system = FrozenSystem(layout, self.maps, model)
        on_c, on_m, pc, pm = (t[: len(rows.index)] for t in self.space)
        moving, new, checking = (
            bool(counts[s]) for s in (Stage.DESCENT, Stage.GRADIENT, Stage.CHECK)
        )
        gradient = rows.at(Stage.GRADIENT)
        descent, check = rows.at(Stage.DESCENT), rows.at(Stage.CHECK)
        self.passes += 1 + moving
        self.ticks += 1
        if moving:
            system.pinned(*system.forward(rows.p, (pc, pm)), (on_c, on_m))
            if new or checking:
                others = (gradient | check).nonzero().squeeze(1)
                on_c[others], on_m[others] = rows.on_c[others], rows.on_m[others]
        else:
            on_c.copy_(rows.on_c)
            on_m.copy_(rows.on_m)
        if checking:
            slope = rows.model_slope.masked_fill(check[:, None], 0)
            scale = rows.model_scale.masked_fill(check[:, None], 1)
            system = replace(system, branch=replace(model, slope=slope, scale=scale))
        out = system.reverse(on_c, on_m, overwrite=True)
        if checking:
            self._check(check, out)
        if new:
            self._begin(gradient, out)
        if moving:
            self._descend(descent, pc, pm, out.add_(system.identity(rows.p)))

    def _descend(self, descent: Tensor, pc: Tensor, pm: Tensor, q: Tensor) -> None:
        """A conjugate gradient step: −g·u grows by α ‖r‖², and the model falls by half of that."""
        rows = self.rows
        curvature = torch.linalg.vecdot(rows.p, q)
        convex = descent
        if self.reduction.layout.sources:  # elsewhere H ≥ 1
            convex = descent & (curvature > 1e-14 * torch.linalg.vecdot(rows.p, rows.p))
        alpha = length = torch.where(
            convex, rows.rr / curvature.clamp_min(torch.finfo(rows.rr.dtype).tiny), 0
        )
        if convex is not descent:  # without curvature the first direction is steepest descent
            alpha = torch.where((descent ^ convex) & (rows.steps == 0), 1, length)
        rows.dc.addcmul_(alpha[:, None], pc)
        rows.dm.addcmul_(alpha[:, None], pm)
        rows.slope.addcmul_(alpha, rows.rr, value=-1)
        rows.r.addcmul_(length[:, None], q, value=-1)
        fresh = torch.linalg.vecdot(rows.r, rows.r)
        # p ← r + β p, and p as it was where there was no curvature or no descent
        kept = torch.where(convex, fresh / rows.rr.clamp_min(torch.finfo(rows.rr.dtype).tiny), 1)
        rows.p.mul_(kept[:, None]).addcmul_(convex.to(fresh.dtype)[:, None], rows.r)
        rows.rr = torch.where(convex, fresh, rows.rr)
        rows.steps += descent
        enough = (rows.rr <= rows.goal) | (rows.steps >= MAX_STEPS)
        if convex is not descent:
            enough |= ~convex
        rows.send(descent & enough, Stage.READY)

    def _check(self, check: Tensor, out: Tensor) -> None:
        """Arrived where ‖∂E/∂C‖ ≤ tol; the others go on with a tenth of their residual as goal.

        Below the rounding floor ‖∂E/∂C‖ stays where it is, whatever the residual says: a sample
        for which it has not halved in `PATIENCE` tests cannot be moved any more.
        """
        rows, keep = self.rows, self.reduction.holds.keep
        plain = out if keep is None else out * keep
        norm = torch.linalg.vector_norm(plain, dim=1)
        arrived = check & (norm <= self.tol)
        left = check ^ arrived
        rows.failed += check & ~(norm <= 0.5 * rows.tested)
        rows.tested = torch.where(check, torch.minimum(norm, rows.tested), rows.tested)
        stalled = left & (rows.failed >= PATIENCE)
        onwards = left ^ stalled
        rows.goal = torch.where(onwards, 0.01 * rows.rr, rows.goal)
        rows.steps.masked_fill_(onwards, 0)
        self.rows.send(onwards, Stage.DESCENT)
        self._retire(arrived, rows.quiet)
        self._give_up(stalled)

    def _begin(self, gradient: Tensor, out: Tensor) -> None:
        """A new gradient: to the check where it is small, else the first search direction.

        A sample that has made no progress in `PATIENCE` gradients is at the rounding floor.
        """
        rows, chosen = self.rows, gradient.nonzero().squeeze(1)
        rows.r[chosen] = -out[chosen]
        rows.p[chosen] = rows.r[chosen]
        rows.rr = torch.where(gradient, torch.linalg.vecdot(out, out), rows.rr)
        size = rows.rr.sqrt()
        forcing = size.sqrt().clamp_max(FORCING)
        rows.goal = torch.where(gradient, (forcing * size).square(), rows.goal)
        rows.steps.masked_fill_(gradient, 0)
        noted = note_progress(rows.energy, size, rows.lowest, rows.least, rows.failed)
        before = rows.lowest, rows.least, rows.failed
        rows.lowest, rows.least, rows.failed = (
            torch.where(gradient, new, old) for new, old in zip(noted, before, strict=True)
        )
        stalled = gradient & (rows.failed >= PATIENCE)
        gradient = gradient & ~stalled
        near = size <= 10 * self.tol
        self.rows.send(gradient & near, Stage.CHECK)
        self.rows.send(gradient & ~near, Stage.DESCENT)
        self._give_up(stalled)

    def _search(self) -> None:
        """The whole step where the model is exact up to there, else along the true energy."""
        rows = self.rows
        every = torch.arange(len(rows.index), device=rows.index.device)
        line = Segments(
            every, self.reduction, rows.c, rows.m, rows.dc, rows.dm, rows.energy, rows.slope
        ).samples(rows.at(Stage.READY))
        ready = line.index
        there = line.at(1.0)
        whole = line.slopes(there)
        rr, goal = rows.rr[ready], rows.goal[ready]
        exact = self._same_states(ready, there.gates)
        miss = (there.energy - line.energy - 0.5 * line.slope).abs()
        exact &= miss <= EXACT * line.slope.abs()
        exact &= rr <= goal  # else the descent ended for want of curvature or steps
        done = exact & (rr <= self.tol**2)
        further = ready[exact & ~done]
        rows.goal[further] = self.tol**2
        rows.stage[further] = int(Stage.DESCENT)
        if bool(done.any()):
            arrived = line.samples(done)
            self._commit(arrived.index, *arrived.point(1.0), there.samples(done))
            rows.stage[arrived.index] = int(Stage.CHECK)
            rows.quiet[arrived.index] = True
        del there  # a copy of all that pulls on the samples
        rest = ~exact
        if bool(rest.any()):
            self._line_search(line.samples(rest), (whole[0][rest], whole[1][rest]))
        self.trace.append(float(self.energy.sum()))

    def _line_search(self, line: Segments, whole: tuple[Tensor, Tensor]) -> None:
        """Move along the true energy, of which `whole` is value and slope at the end."""
        rows, index = self.rows, line.index
        t = line_search(
            lambda t: line.slopes(line.at(t[:, None])), line.energy, line.slope, whole=whole
        ).length[:, None]
        c, m = line.point(t)
        here = forces(line.part, c, m)
        rows.quiet[index] = self._same_states(index, here.gates)
        model = branch(line.part, c, here.gates)
        self._commit(index, c, m, here)
        rows.gate_slope[index], rows.gate_stuck[index] = _states(here.gates, c)
        rows.model_slope[index], rows.model_scale[index] = model.slope, model.scale
        rows.model_omega[index] = model.omega
        rows.stage[index] = int(Stage.GRADIENT)
        blocked = torch.zeros_like(rows.quiet)
        blocked[index] = t.squeeze(1) == 0
        self._give_up(blocked)

    def _commit(self, where: Tensor, c: Tensor, m: Tensor, here: Forces) -> None:
        """Move; the direction starts again at 0, residual and search direction stay valid."""
        rows = self.rows
        rows.c[where], rows.m[where], rows.energy[where] = c, m, here.energy
        rows.on_c[where], rows.on_m[where] = here.on_variables, here.on_values
        rows.dc[where], rows.dm[where], rows.slope[where] = 0, 0, 0
        self.energy[rows.index[where]] = here.energy

    def _same_states(self, where: Tensor, gates: Eliminated | None) -> Tensor:
        """Per chosen sample: whether every gate is on the piece that is frozen."""
        slope, stuck = _states(gates, self.rows.c[where])
        if not slope.shape[1]:
            return slope.new_ones(slope.shape[0], dtype=torch.bool)
        other = (slope != self.rows.gate_slope[where]) | (stuck ^ self.rows.gate_stuck[where])
        return other.view(torch.uint8).amax(1) == 0  # fifty times faster than any(1) on CPU

    def _give_up(self, which: Tensor) -> None:
        """Samples that cannot move: the run ends as stalled."""
        if bool(which.any()):
            self.stuck[self.rows.index[which]] = True
            self._retire(which, torch.zeros_like(which))

    def _retire(self, over: Tensor, quiet: Tensor) -> None:
        rows = self.rows
        index = rows.index[over]
        self.final_c[index], self.final_m[index] = rows.c[over], rows.m[over]
        self.settled[index] = quiet[over]
        rows.p = rows.p.masked_fill(over[:, None], 0)
        self.rows.send(over, Stage.OVER)

    def _compact(self) -> None:
        """Go on with the samples that are left."""
        keep = (self.rows.stage != Stage.OVER).nonzero().squeeze(1)
        self.rows = self.rows.take(keep)
        self.reduction = self.reduction.samples(keep)
        self.gamma, self.identity = (
            None if t is None else rows_of(t, keep) for t in (self.gamma, self.identity)
        )
        self.maps = self.reduction.linearise(self.rows.c)

    def _solution(self, outcome: Outcome) -> Solution:
        rows = self.rows
        left = ~rows.at(Stage.OVER)
        self.final_c[rows.index[left]], self.final_m[rows.index[left]] = rows.c[left], rows.m[left]
        cochain = restored(self.whole, self.final_c, self.final_m)
        return Solution(cochain, self.settled, self.passes, outcome, tuple(self.trace))


def _states(gates: Eliminated | None, like: Tensor) -> tuple[Tensor, Tensor]:
    """Slope of each gate's piece, and whether it is stuck on a breakpoint; no columns if none."""
    if gates is None:
        return like.new_zeros(like.shape[0], 0), like.new_zeros(like.shape[0], 0).bool()
    return gates.slope, gates.stuck
