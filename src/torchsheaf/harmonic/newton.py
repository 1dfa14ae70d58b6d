"""Inexact Newton on the reduced energy: the solver for held networks of any depth."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from torchsheaf.boundary import Problem
from torchsheaf.cochain import Cochain, is_finite
from torchsheaf.harmonic.asynchronous import AsynchronousNewton
from torchsheaf.harmonic.curvature import Curvature
from torchsheaf.harmonic.frozen_system import Direction, FrozenSystem, Maps, newton_direction
from torchsheaf.harmonic.kinks import Frozen, Geometry, Kinks, kink_sites
from torchsheaf.harmonic.line_search import line_search
from torchsheaf.harmonic.reduced_energy import Forces, branch, forces
from torchsheaf.harmonic.reduction import Reduction
from torchsheaf.harmonic.solver import HarmonicSolver, Solution
from torchsheaf.network import Composition
from torchsheaf.outcome import Outcome

FORCING = 0.1
BLOCKINGS = 4
"""How often a direction that runs into a kink at once is solved for again."""


@final
class Newton(HarmonicSolver):
    """Eliminates pre-activations exactly, then line-searched semismooth Newton on what is left.

    Each step freezes the gates' states (off, on, sliding), solves (I + GᵀG) u = −g by conjugate
    gradients in the variables u in which forward substitution is the identity (two sweeps per
    step, eigenvalues ≥ 1), and searches along the step on the true energy. With affine edges the
    search costs no sweep and no sample waits for another (`AsynchronousNewton`). Smooth edges are
    linearised at every step: Gauss–Newton.

    Energy never rises. Equilibria with the output held are local minima. Cost: see
    docs/choose-a-solver.md. Source: docs/notes/solver.md.
    """

    name = "newton"

    def refuses(self, problem: Problem) -> str | None:
        return None

    @torch.no_grad()
    def solve(self, problem: Problem, start: Cochain, tol: float, max_passes: int) -> Solution:
        reduction = Reduction.of(problem)
        nodes = [c.node for c in reduction.layout.cells]
        if all(n.piecewise_affine and not n.gates for n in nodes):
            return AsynchronousNewton(reduction, start, tol, max_passes).run()
        return _Iteration(reduction, start, tol, max_passes).run()


@dataclass
class _Active:
    """The samples still moving: who they are, where they are."""

    index: Tensor
    reduction: Reduction
    c: Tensor
    m: Tensor
    turn: Tensor
    state: Tensor | None = None
    quiet: Tensor | None = None
    frozen: Frozen | None = None

    def samples(self, keep: Tensor) -> "_Active":
        return _Active(
            self.index[keep],
            self.reduction.samples(keep),
            self.c[keep],
            self.m[keep],
            self.turn[keep],
            None if self.state is None else self.state[keep],
            None if self.quiet is None else self.quiet[keep],
            None if self.frozen is None else self.frozen.samples(keep),
        )


class _Iteration:
    """One run of the solver; a loop with memory, hence a class."""

    def __init__(
        self, reduction: Reduction, start: Cochain, tol: float, max_passes: int
    ) -> None:  # fmt: skip
        self.whole, self.tol, self.max_passes = reduction, tol, max_passes
        layout, nodes = reduction.layout, [c.node for c in reduction.layout.cells]
        self.smooth = any(not n.piecewise_affine for n in nodes)
        self.sites = bool(kink_sites(layout))
        self.divisible = reduction.problem.sheaf.network.fixed_batch is None
        c = layout.gather(start)
        self.final = c.clone()
        self.settled = torch.zeros(c.shape[0], dtype=torch.bool, device=c.device)
        self.left = torch.ones_like(self.settled)
        self.energy = c.new_zeros(c.shape[0])
        self.passes = 1
        self.trace: list[float] = []
        index = torch.arange(c.shape[0], device=c.device)
        self.now = _Active(index, reduction, c, reduction.incoming(c), torch.zeros_like(index))
        self._maps: Maps = {}
        self._geometry: Geometry = {}
        self.kinks: Kinks

    def run(self) -> Solution:
        outcome = Outcome.SETTLED
        while True:
            now = self.now
            here = forces(now.reduction, now.c, now.m)
            self.energy[now.index] = here.energy
            self.trace.append(float(self.energy.sum()))
            if not is_finite(here.energy):
                outcome = Outcome.NONFINITE
                break
            self._note_states(here)
            system = self._system(here)
            gradient = system.reverse(here.on_variables, here.on_values)
            self.passes += 1
            done = self._arrived(system, here, gradient)
            turned = self._turn(done)
            done &= ~turned
            self._retire(done)
            if not bool(self.left.any()):
                break
            if self.passes >= self.max_passes:
                outcome = Outcome.STEP_LIMIT
                break
            if bool(done.any()) and self.divisible:
                keep = ~done
                self.now = self.now.samples(keep)
                here, gradient, turned = here.samples(keep), gradient[keep], turned[keep]
                system = self._system(here, self.now.frozen)
            if not self._advance(system, here, gradient, turned):
                outcome = Outcome.STALLED
                break
        return self._solution(outcome)

    def _system(self, here: Forces, frozen: Frozen | None = None) -> FrozenSystem:
        now, layout = self.now, self.now.reduction.layout
        self._maps = self._linearise({})
        if self.sites:
            frozen = self._active_set(here, frozen)
        now.frozen = frozen
        model = branch(now.reduction, now.c, here.gates, frozen)
        curvature = None
        if self.smooth:
            point, network = now.reduction.point(now.c), now.reduction.problem.sheaf.network
            curvature = Curvature(layout, network, point, here.on_values) or None
        return FrozenSystem(layout, self._maps, model, curvature)

    def _linearise(self, pattern: Mapping[str, Tensor]) -> dict[str, Composition]:
        now = self.now
        point, network = now.reduction.point(now.c), now.reduction.problem.sheaf.network
        cells = now.reduction.layout.cells
        return {c.node.name: network.linearise(c.node, point, pattern) for c in cells}

    def _active_set(self, here: Forces, frozen: Frozen | None) -> Frozen:
        """Gates that were not eliminated: which sit on attracting kinks. Cost: one sweep."""
        now, layout = self.now, self.now.reduction.layout
        network, maps = now.reduction.problem.sheaf.network, self._maps
        point = now.reduction.point(now.c)
        self.kinks = Kinks(layout, network, point, maps, here.on_values, self._geometry)
        if frozen is None:
            system = FrozenSystem(layout, maps, branch(now.reduction, now.c, here.gates))
            plain = system.reverse(
                here.on_variables, here.on_values, substitute=False, scaled=False
            )
            self.passes += 1
            frozen = self.kinks.freeze(plain, now.reduction.holds.keep, now.turn)
            if now.frozen is not None and now.quiet is not None:
                now.quiet = now.quiet & frozen.same(now.frozen)
        self._maps = self._linearise(frozen.pattern)
        return frozen

    def _note_states(self, here: Forces) -> None:
        now = self.now
        if here.gates is None:
            now.quiet = torch.ones_like(now.index, dtype=torch.bool)
            return
        state = torch.where(here.gates.stuck, torch.nan, here.gates.slope)
        if now.state is None:
            now.quiet = torch.ones_like(now.index, dtype=torch.bool)
        else:
            same = (state == now.state) | (state.isnan() & now.state.isnan())
            now.quiet = same.all(1)
        now.state = state

    def _arrived(self, system: FrozenSystem, here: Forces, gradient: Tensor) -> Tensor:
        """Which samples are stationary: ‖∂E/∂C‖ ≤ tol, tested where ‖g_u‖ comes near."""
        near = gradient.norm(dim=1) <= 10 * self.tol
        if not bool(near.any()):
            return near
        plain = system.reverse(here.on_variables, here.on_values, substitute=False, scaled=False)
        self.passes += 1
        if self.now.frozen is not None:
            plain = system.fold(plain).masked_fill(self.now.frozen.stuck, 0)
        if self.whole.holds.keep is not None:
            plain = plain * self.whole.holds.keep
        return near & (plain.norm(dim=1) <= self.tol)

    def _turn(self, rest: Tensor) -> Tensor:
        """Samples at rest that have not yet tried every choice at tied windows pulled upwards."""
        now = self.now
        several = self.kinks.choices if self.sites and bool(rest.any()) else None
        if several is None:
            return torch.zeros_like(rest)
        turned = rest & (now.turn + 1 < several)
        now.turn = now.turn + turned
        return turned

    def _retire(self, done: Tensor) -> None:
        now = self.now
        index = now.index[done]
        self.final[index] = now.c[done]
        assert now.quiet is not None
        self.settled[index] = now.quiet[done]
        self.left[index] = False

    def _advance(
        self, system: FrozenSystem, here: Forces, gradient: Tensor, turned: Tensor
    ) -> bool:  # fmt: skip
        """One Newton step for every active sample; False when none of them can move.

        Those that have `turned` stay where they are: their next active set is another one.
        """
        now = self.now
        size = gradient.norm(dim=1)
        direction = newton_direction(system, gradient, size.sqrt().clamp_max(FORCING))
        # a product with the curvature of smooth edges is one more local reverse pass
        self.passes += (2 if system.curvature is None else 3) * direction.steps
        if self.sites:
            system, gradient, direction = self._unblock(system, here, gradient, direction)
        slope = torch.linalg.vecdot(gradient, direction.u)
        uphill = ~(slope < 0)
        if bool(uphill.any()):  # rounding only: fall back to steepest descent in u
            direction, slope = self._steepest(system, gradient, direction, slope, uphill)
        moving = self.left[now.index] & ~turned
        slope = torch.where(moving, slope, 0)
        length = self._search(direction, here, slope, bent=bool(self.sites)) * moving
        bent = self._path(direction, length, bent=bool(self.sites))
        if self.sites and bool((moving & (length == 0)).any()):
            straight = self._search(direction, here, slope, bent=False) * moving
            stopped = (length == 0)[:, None]
            bent = torch.where(stopped, self._path(direction, straight, bent=False), bent)
            length = torch.where(length == 0, straight, length)
        now.c = bent
        now.m = now.reduction.incoming(now.c)
        self.passes += 1
        now.turn = torch.where(length > 0, 0, now.turn)
        return bool((turned | (length > 0)).any())

    def _unblock(
        self, system: FrozenSystem, here: Forces, gradient: Tensor, direction: Direction
    ) -> tuple[FrozenSystem, Tensor, Direction]:
        """Solve again while the direction runs into kinks that it starts on."""
        now = self.now
        for _ in range(BLOCKINGS):
            assert now.frozen is not None
            larger = self.kinks.block(direction.dc, now.frozen, now.reduction.holds.keep)
            if larger is None:
                break
            now.frozen = larger
            model = branch(now.reduction, now.c, here.gates, larger)
            system = replace(system, branch=model)
            gradient = system.reverse(here.on_variables, here.on_values)
            forcing = gradient.norm(dim=1).sqrt().clamp_max(FORCING)
            direction = newton_direction(system, gradient, forcing)
            self.passes += 1 + 2 * direction.steps
        return system, gradient, direction

    def _path(self, direction: Direction, t: Tensor, *, bent: bool) -> Tensor:
        """Where a step of length t ends; bent: stopped on the attracting kinks in its way."""
        now = self.now
        end = now.c + t[:, None] * direction.dc
        if not bent:
            return end
        assert now.frozen is not None
        return self.kinks.project(end, now.frozen, now.reduction.holds.keep)

    def _steepest(
        self, system: FrozenSystem, gradient: Tensor, direction: Direction, slope: Tensor,
        uphill: Tensor,
    ) -> tuple[Direction, Tensor]:  # fmt: skip
        dc, dm = system.forward(-gradient)
        self.passes += 1
        pick = uphill[:, None]
        mixed = Direction(
            torch.where(pick, -gradient, direction.u),
            torch.where(pick, dc, direction.dc),
            torch.where(pick, dm, direction.dm),
            direction.steps,
        )
        return mixed, torch.where(uphill, -gradient.square().sum(1), slope)

    def _search(
        self, direction: Direction, here: Forces, slope: Tensor, *, bent: bool
    ) -> Tensor:  # fmt: skip
        now = self.now

        def along(t: Tensor) -> tuple[Tensor, Tensor]:
            c = self._path(direction, t, bent=bent)
            m = now.reduction.incoming(c)
            self.passes += 1
            there = forces(now.reduction, c, m)
            return there.energy, there.slope(direction.dc, direction.dm)

        return line_search(along, here.energy, slope, refine=0).length

    def _solution(self, outcome: Outcome) -> Solution:
        now, whole = self.now, self.whole
        unfinished = self.left[now.index]
        self.final[now.index[unfinished]] = now.c[unfinished]
        m = whole.incoming(self.final)
        self.passes += 1
        last = forces(whole, self.final, m)
        z = m if last.gates is None else last.gates.z
        cochain = whole.restore(self.final, m, z)
        return Solution(cochain, self.settled, self.passes, outcome, tuple(self.trace))
