"""Is a cochain stationary? dist(0, ∂E) per sample, with three states per gate."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from torchsheaf.boundary.problem import Problem, require_problem
from torchsheaf.boundary.ties import Maxima, coordinates_read
from torchsheaf.boundary.windows import Windows
from torchsheaf.cochain import Cochain, coordinates
from torchsheaf.network import Composition, CurvedGate, Gate, ScalarGate

OFF, ON, SLIDING = 0, 1, 2


@dataclass(frozen=True, eq=False)
class GateStates:
    """Per gate operation, the state of every gate: 0 off, 1 on, 2 sliding; `(batch, *shape)`.

    "on" means the steepest piece is selected; "sliding" means that the pre-activation sits on a
    breakpoint towards which the energy pulls it from both sides (docs/theory.md, T4). A max-pool
    window is on, and sliding when several inputs share its maximum and the pull on it. `none` is
    the count of a net without gates: a zero for each sample.
    """

    states: Mapping[str, Tensor]
    none: Tensor

    def count(self, state: int) -> Tensor:
        """How many gates of each sample are in a state, `(batch,)` (0 for a net without gates)."""
        return sum((coordinates(s == state).sum(1) for s in self.states.values()), self.none)

    @property
    def sliding(self) -> Tensor:
        """Number of sliding gates per sample."""
        return self.count(SLIDING)


@dataclass(frozen=True, eq=False)
class Stationarity:
    """dist(0, ∂E) per sample `(batch,)`, the least subgradient, and the gate states."""

    distance: Tensor
    subgradient: Cochain
    gates: GateStates


@torch.no_grad()
def stationarity(problem: Problem, c: Cochain, residual: Cochain | None = None) -> Stationarity:
    """Test stationarity independently of any solver.

    Away from breakpoints ∂E is the gradient. On a breakpoint of a coordinatewise gate the
    one-sided derivatives D⁻, D⁺ of E in that coordinate decide: if D⁻ ≤ D⁺ (upward kink) the
    subdifferential is [D⁻, D⁺] and the state is sliding when it contains 0 in its interior; if
    D⁻ > D⁺ (downward kink, where a minimiser never sits) it is {D⁻, D⁺}: the limiting
    subdifferential, which unlike Clarke's does not call such a point stationary. Coordinates are
    independent, so the distance is the norm of the coordinates' distances.

    Where inputs of a max-pooling window tie and the energy pulls the maximum down, any division of
    that pull among them is a subgradient, and the best one is taken; windows may overlap: the best
    division is the least-norm point of a product of simplices. Where it pulls up (a downward kink)
    one input must take all of it, and at a local minimum no choice leaves anything to gain: the
    choice that leaves the most counts. Every tied entry takes once all the upward pulls that it
    can; not every combination is tried.

    Raises TypeError or ValueError for what is no problem, and for values or residuals that are not
    its own. Cost: one forward and one reverse pass; where maxima tie, divisions of the pulls
    (elementwise, iterated where windows overlap, once per choice).
    """
    require_problem(problem, finite=False)
    problem.require_values("c", c, finite=False)
    if residual is None:
        residual = problem.residual(c)
    if not isinstance(residual, Cochain):
        raise TypeError(f"residual is a {type(residual).__name__}; write problem.residual(c)")
    for edge in problem.edge_space.shapes:
        if edge not in residual:
            raise ValueError(f"residual has no value for edge {edge!r}; write problem.residual(c)")
    force = problem.force(residual)
    upper, jumps, states = _one_sided(problem, c, force)
    blocks = {}
    for name in problem.free.shapes:
        up = upper[name]
        if name not in jumps:
            blocks[name] = up
            continue
        jump = jumps[name]
        low = up - jump
        inside = torch.where(low > 0, low, torch.where(up < 0, up, torch.zeros_like(up)))
        nearest = torch.where(low.abs() < up.abs(), low, up)
        blocks[name] = torch.where(jump >= 0, inside, nearest)
    least = problem.free.project(blocks)
    # nothing is free: any state is an equilibrium
    distance = least.norm() if blocks else problem.like.new_zeros(problem.batch)
    none = torch.zeros(problem.batch, dtype=torch.int64, device=problem.like.device)
    return Stationarity(distance, least, GateStates(states, none))


def _one_sided(
    problem: Problem, c: Cochain, force: Cochain
) -> tuple[Cochain, dict[str, Tensor], dict[str, Tensor]]:
    """D⁺ on the free coordinates, D⁺ − D⁻ where a gate sits on a breakpoint, and gate states."""
    sheaf, free = problem.sheaf, problem.free.shapes
    maps = sheaf.linearise(c)
    upper = {n: force[n] if n in force else torch.zeros_like(c[n]) for n in free}
    for name, p in problem.taps.items():
        if p.vertex in free:
            flat = coordinates(upper[p.vertex]).index_add(1, p.index, force[name])
            upper[p.vertex] = flat.reshape(upper[p.vertex].shape)
    jumps: dict[str, Tensor] = {}
    scalars: list[_OnBreak] = []
    pools: dict[str, list[_Pool]] = {}
    states: dict[str, Tensor] = {}
    for node in sheaf.network.nodes:
        pulled, taps = maps[node.name].pull_tapped(force[node.name])
        for parent, g in pulled.items():
            if parent in free:
                upper[parent] = upper[parent] - g
        if not node.kinked:
            continue
        for name, (gate, z) in sheaf.network.kink_operands(node, c).items():
            operand = next(op.operands[0] for op in node.kinked if op.name == name)
            windows, selected = Windows.of(gate, z), gate.select(z)
            if windows is not None:
                here = maps[node.name]
                block = coordinates_read(here, operand, z, free)
                numbers = None if block is None else block[1]
                maxima = Maxima.of(windows, z, selected, -taps[name], numbers)
                read = None if block is None else block[0]
                pool = _Pool(name, maxima, taps[name], here, operand, read)
                pools.setdefault(read or name, []).append(pool)
                continue
            states[name] = _on(gate, z, selected).to(torch.int8) * ON
            at_break, step = slope_step(gate, z)
            if bool(at_break.any()):
                found = _OnBreak(name, at_break, maps[node.name], operand)
                scalars.append(found)
                for parent, g in maps[node.name].pull_into(operand, -step * taps[name]).items():
                    jumps[parent] = jumps[parent] + g if parent in jumps else g
    for together in pools.values():
        _settle(together, upper, states, problem.held)
    jumps = {n: j for n, j in jumps.items() if n in free}
    for found in scalars:
        found.mark(states, upper, jumps)
    return Cochain(upper), jumps, states


def _on(gate: Gate, z: Tensor, selected: Tensor) -> Tensor:
    if isinstance(gate, CurvedGate):
        return z >= gate.breakpoints[-1]
    return selected == (max(gate.slopes) if isinstance(gate, ScalarGate) else 1.0)


def slope_step(gate: Gate, z: Tensor) -> tuple[Tensor, Tensor]:
    """Where z is exactly on a breakpoint, and slope above minus slope below there."""
    at, step = torch.zeros_like(z, dtype=torch.bool), torch.zeros_like(z)
    for t, rise in gate.kinks(z):
        here = z == t
        at |= here
        step = torch.where(here, rise, step)
    return at, step


@dataclass(frozen=True)
class _OnBreak:
    """A coordinatewise gate some of whose pre-activations sit on a breakpoint."""

    operation: str
    at_break: Tensor
    maps: Composition
    operand: str

    def mark(
        self, states: dict[str, Tensor], upper: Mapping[str, Tensor], jumps: Mapping[str, Tensor]
    ) -> None:
        """Mark those that the energy pulls there from both sides as sliding."""
        tangents = {
            n: ((upper[n] - jumps[n] < 0) & (upper[n] > 0)).to(jumps[n].dtype)
            for n in self.maps.parents
            if n in jumps
        }
        if not tangents:
            return
        seen = self.maps.push_into(self.operand, tangents) > 0
        states[self.operation] = torch.where(self.at_break & seen, SLIDING, states[self.operation])


@dataclass(frozen=True)
class _Pool:
    """A gate that selects one input per window, and where its operand comes from."""

    operation: str
    maxima: Maxima
    output: Tensor
    maps: Composition
    operand: str
    block: str | None


def _settle(
    pools: list[_Pool], upper: dict[str, Tensor], states: dict[str, Tensor],
    held: Mapping[str, Tensor],
) -> None:  # fmt: skip
    """Divide the pulls among tied inputs, in place of giving all of them to the selected ones.

    `pools` read one vertex, their `block`, or there is one and no vertex.
    """
    first, maxima = pools[0], Maxima.beside([p.maxima for p in pools])
    parents = [p for p in first.maps.parents if p in upper]
    for pool in pools:
        states[pool.operation] = torch.full_like(pool.output, ON, dtype=torch.int8)
    if not parents or not bool(maxima.several.any()):
        return
    values = upper[first.block] if first.block else first.maps.push_into(
        first.operand, {p: upper[p] for p in parents}
    )  # fmt: skip
    total = coordinates(values)
    last = maxima.choices - 1
    turns = range(1, int(last.max()) + 1) if bool(last.any()) else (0,)
    fixed = torch.zeros_like(total, dtype=torch.bool)
    if first.block is not None and first.block in held:
        fixed |= held[first.block].reshape(-1, total.shape[1])
    found = [maxima.shares(total, fixed, turn=last.clamp_max(t)) for t in turns]
    changes = torch.stack([maxima.scatter(total, share - given) for share, given in found])
    worst = (total + changes).masked_fill(fixed, 0).norm(dim=2).argmax(0)
    everyone = torch.arange(len(worst), device=worst.device)
    share = torch.stack([share for share, _ in found])[worst, everyone]
    change = changes[worst, everyone].reshape(values.shape)
    moved = {first.block: change} if first.block else first.maps.pull_into(first.operand, change)
    for parent, g in moved.items():
        if parent in upper:
            upper[parent] = upper[parent] + g
    widths = [p.maxima.pull.shape[1] for p in pools]
    sliding = ((share > 0).sum(-1) > 1).split(widths, 1)
    for pool, mark in zip(pools, sliding, strict=True):
        marked = torch.where(mark.reshape(pool.output.shape), SLIDING, states[pool.operation])
        states[pool.operation] = marked
