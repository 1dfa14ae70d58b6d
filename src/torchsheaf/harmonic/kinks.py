"""Gates whose pre-activation stays a variable: freeze it on a kink, tie it, or let it pass.

A pre-activation that feeds a gate and something else (a skip), or a max-pool, is not eliminated.
Upward kinks of E then remain, and minimisers sit on them: they are an active set here.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from torchsheaf.boundary.stationarity import gate_breaks, slope_step
from torchsheaf.boundary.ties import Windows
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
        self._gates: list[tuple[_Site, Gate, Tensor, Tensor]] = []
        operands: dict[str, dict[str, tuple[Gate, Tensor]]] = {}
        for site in kink_sites(layout):
            node = site.cell.node
            if node.name not in operands:
                operands[node.name] = network.gate_operands(node, point)
            gate, z = operands[node.name][site.operation]
            cotangent = on_values[:, site.cell.rows].reshape(-1, *layout.shapes[node.name])
            force = maps[node.name].pull_tapped(cotangent)[1][site.operation]
            self._gates.append((site, gate, z, force))

    def freeze(self, plain: Tensor, keep: Tensor | None) -> Frozen:
        """Choose the active set; `plain` is ∂E/∂C in the pieces that the gates select.

        `keep` is 0 at columns that are held anyway.
        """
        n, width = plain.shape
        stuck = torch.zeros_like(plain, dtype=torch.bool)
        leader = torch.arange(width, device=plain.device).repeat(n, 1)
        pattern: dict[str, Tensor] = {}
        jump = torch.zeros_like(plain)
        for site, gate, z, force in self._gates:
            at, step = slope_step(gate, z)
            if bool(at.any()):
                self._add(jump, site, step * force)
        for site, gate, z, force in self._gates:
            windows = Windows.of(gate)
            if windows is not None:
                self._tie(site, windows, z, force, plain, leader, pattern)
                continue
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
        return Frozen(stuck, _roots(leader, stuck, keep), pattern)

    def _tie(
        self, site: _Site, windows: Windows, z: Tensor, force: Tensor, plain: Tensor,
        leader: Tensor, pattern: dict[str, Tensor],
    ) -> None:  # fmt: skip
        members, valid = windows.members(z)
        pull = windows.sign * force
        if members.shape[0] == 1:
            pattern[site.operation] = members[0]
            return
        total = self._seen(site, plain)
        own = windows.sign * torch.stack([windows.take(total, m) for m in members])
        own = torch.cat([own[:1] - pull, own[1:]])
        down = pull > 0
        # pulled down: whoever resists most leads, all who resist follow; pulled up: one goes alone
        key = torch.where(valid, torch.where(down, -own, own), -torch.inf)
        best = key.argmax(0, keepdim=True)
        chosen = members.gather(0, best)[0]
        pattern[site.operation] = torch.where(pull != 0, chosen, members[0])
        columns = self._column_numbers(site, z)
        if columns is None:
            return
        chief = windows.take(columns, pattern[site.operation]).flatten(1)
        for k in range(members.shape[0]):
            follows = (valid[k] & down & (own[k] < 0)).flatten(1)
            mine = windows.take(columns, members[k]).flatten(1)
            leader.scatter_(1, mine, torch.where(follows, chief, leader.gather(1, mine)))

    def project(self, start: Tensor, end: Tensor, frozen: Frozen) -> Tensor:
        """The end of a step, stopped on the attracting kinks that it would cross."""
        end = end.clone()
        for site, gate, z, force in self._gates:
            windows = Windows.of(gate)
            if windows is not None:
                self._level(site, windows, force, end, frozen)
            else:
                self._stop(site, gate, z, force, end, frozen)
        return end

    def block(self, dc: Tensor, frozen: Frozen, keep: Tensor | None) -> Frozen | None:
        """The active set enlarged by what a direction would push through its kink at once.

        Such a coordinate sits on an attracting kink that it may leave to one side, but dc takes it
        to the other. None when there is no such coordinate: then dc is a descent direction.
        """
        stuck, leader = frozen.stuck.clone(), frozen.leader.clone()
        for site, gate, z, force in self._gates:
            windows = Windows.of(gate)
            moved = self._seen(site, dc)
            if windows is None:
                at, step = slope_step(gate, z)
                wrong = at & (step * force > 0) & self._leaves_wrongly(site, gate, z, moved, frozen)
                stuck |= self._columns(site, wrong.to(z.dtype)) > 0
                continue
            columns = self._column_numbers(site, z)
            members, valid = windows.members(z)
            if columns is None or members.shape[0] == 1:
                continue
            down = windows.sign * force > 0
            chief = frozen.pattern[site.operation]
            ahead = windows.sign * windows.take(moved, chief)
            number = windows.take(columns, chief).flatten(1)
            for k in range(members.shape[0]):
                over = windows.sign * windows.take(moved, members[k]) > ahead
                wrong = (valid[k] & down & over).flatten(1)
                mine = windows.take(columns, members[k]).flatten(1)
                leader.scatter_(1, mine, torch.where(wrong, number, leader.gather(1, mine)))
        stuck = stuck if keep is None else stuck & (keep != 0)
        larger = Frozen(stuck, _roots(leader, stuck, keep), frozen.pattern)
        return None if bool(larger.same(frozen).all()) else larger

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
        self, site: _Site, windows: Windows, force: Tensor, end: Tensor, frozen: Frozen
    ) -> None:
        columns = self._column_numbers(site, self._seen(site, end))
        if columns is None:
            return
        down = (windows.sign * force > 0).flatten(1)
        old = windows.take(columns, frozen.pattern[site.operation]).flatten(1)
        group = frozen.leader.gather(1, old)  # the column that leads each window
        member = torch.zeros_like(end)
        weight = torch.zeros_like(end)
        for _ in range(9):
            z = self._seen(site, end)
            value, index = windows.top(z)
            new = windows.take(columns, index).flatten(1)
            level = end.gather(1, group)
            over = down & (windows.sign * (value.flatten(1) - level) > 0) & (new != group)
            if not bool(over.any()):
                return
            count = 1 + weight.gather(1, group)
            mean = (level * count + value.flatten(1)) / (count + 1)
            weight.scatter_add_(1, group, over.to(end.dtype))
            member.scatter_(
                1, new, torch.where(over, group.to(end.dtype) + 1, member.gather(1, new))
            )
            end.scatter_(1, group, torch.where(over, mean, level))
            follow = (member > 0) | frozen.ties
            target = torch.where(member > 0, member.long() - 1, frozen.leader)
            end.copy_(torch.where(follow, end.gather(1, target), end))

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

    def _column_numbers(self, site: _Site, z: Tensor) -> Tensor | None:
        """Column of each operand entry, as integers; None when it is not a plain relabelling."""
        layout = self._layout
        if len(site.cell.node.parents) != 1 or site.cell.node.parents[0] not in layout.slots:
            return None
        width = layout.variables
        numbers = torch.arange(width, device=z.device, dtype=torch.float64)
        seen = self._seen(site, numbers.to(z.dtype).expand(z.shape[0], width))
        whole = seen.round()
        return whole.long() if seen.shape == z.shape and bool((whole == seen).all()) else None


def _roots(leader: Tensor, stuck: Tensor, keep: Tensor | None) -> Tensor:
    """Chains of ties followed to their ends; stuck and held columns follow nobody."""
    own = torch.arange(leader.shape[1], device=leader.device).expand_as(leader)
    alone = stuck if keep is None else stuck | (keep == 0)
    leader = torch.where(alone, own, leader)
    for _ in range(3):
        leader = leader.gather(1, leader)
    return torch.where(leader.gather(1, leader) == leader, leader, own)
