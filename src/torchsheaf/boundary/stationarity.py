"""Is a cochain stationary? dist(0, ∂E) per sample, with three states per gate."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from torchsheaf.boundary.problem import Problem
from torchsheaf.cochain import Cochain
from torchsheaf.network import ScalarGate

OFF, ON, SLIDING = 0, 1, 2


@dataclass(frozen=True)
class GateStates:
    """Per gate operation, the state of every gate: 0 off, 1 on, 2 sliding; `(batch, *shape)`.

    "on" means the steepest piece is selected; "sliding" means that the pre-activation sits on a
    breakpoint towards which the energy pulls it from both sides (docs/theory.md, T4).
    """

    states: Mapping[str, Tensor]

    def count(self, state: int) -> Tensor:
        """How many gates of each sample are in a state, `(batch,)` (0 for a net without gates)."""
        counts = [(s == state).flatten(1).sum(1) for s in self.states.values()]
        return torch.stack(counts).sum(0) if counts else torch.zeros(1, dtype=torch.int64)

    @property
    def sliding(self) -> Tensor:
        """Number of sliding gates per sample."""
        return self.count(SLIDING)


@dataclass(frozen=True)
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
    independent, so the distance is the norm of the coordinates' distances. Max-pooling ties take
    the selected input (docs/theory.md).

    Cost: one forward and one reverse pass.
    """
    residual = problem.residual(c) if residual is None else residual
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
    return Stationarity(least.norm(), least, GateStates(states))


def _one_sided(
    problem: Problem, c: Cochain, force: Cochain
) -> tuple[Cochain, dict[str, Tensor], dict[str, Tensor]]:
    """D⁺ on the free coordinates, D⁺ − D⁻ where a gate sits on a breakpoint, and gate states."""
    sheaf, free = problem.sheaf, problem.free.shapes
    maps = sheaf.linearise(c)
    upper = {n: force[n] if n in force else torch.zeros_like(c[n]) for n in free}
    for name, p in problem.taps.items():
        if p.vertex in free:
            flat = upper[p.vertex].flatten(1).index_add(1, p.index, force[name])
            upper[p.vertex] = flat.reshape(upper[p.vertex].shape)
    jumps: dict[str, Tensor] = {}
    on_break: list[tuple[str, Tensor, Tensor, Tensor, str]] = []
    states: dict[str, Tensor] = {}
    for node in sheaf.network.nodes:
        pulled, taps = maps[node.name].pull_tapped(force[node.name])
        for parent, g in pulled.items():
            if parent in free:
                upper[parent] = upper[parent] - g
        for op in node.gates:
            gate, z = sheaf.network.gate_operands(node, c)[op.name]
            if not isinstance(gate, ScalarGate):
                continue
            selected = gate.select(z)
            states[op.name] = (selected == max(gate.slopes)).to(torch.int8) * ON
            at_break, step = _slope_step(gate, z)
            if bool(at_break.any()):
                jump = -step * taps[op.name]
                for parent, g in maps[node.name].pull_into(op.operands[0], jump).items():
                    jumps[parent] = jumps[parent] + g if parent in jumps else g
                    on_break.append((op.name, at_break, jump, z, parent))
    _mark_sliding(states, on_break, upper, jumps, free)
    return Cochain(upper), {n: j for n, j in jumps.items() if n in free}, states


def _slope_step(gate: ScalarGate, z: Tensor) -> tuple[Tensor, Tensor]:
    """Where z is exactly on a breakpoint, and slope above minus slope below there."""
    at, step = torch.zeros_like(z, dtype=torch.bool), torch.zeros_like(z)
    for i, t in enumerate(gate.breakpoints):
        here = z == t
        at |= here
        step = torch.where(here, torch.full_like(z, gate.slopes[i + 1] - gate.slopes[i]), step)
    return at, step


def _mark_sliding(
    states: dict[str, Tensor],
    on_break: list[tuple[str, Tensor, Tensor, Tensor, str]],
    upper: Mapping[str, Tensor],
    jumps: Mapping[str, Tensor],
    free: Mapping[str, tuple[int, ...]],
) -> None:
    for op, at_break, _, z, parent in on_break:
        if parent not in free:
            continue
        low, up = upper[parent] - jumps[parent], upper[parent]
        attracting = (low < 0) & (up > 0)
        if attracting.shape == z.shape:  # a gate behind a relabelling keeps on/off only
            states[op] = torch.where(at_break & attracting, SLIDING, states[op])
