"""Gates whose pre-activation stays a variable: freeze it on a kink, tie it, or let it pass.

A pre-activation that feeds a gate and something else (a skip), or a max-pool, is not eliminated.
Upward kinks of E then remain, and minimisers sit on them: they are an active set here.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from torchsheaf.boundary.stationarity import slope_step
from torchsheaf.boundary.ties import Maxima, coordinates_read, widened
from torchsheaf.boundary.windows import Windows
from torchsheaf.harmonic.groups import join, level
from torchsheaf.harmonic.reduction import Cell, Layout
from torchsheaf.network import Composition, Gate, Network


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


Geometry = dict[str, tuple[Windows | None, tuple[str, Tensor] | None]]
"""By gate operation, what is the same at every point: its windows and what they read."""
SHARES = 1e-6
"""Error of the shares of a pull among tied entries, relative to the largest pull."""


@dataclass(frozen=True)
class _Site:
    """One gate operation whose operand is made of variables."""

    cell: Cell
    operation: str
    operand: str
    curved: bool


def kink_sites(layout: Layout) -> tuple[_Site, ...]:
    """The gates that were not eliminated."""
    return tuple(
        _Site(cell, op.name, op.operands[0], op.rule.gate is None)
        for cell in layout.cells
        for op in cell.node.kinked
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
        geometry: Geometry,
    ) -> None:
        self._layout, self._maps = layout, maps
        self._scalars: list[tuple[_Site, Gate, Tensor, Tensor]] = []
        self._pools: list[_Pool] = []
        operands: dict[str, dict[str, tuple[Gate, Tensor]]] = {}
        for site in kink_sites(layout):
            node = site.cell.node
            if node.name not in operands:
                operands[node.name] = network.kink_operands(node, point)
            gate, z = operands[node.name][site.operation]
            cotangent = on_values[:, site.cell.rows].reshape(-1, *layout.shapes[node.name])
            force = maps[node.name].pull_tapped(cotangent)[1][site.operation]
            if site.operation not in geometry:
                movable = {n: layout.shapes[n] for n in layout.slots}
                block = coordinates_read(maps[node.name], site.operand, z, movable)
                geometry[site.operation] = Windows.of(gate, z), block
            windows, block = geometry[site.operation]
            if windows is None:
                self._scalars.append((site, gate, z, force))
            elif block is not None:  # else the gate keeps the piece that it selects
                parent, numbers = block
                first, selected = layout.slots[parent].start, gate.select(z)
                maxima = Maxima.of(windows, z, selected, force, numbers, first)
                self._pools.append(_Pool(site.operation, windows, selected, maxima))
        self._maxima = Maxima.beside([p.maxima for p in self._pools]) if self._pools else None

    @property
    def choices(self) -> Tensor | None:
        """Per sample, how many turns `freeze` has to take; None where there is but one."""
        return None if self._maxima is None else self._maxima.choices

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
            # off the kink, the side on which the energy falls faster, or rises less, is the piece
            below = self._seen(site, (low + up > 0).to(plain.dtype)) > 0
            selected = gate.select(z)
            pattern[site.operation] = torch.where(at & below, selected - step, selected)
        leader = torch.arange(width, device=plain.device).repeat(n, 1)
        fixed = stuck if keep is None else stuck | (keep == 0)
        if self._maxima is not None and bool(self._maxima.several.any()):
            share, _ = self._maxima.shares(plain, fixed.expand_as(plain), turn=turn, tol=SHARES)
            leader = join(leader, self._maxima.inside, share > 0, fixed)
            self._select(share, pattern)
        return Frozen(stuck, leader, pattern)

    def _select(self, share: Tensor, pattern: dict[str, Tensor]) -> None:
        """Where entries tie, the gate's piece is the one with the largest share."""
        widths = [p.maxima.pull.shape[1] for p in self._pools]
        for pool, given in zip(self._pools, share.split(widths, 1), strict=True):
            several = pool.maxima.several[..., 0].reshape(pool.selected.shape)
            chief = pool.windows.selection(given.abs().argmax(-1), pool.selected)
            pattern[pool.operation] = torch.where(several, chief, pool.selected)

    def project(self, end: Tensor, frozen: Frozen, keep: Tensor | None) -> Tensor:
        """The end of a step, stopped on the attracting kinks that it would cross."""
        end = end.clone()
        for site, gate, z, force in self._scalars:
            self._stop(site, gate, z, force, end, frozen)
        fixed = frozen.stuck if keep is None else frozen.stuck | (keep == 0)
        return end if self._maxima is None else self._level(end, fixed, frozen)

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
        if self._maxima is not None:
            chief = self._chiefs(frozen)
            wrong = self._ahead(dc, chief, leader, fixed) & self._maxima.tied
            leader = self._united(leader, wrong, chief, fixed)
        larger = Frozen(stuck, leader, frozen.pattern)
        return None if bool(larger.same(frozen).all()) else larger

    def _chiefs(self, frozen: Frozen) -> Tensor:
        """The entry that each window's frozen piece takes, as a mask `(batch, W, K)`."""
        assert self._maxima is not None
        width = self._maxima.inside.shape[1]
        pieces = [frozen.pattern.get(p.operation, p.selected) for p in self._pools]
        taken = zip(self._pools, pieces, strict=True)
        return torch.cat([widened(p.windows.chosen(piece), width) for p, piece in taken], 1)

    def _ahead(self, values: Tensor, chief: Tensor, leader: Tensor, fixed: Tensor) -> Tensor:
        """Entries (batch, W, K) above their window's chief where it is pulled down."""
        maxima = self._maxima
        assert maxima is not None
        column = torch.where(chief, maxima.inside, 0).amax(-1)
        first = leader.gather(1, column)
        others = leader[:, maxima.inside]
        level = (maxima.sign[:, 0] * values.gather(1, column))[..., None]
        leads = fixed.gather(1, leader)  # a group with a fixed leader does not move
        movable = ~(leads[:, maxima.inside] & leads.gather(1, first)[..., None])
        down = (maxima.pull > 0)[..., None] & maxima.valid
        return down & (maxima.gather(values) > level) & (others != first[..., None]) & movable

    def _united(self, leader: Tensor, more: Tensor, chief: Tensor, fixed: Tensor) -> Tensor:
        """Groups in which the entries `more` have joined their windows' chiefs."""
        assert self._maxima is not None
        if not bool(more.any()):
            return leader
        return join(leader, self._maxima.inside, more | (chief & more.any(-1, True)), fixed)

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
        for t, rise in gate.kinks(z):
            attracting = rise * force > 0
            crossed = ((z - t) * (after - t) < 0) | ((z == t) & wrongly)
            here = attracting & crossed & ~hit
            hit |= here
            value = torch.where(here, t, value)
        if bool(hit.any()):
            count = self._columns(site, hit.to(z.dtype))
            moved = self._columns(site, torch.where(hit, value, 0))
            end.copy_(torch.where(count > 0, moved / count.clamp_min(1), end))

    def _level(self, end: Tensor, fixed: Tensor, frozen: Frozen) -> Tensor:
        """Entries that would overtake a maximum which is pulled down join it, at the mean."""
        leader, chief = frozen.leader, self._chiefs(frozen)
        for _ in range(leader.shape[1]):  # every round joins one column at least
            over = self._ahead(end, chief, leader, fixed)
            if not bool(over.any()):
                break
            leader = self._united(leader, over, chief, fixed)
            end = level(end, leader, fixed)
        return end

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


@dataclass(frozen=True)
class _Pool:
    """A gate that selects one entry per window; its `maxima` are numbered by columns of C."""

    operation: str
    windows: Windows
    selected: Tensor
    maxima: Maxima
