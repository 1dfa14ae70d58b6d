"""Gates whose pre-activation stays a variable: freeze it on a kink, tie it, or let it pass.

A pre-activation that feeds a gate and something else (a skip), or a max-pool, is not eliminated.
Upward kinks of E then remain, and minimisers sit on them: they are an active set here.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from torchsheaf.boundary.stationarity import gate_breaks, slope_step
from torchsheaf.boundary.ties import Windows, choices, settle
from torchsheaf.harmonic.groups import join, level
from torchsheaf.harmonic.reduction import Cell, Layout
from torchsheaf.network import Composition, Gate, Network, ScalarGate


@dataclass(frozen=True)
class Frozen:
    """What does not move on its own during one step.

    `stuck` (like C): coordinates sitting on an attracting breakpoint. `leader` (like C): for each
    column the column that it moves with, itself unless it is tied. `pattern`: the piece to use,
    by gate operation.
    """

    stuck: Tensor
    leader: Tensor
    pattern: Mapping[str, Tensor]

    def samples(self, keep: Tensor) -> "Frozen":
        """The chosen samples."""
        pattern = {n: t[keep] for n, t in self.pattern.items()}
        return Frozen(self.stuck[keep], self.leader[keep], pattern)

    @property
    def ties(self) -> Tensor:
        """Which columns follow another one."""
        return self.leader != torch.arange(self.leader.shape[1], device=self.leader.device)

    def same(self, other: "Frozen") -> Tensor:
        """Per sample, whether two active sets are equal."""
        return ((self.stuck == other.stuck) & (self.leader == other.leader)).all(1)


SHARES = 1e-6
"""Error of the shares of a pull among tied entries, relative to the largest pull."""


@dataclass(frozen=True)
class _Site:
    """One gate operation whose operand is made of variables."""

    cell: Cell
    operation: str
    operand: str


def kink_sites(layout: Layout) -> tuple[_Site, ...]:
    """The gates that were not eliminated."""
    return tuple(
        _Site(cell, op.name, op.operands[0])
        for cell in layout.cells
        for op in cell.node.gates
        if any(p in layout.slots for p in cell.node.parents)
    )


class Kinks:
    """The kinks at one point: where they are, which attract, and paths that respect them."""

    def __init__(
        self,
        layout: Layout,
        network: Network,
        point: Mapping[str, Tensor],
        maps: Mapping[str, Composition],
        on_values: Tensor,
    ) -> None:
        self._layout, self._maps = layout, maps
        self._scalars: list[tuple[_Site, Gate, Tensor, Tensor]] = []
        self._pools: list[_Pool] = []
        operands: dict[str, dict[str, tuple[Gate, Tensor]]] = {}
        for site in kink_sites(layout):
            node = site.cell.node
            if node.name not in operands:
                operands[node.name] = network.gate_operands(node, point)
            gate, z = operands[node.name][site.operation]
            cotangent = on_values[:, site.cell.rows].reshape(-1, *layout.shapes[node.name])
            force = maps[node.name].pull_tapped(cotangent)[1][site.operation]
            windows = Windows.of(gate, z)
            if windows is None:
                self._scalars.append((site, gate, z, force))
            else:
                self._pools.append(self._pool(site, windows, gate, z, force))

    @property
    def choices(self) -> Tensor | None:
        """Per sample, how many turns `freeze` has to take; None where there is but one."""
        several = [choices(p.tied, p.pull) for p in self._pools]
        return torch.stack(several).amax(0) if several else None

    def freeze(self, plain: Tensor, keep: Tensor | None, turn: Tensor) -> Frozen:
        """Choose the active set; `plain` is ∂E/∂C in the pieces that the gates select.

        `keep` is 0 at columns that are held anyway. `turn` (batch,) says to which of the tied
        entries an upward pull goes: at a local minimum every choice must leave nothing to gain.
        """
        n, width = plain.shape
        stuck = torch.zeros_like(plain, dtype=torch.bool)
        pattern: dict[str, Tensor] = {}
        jump = torch.zeros_like(plain)
        for site, gate, z, force in self._scalars:
            at, step = slope_step(gate, z)
            if bool(at.any()):
                self._add(jump, site, step * force)
        for site, gate, z, _ in self._scalars:
            at, step = slope_step(gate, z)
            if not bool(at.any()):
                continue
            low, up = plain - jump, plain
            held = (jump > 0) & (low < 0) & (up > 0)
            stuck |= held & (self._columns(site, at.to(plain.dtype)) > 0)
            # off the kink, the side on which the energy falls (faster) is the piece to use
            upward, downward = (-up).clamp_min(0), low.clamp_min(0)
            below = self._seen(site, (downward > upward).to(plain.dtype)) > 0
            selected = gate.select(z)
            pattern[site.operation] = torch.where(at & below, selected - step, selected)
        leader = torch.arange(width, device=plain.device).repeat(n, 1)
        fixed = stuck if keep is None else stuck | (keep == 0)
        for pool in self._pools:
            leader = self._tie(pool, plain, leader, fixed, pattern, turn)
        return Frozen(stuck, leader, pattern)

    def _tie(
        self, pool: "_Pool", plain: Tensor, leader: Tensor, fixed: Tensor,
        pattern: dict[str, Tensor], turn: Tensor,
    ) -> Tensor:  # fmt: skip
        """Pulled down: those with a share of the pull stay together. Pulled up: one goes alone."""
        windows, tied, pull = pool.windows, pool.tied, pool.pull
        pattern[pool.site.operation] = pool.selected
        several = (tied.sum(-1) > 1) & (pull != 0)
        if not bool(several.any()):
            return leader
        total = windows.sign * self._seen(pool.site, plain)
        share, _ = settle(total, windows, pool.selected, tied, pull, turn=turn, tol=SHARES)
        chief = windows.selection(share.abs().argmax(-1), pool.selected)
        pattern[pool.site.operation] = torch.where(
            several.reshape(chief.shape), chief, pool.selected
        )
        if pool.columns is None:
            return leader
        return join(leader, pool.columns, share > 0, fixed)

    def project(self, end: Tensor, frozen: Frozen, keep: Tensor | None) -> Tensor:
        """The end of a step, stopped on the attracting kinks that it would cross."""
        end = end.clone()
        for site, gate, z, force in self._scalars:
            self._stop(site, gate, z, force, end, frozen)
        fixed = frozen.stuck if keep is None else frozen.stuck | (keep == 0)
        leader = frozen.leader
        for pool in self._pools:
            if pool.columns is not None:
                end, leader = self._level(pool, end, leader, fixed, frozen)
        return end

    def block(self, dc: Tensor, frozen: Frozen, keep: Tensor | None) -> Frozen | None:
        """The active set enlarged by what a direction would push through its kink at once.

        Such a coordinate sits on an attracting kink that it may leave to one side, but dc takes it
        to the other. None when there is no such coordinate: then dc is a descent direction.
        """
        stuck = frozen.stuck.clone()
        for site, gate, z, force in self._scalars:
            moved = self._seen(site, dc)
            at, step = slope_step(gate, z)
            wrong = at & (step * force > 0) & self._leaves_wrongly(site, gate, z, moved, frozen)
            stuck |= self._columns(site, wrong.to(z.dtype)) > 0
        fixed = stuck
        if keep is not None:
            stuck, fixed = stuck & (keep != 0), stuck | (keep == 0)
        leader = frozen.leader
        for pool in self._pools:
            if pool.columns is None:
                continue
            wrong, chief = self._ahead(pool, dc, leader, fixed, frozen)
            wrong &= pool.tied
            if bool(wrong.any()):
                leader = join(leader, pool.columns, wrong | (chief & wrong.any(-1, True)), fixed)
        larger = Frozen(stuck, leader, frozen.pattern)
        return None if bool(larger.same(frozen).all()) else larger

    def _ahead(
        self, pool: "_Pool", values: Tensor, leader: Tensor, fixed: Tensor, frozen: Frozen
    ) -> tuple[Tensor, Tensor]:
        """Entries (batch, W, K) above their window's chief where it is pulled down, and chiefs."""
        windows, columns = pool.windows, pool.columns
        assert columns is not None
        position = windows.position(frozen.pattern[pool.site.operation])[..., None]
        chief = (windows.inside == position) & windows.valid
        column = torch.where(chief, columns, 0).amax(-1)
        first = leader.gather(1, column)[..., None]
        others = leader[:, columns]
        above = (
            windows.sign * values[:, columns] > windows.sign * values.gather(1, column)[..., None]
        )
        down = (pool.pull > 0)[..., None] & windows.valid
        both = fixed[:, columns] & fixed.gather(1, first.flatten(1))[..., None]
        return down & above & (others != first) & ~both, chief

    def _leaves_wrongly(
        self, site: _Site, gate: Gate, z: Tensor, moved: Tensor, frozen: Frozen
    ) -> Tensor:
        above = frozen.pattern.get(site.operation, gate.select(z)) == gate.select(z)
        return torch.where(above, moved < 0, moved > 0)

    def _stop(
        self, site: _Site, gate: Gate, z: Tensor, force: Tensor, end: Tensor, frozen: Frozen
    ) -> None:
        after = self._seen(site, end)
        wrongly = self._leaves_wrongly(site, gate, z, after - z, frozen)
        hit, value = torch.zeros_like(z, dtype=torch.bool), torch.zeros_like(z)
        for t, rise in gate_breaks(gate, z):
            attracting = rise * force > 0
            crossed = ((z - t) * (after - t) < 0) | ((z == t) & wrongly)
            here = attracting & crossed & ~hit
            hit |= here
            value = torch.where(here, t, value)
        if isinstance(gate, ScalarGate) and bool(hit.any()):
            count = self._columns(site, hit.to(z.dtype))
            moved = self._columns(site, torch.where(hit, value, 0))
            end.copy_(torch.where(count > 0, moved / count.clamp_min(1), end))
        elif bool(hit.any()):
            count = self._columns(site, hit.to(z.dtype))
            end.copy_(torch.where(count > 0, 0, end))

    def _level(
        self, pool: "_Pool", end: Tensor, leader: Tensor, fixed: Tensor, frozen: Frozen
    ) -> tuple[Tensor, Tensor]:
        """Entries that would overtake a maximum which is pulled down join it, at the mean."""
        while True:
            over, chief = self._ahead(pool, end, leader, fixed, frozen)
            if not bool(over.any()):
                return end, leader
            assert pool.columns is not None
            leader = join(leader, pool.columns, over | (chief & over.any(-1, True)), fixed)
            end = level(end, leader, fixed)

    def _columns(self, site: _Site, values: Tensor) -> Tensor:
        """Carry numbers at a gate's operand back to the columns of C (summed)."""
        out = values.new_zeros(values.shape[0], self._layout.variables)
        self._add(out, site, values)
        return out

    def _add(self, out: Tensor, site: _Site, values: Tensor) -> None:
        node = site.cell.node
        for parent, g in self._maps[node.name].pull_into(site.operand, values).items():
            if parent in self._layout.slots:
                out[:, self._layout.slots[parent]] += g.reshape(g.shape[0], -1)

    def _seen(self, site: _Site, columns: Tensor) -> Tensor:
        """What a gate's operand reads from columns of C."""
        node, layout = site.cell.node, self._layout
        read = {
            p: columns[:, layout.slots[p]].reshape(-1, *layout.shapes[p])
            for p in node.parents
            if p in layout.slots
        }
        return self._maps[node.name].push_into(site.operand, read)

    def _pool(self, site: _Site, windows: Windows, gate: Gate, z: Tensor, force: Tensor) -> "_Pool":
        pull = (windows.sign * force).flatten(1)
        return _Pool(
            site,
            windows,
            gate.select(z),
            windows.tied(z),
            pull,
            self._read_columns(site, windows, z),
        )

    def _read_columns(self, site: _Site, windows: Windows, z: Tensor) -> Tensor | None:
        """Column of C that each window entry is, (W, K); None when it is no plain relabelling."""
        layout = self._layout
        if len(site.cell.node.parents) != 1 or site.cell.node.parents[0] not in layout.slots:
            return None
        width = layout.variables
        numbers = torch.arange(width, device=z.device, dtype=torch.float64)
        seen = self._seen(site, numbers.to(z.dtype).expand(z.shape[0], width))
        whole = seen.round()
        if seen.shape != z.shape or not bool((whole == seen).all()):
            return None
        return whole[0].long().flatten()[windows.inside]


@dataclass(frozen=True)
class _Pool:
    """A gate that selects one entry per window: who ties, and how it is pulled.

    `tied` (batch, W, K); `pull` (batch, W), positive where E pulls the maximum down.
    """

    site: _Site
    windows: Windows
    selected: Tensor
    tied: Tensor
    pull: Tensor
    columns: Tensor | None
