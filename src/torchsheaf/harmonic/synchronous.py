"""Newton's method step by step for the whole batch: smooth edges, and kinks that stay."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from torchsheaf.cochain import Cochain, is_finite
from torchsheaf.harmonic.active import Active
from torchsheaf.harmonic.curvature import Curvature
from torchsheaf.harmonic.frozen_system import Direction, FrozenSystem, Maps, newton_direction
from torchsheaf.harmonic.kinks import Frozen, Geometry, Kinks, kink_sites
from torchsheaf.harmonic.line_search import Step, line_search, rounding
from torchsheaf.harmonic.reduced_energy import Forces, branch, forces, restored
from torchsheaf.harmonic.reduction import Reduction
from torchsheaf.harmonic.solver import Progress, Solution
from torchsheaf.harmonic.stall import note_progress
from torchsheaf.outcome import Outcome

FORCING = 0.1
PATIENCE = 10
"""Steps without progress after which a sample is given up."""
Path = Callable[[Tensor], tuple[Tensor, Tensor]]
"""t (batch,) ↦ (C, M) after t of a step."""
BLOCKINGS = 4
"""How often a direction that runs into a kink at once is solved for again."""


class SynchronousNewton:
    """One run of inexact Newton for networks with smooth edges or with kinks that stay.

    The maps are linearised anew at every step, and every outer step waits for the slowest sample's
    conjugate gradients. Smooth edges: second derivatives in the model, a trust region per sample
    (Steihaug 1983), steps along the better of two paths. Kinks that stay: an active set.

    Source: docs/notes/solver.md §3 and §4.
    """

    def __init__(
        self, reduction: Reduction, start: Cochain, tol: float, max_passes: int
    ) -> None:  # fmt: skip
        self.whole, self.tol, self.max_passes = reduction, tol, max_passes
        layout, nodes = reduction.layout, [c.node for c in reduction.layout.cells]
        self.smooth = any(not n.piecewise_affine for n in nodes)
        sites = kink_sites(layout)
        self.sites = bool(sites)
        self.regions = self.smooth and all(site.curved for site in sites)
        self.divisible = reduction.problem.sheaf.network.fixed_batch is None
        c = layout.gather(start)
        self.final = c.clone()
        self.settled = torch.zeros(c.shape[0], dtype=torch.bool, device=c.device)
        self.left = torch.ones_like(self.settled)
        self.energy = c.new_zeros(c.shape[0])
        self.passes = 1
        self.trace: list[float] = []
        index = torch.arange(c.shape[0], device=c.device)
        none, far = torch.zeros_like(index), torch.full_like(self.energy, torch.inf)
        self.now = Active(
            index, reduction, c, reduction.incoming(c), turn=none, radius=far,
            curved=torch.zeros_like(self.settled), least=far, lowest=far, failed=none,
        )  # fmt: skip
        self._maps: Maps = {}
        self._geometry: Geometry = {}
        self.kinks: Kinks
        self.returned: Tensor

    def run(self, tell: Progress) -> Solution:
        outcome, stuck = Outcome.SETTLED, False
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
            gradient = self._gradient(system, here)
            done = self._arrived(system, here, gradient)
            turned = self._turn(done)
            done &= ~turned
            stalled = self._stalled(here, gradient, turned) & ~done & self.left[now.index]
            stuck |= bool(stalled.any())
            done |= stalled
            self._retire(done, ~stalled)
            left = int(self.left.sum())
            tell(1 - left / len(self.left))
            if not left:
                outcome = Outcome.STALLED if stuck else outcome
                break
            if self.passes >= self.max_passes:
                outcome = Outcome.STEP_LIMIT
                break
            if bool(done.any()) and self.divisible:
                keep = ~done
                self.now = self.now.samples(keep)
                here, gradient, turned = here.samples(keep), gradient[keep], turned[keep]
                if self.regions:
                    self.returned = self.returned[keep]
                system = self._system(here, self.now.frozen)
            if not self._advance(system, here, gradient, turned):
                outcome = Outcome.STALLED
                break
        return self._solution(outcome)

    def _system(self, here: Forces, frozen: Frozen | None = None) -> FrozenSystem:
        now, layout = self.now, self.now.reduction.layout
        self._maps = now.reduction.linearise(now.c)
        if self.sites:
            frozen = self._active_set(here, frozen)
        now.frozen = frozen
        model = branch(now.reduction, now.c, here.gates, frozen)
        return FrozenSystem(layout, self._maps, model)

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
        self._maps = now.reduction.linearise(now.c, frozen.pattern)
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

    def _gradient(self, system: FrozenSystem, here: Forces) -> Tensor:
        """∂E/∂u; for curved steps `returned` keeps what the sweep carries past every value."""
        self.passes += 1
        if not self.regions:
            return system.reverse(here.on_variables, here.on_values)
        self.returned = here.on_values.clone()
        return system.reverse(here.on_variables.clone(), self.returned, overwrite=True)

    def _arrived(self, system: FrozenSystem, here: Forces, gradient: Tensor) -> Tensor:
        """Which samples are stationary: ‖∂E/∂C‖ ≤ tol, tested where ‖g_u‖ comes near."""
        near = gradient.norm(dim=1) <= 10 * self.tol
        if not bool(near.any()):
            return near
        plain = system.reverse(here.on_variables, here.on_values, substitute=False, scaled=False)
        self.passes += 1
        if self.now.frozen is not None:
            plain = system.fold(plain).masked_fill(self.now.frozen.stuck, 0)
        keep = self.now.reduction.holds.keep
        if keep is not None:
            plain = plain * keep
        return near & (plain.norm(dim=1) <= self.tol)

    def _stalled(self, here: Forces, gradient: Tensor, turned: Tensor) -> Tensor:
        """No progress in `PATIENCE` steps, at the rounding floor; a turn begins anew."""
        now = self.now
        now.lowest, now.least, now.failed = note_progress(
            here.energy, gradient.norm(dim=1), now.lowest, now.least, now.failed
        )
        now.failed = now.failed.masked_fill(turned, 0)
        return now.failed >= PATIENCE

    def _turn(self, rest: Tensor) -> Tensor:
        """Samples at rest that have not yet tried every choice at tied windows pulled upwards."""
        now = self.now
        several = self.kinks.choices if self.sites and bool(rest.any()) else None
        if several is None:
            return torch.zeros_like(rest)
        turned = rest & (now.turn + 1 < several)
        now.turn = now.turn + turned
        return turned

    def _retire(self, done: Tensor, arrived: Tensor) -> None:
        now = self.now
        index = now.index[done]
        self.final[index] = now.c[done]
        assert now.quiet is not None
        self.settled[index] = (now.quiet & arrived)[done]
        self.left[index] = False

    def _advance(
        self, system: FrozenSystem, here: Forces, gradient: Tensor, turned: Tensor
    ) -> bool:  # fmt: skip
        """One Newton step for every active sample; False when none of them can move.

        Those that have `turned` stay where they are: their next active set is another one.
        """
        now = self.now
        if self.smooth:
            system = self._with_curvature(system, here)
        direction = self._direction(system, here, gradient)
        if self.sites:
            system, gradient, direction = self._unblock(system, here, gradient, direction)
        slope = torch.linalg.vecdot(gradient, direction.u)
        uphill = ~(slope < 0)
        if bool(uphill.any()):  # rounding only: fall back to steepest descent in u
            direction, slope = self._steepest(system, gradient, direction, slope, uphill)
        moving = self.left[now.index] & ~turned
        slope = torch.where(moving, slope, 0)
        if self.regions:
            path, whole = self._mixed(system, direction)
            step, (c, m) = self._search(path, here, slope, whole)
        else:
            path = self._even(direction)
            step, (c, m) = self._search(path, here, slope)
        length, energy = step.length * moving, step.energy
        if self.sites and bool((moving & (length == 0)).any()):
            stopped = length == 0
            straight, (c_straight, m_straight) = self._search(
                self._straight(direction), here, slope
            )
            length = torch.where(stopped, straight.length * moving, length)
            energy = torch.where(stopped, straight.energy, energy)
            c = torch.where(stopped[:, None], c_straight, c)
            m = torch.where(stopped[:, None], m_straight, m)
        moved = (length > 0)[:, None]
        now.c, now.m = torch.where(moved, c, now.c), torch.where(moved, m, now.m)
        if self.regions:
            self._trust(direction, here, energy, length)
        now.turn = torch.where(length > 0, 0, now.turn)
        return bool((turned | (length > 0)).any())

    def _direction(self, system: FrozenSystem, here: Forces, gradient: Tensor) -> Direction:
        forcing = gradient.norm(dim=1).sqrt().clamp_max(FORCING)
        radius = self._radius(here) if self.regions else None
        direction = newton_direction(system, gradient, forcing, radius=radius)
        # a product with the curvature of smooth edges is one more local reverse pass
        self.passes += (2 if system.curvature is None else 3) * direction.steps
        return direction

    def _with_curvature(self, system: FrozenSystem, here: Forces) -> FrozenSystem:
        """Add the second derivatives of smooth edges, each weighted with the pull on its value.

        Where values last moved on a straight line that is the force of its own edge; where
        residuals did, the derivative that has come back through the network. Both agree at
        equilibria.
        """
        now = self.now
        point, network = now.reduction.point(now.c), now.reduction.problem.sheaf.network
        pull = here.on_values
        if self.regions:
            pull = torch.where(now.curved[:, None], self.returned, pull)
        curvature = Curvature(now.reduction.layout, network, self._maps, point, pull)
        return replace(system, curvature=curvature or None)

    def _radius(self, here: Forces) -> Tensor:
        """Of the trust regions; at first the norm of all residuals."""
        now = self.now
        now.radius = torch.where(now.radius.isinf(), (2 * here.energy).sqrt(), now.radius)
        return now.radius

    def _trust(self, direction: Direction, here: Forces, energy: Tensor, length: Tensor) -> None:
        """New radii: the part of the step that was taken, where it had to be shortened; half of it
        where E fell by less than a quarter of what was predicted; twice as far where a step to the
        edge did better than three quarters. What is predicted below rounding error says nothing.
        """
        radius, norm = self.now.radius, direction.norm
        predicted, fell = -direction.model, here.energy - energy
        significant = predicted > 10 * rounding(here.energy)
        radius = torch.where((fell > 0.75 * predicted) & direction.edge, 2 * radius, radius)
        radius = torch.where(significant & (fell < 0.25 * predicted), 0.5 * norm, radius)
        self.now.radius = torch.where(length < 1, length.clamp_min(0.1) * norm, radius)

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
            self.passes += 1
            direction = self._direction(system, here, gradient)
        return system, gradient, direction

    def _straight(self, direction: Direction) -> Path:
        """Values move evenly."""
        now = self.now

        def path(t: Tensor) -> tuple[Tensor, Tensor]:
            c = now.c + t[:, None] * direction.dc
            self.passes += 1
            return c, now.reduction.incoming(c)

        return path

    def _even(self, direction: Direction) -> Path:
        """Straight, but stopped on the attracting kinks in its way."""
        if not self.sites:
            return self._straight(direction)
        now = self.now
        return lambda t: self._stopped(now.c + t[:, None] * direction.dc)

    def _stopped(self, end: Tensor) -> tuple[Tensor, Tensor]:
        """(C, M) at the end of a step, stopped on the attracting kinks that it would cross."""
        now = self.now
        assert (frozen := now.frozen) is not None
        c = self.kinks.project(end, frozen, now.reduction.holds.keep)
        self.passes += 1
        return c, now.reduction.incoming(c)

    def _mixed(
        self, system: FrozenSystem, direction: Direction
    ) -> tuple[Path, tuple[Tensor, Tensor, Tensor]]:
        """Per sample straight, or curved so that residuals move evenly: the lower one at t = 1.

        Also (C, M) and E there. Cost: two forward passes, and one for every further trial.
        """
        now, move = self.now, system.branch.scale * direction.u

        def curved(t: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
            pick, t = chosen[:, None], t[:, None]
            by = t * torch.where(pick, move, direction.dc)
            self.passes += 1
            c, m = now.reduction.substituted(now.c, now.m, by, system.branch.slope * pick)
            return self._stopped(c) if self.sites else (c, m)

        whole = torch.ones_like(direction.norm)
        ends = [self._even(direction)(whole), curved(whole, torch.ones_like(now.curved))]
        energies = [forces(now.reduction, c, m).energy.nan_to_num(nan=torch.inf) for c, m in ends]
        now.curved = energies[1] < energies[0]
        pick = now.curved[:, None]
        c, m = (torch.where(pick, b, a) for a, b in zip(*ends, strict=True))
        return lambda t: curved(t, now.curved), (c, m, torch.minimum(*energies))

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
            direction.model.masked_fill(uphill, 0),
            direction.edge & ~uphill,
            torch.where(uphill, gradient.norm(dim=1), direction.norm),
        )
        return mixed, torch.where(uphill, -gradient.square().sum(1), slope)

    def _search(
        self, path: Path, here: Forces, slope: Tensor,
        whole: tuple[Tensor, Tensor, Tensor] | None = None,
    ) -> tuple[Step, tuple[Tensor, Tensor]]:  # fmt: skip
        """How far along the path, and (C, M) there: the last trial is where every sample ends.

        `whole` is (C, M) and E at t = 1 where they are known.
        """
        end = (self.now.c, self.now.m) if whole is None else whole[:2]

        def along(t: Tensor) -> tuple[Tensor, Tensor]:
            nonlocal end
            end = path(t)
            return forces(self.now.reduction, *end).energy, slope  # no secants: no slope is asked

        first = None if whole is None else (whole[2], slope)
        return line_search(along, here.energy, slope, whole=first, refine=0), end

    def _solution(self, outcome: Outcome) -> Solution:
        now, whole = self.now, self.whole
        unfinished = self.left[now.index]
        self.final[now.index[unfinished]] = now.c[unfinished]
        m = whole.incoming(self.final)
        self.passes += 1
        cochain = restored(whole, self.final, m)
        return Solution(cochain, self.settled, self.passes, outcome, tuple(self.trace))
