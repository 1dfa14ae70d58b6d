"""The walls of a problem: coordinates at which gates switch pieces, and their breakpoints."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from torchsheaf.boundary import Problem
from torchsheaf.cochain import coordinates
from torchsheaf.network import ScalarGate
from torchsheaf.network.network import Node
from torchsheaf.network.rules import Kind

_Found = tuple[str, Node, ScalarGate, str, Tensor]
"""A gate's operation, node and pieces, the vertex it reads, and the coordinate of each input."""


@dataclass(frozen=True)
class Reader:
    """One gate operation: which wall each of its inputs is (−1: held or not a wall), its slopes.

    `slopes` (inputs, K+1) is the slope on every interval of that wall's own breakpoints.
    """

    operation: str
    wall: Tensor
    slopes: Tensor
    shape: tuple[int, ...]
    gate: ScalarGate
    node: Node


@dataclass(frozen=True)
class Walls:
    """Free coordinates that some coordinatewise gate reads, with the union of its breakpoints.

    `index` (walls,) counts into the flat free vector of the problem; `thresholds` (walls, K) is
    ascending, padded with +∞. The state of a wall is an integer: 2k on the interval above k
    breakpoints, 2k + 1 on breakpoint k. Gates that switch otherwise (max-pooling) have no walls
    here and are listed in `unread`.
    """

    index: Tensor
    vertices: tuple[str, ...]
    neurons: Tensor
    thresholds: Tensor
    readers: tuple[Reader, ...]
    unread: tuple[str, ...]

    @classmethod
    @torch.no_grad()
    def of(cls, problem: Problem) -> "Walls":
        """Find the walls of a problem. Cost: one pass over the nodes, once per flow."""
        found: list[_Found] = []
        unread: list[str] = []
        for node in problem.sheaf.network.nodes:
            if node.gates:
                _find(problem, node, found, unread)
        like, names, number = problem.like, list[str](), dict[str, Tensor]()
        places, neurons, rows = [], [], []
        for vertex in problem.free.shapes:
            own = [f for f in found if f[3] == vertex]
            if not own:
                continue
            place = _places(problem, vertex)
            breaks, which = _breaks(own, place)
            (walls,) = (which >= 0).nonzero(as_tuple=True)
            number[vertex] = torch.full_like(place, -1)
            number[vertex][walls] = torch.arange(len(walls)) + len(names)
            names += [vertex] * len(walls)
            places.append(place[walls])
            neurons.append(walls)
            rows.append((breaks, which[walls]))
        thresholds = _thresholds(rows, like)
        middle = _interior(thresholds)
        none = torch.zeros(0, dtype=torch.int64)
        return cls(
            torch.cat([none, *places]).to(like.device),
            tuple(names),
            torch.cat([none, *neurons]),
            thresholds,
            tuple(_reader(f, number, middle) for f in found),
            tuple(unread),
        )

    def __len__(self) -> int:
        return len(self.vertices)

    @cached_property
    def padded(self) -> Tensor:
        """Thresholds between −∞ and +∞, `(walls, K + 2)`: interval k lies between k and k + 1."""
        edge = self.thresholds.new_full((len(self), 1), torch.inf)
        return torch.cat([-edge, self.thresholds, edge], 1)

    def state(self, flat: Tensor) -> Tensor:
        """States 2k of the walls at flat free vectors `(batch, n)`; on a breakpoint: above it."""
        z = flat[:, self.index]
        return 2 * (z[..., None] >= self.thresholds).sum(-1)

    def label(self, wall: int, state: int) -> str:
        """A state in words."""
        if int(self.thresholds[wall].isfinite().sum()) == 1:
            return ("off", "sliding", "on")[state]
        return f"wall {state // 2}" if state % 2 else f"piece {state // 2}"

    def selections(
        self, problem: Problem, c: Mapping[str, Tensor], state: Tensor, upper: bool
    ) -> dict[str, Tensor]:
        """Slopes of every gate for given wall states; a wall at 2k + 1 takes its upper (k + 1) or
        lower (k) neighbour. Gates of held coordinates select at their own value."""
        interval = (state + 1) // 2 if upper else state // 2
        chosen: dict[str, Tensor] = {}
        for r in self.readers:
            held = r.wall < 0
            if bool(held.any()):
                z = problem.sheaf.network.gate_operands(r.node, c)[r.operation][1]
                slope = coordinates(r.gate.select(z))
            if not bool(held.all()):  # else there may be no wall at all to look at
                piece = interval[:, r.wall.clamp_min(0)]
                free = r.slopes.expand(piece.shape[0], -1, -1).gather(2, piece[..., None])[..., 0]
                slope = torch.where(held, slope, free) if bool(held.any()) else free
            chosen[r.operation] = slope.reshape(-1, *r.shape)
        return chosen

    @property
    def reads_held(self) -> bool:
        """Whether some gate reads a held coordinate, so that L depends on more than the states."""
        return any(bool((r.wall < 0).any()) for r in self.readers)


def _find(
    problem: Problem,
    node: Node,
    found: list[_Found],
    unread: list[str],
) -> None:
    network = problem.sheaf.network
    # Sending the numbers 0, 1, 2 … through the relabellings shows which coordinate a gate reads.
    numbers = {}
    for parent in node.parents:
        shape = problem.sheaf.vertices[parent].shape
        count = torch.arange(torch.Size(shape).numel(), dtype=problem.like.dtype)
        full = count.reshape(1, *shape).expand(problem.batch, *shape)
        numbers[parent] = full.to(problem.like.device)
    operations = {op.name: op for op in node.operations}
    operands = network.gate_operands(node, numbers)
    for op in node.gates:
        gate, z = operands[op.name]
        if isinstance(gate, ScalarGate) and not gate.breakpoints:
            continue  # one piece: a bound at infinity is no wall
        source, plain = op.operands[0], isinstance(gate, ScalarGate)
        while plain and source in operations:
            plain = operations[source].rule.kind is Kind.RESHAPE
            source = operations[source].operands[0]
        if plain and isinstance(gate, ScalarGate):
            found.append((op.name, node, gate, source, z[0].round().to(torch.int64).cpu()))
        else:
            unread.append(op.name)


def _places(problem: Problem, vertex: str) -> Tensor:
    """Place of each coordinate in the flat free vector, −1 where it is held; on the CPU."""
    free = problem.free
    span = free.slices[vertex]
    place = torch.full((torch.Size(free.shapes[vertex]).numel(),), -1)
    moving = free.columns[vertex].cpu() if vertex in free.where else slice(None)
    place[moving] = torch.arange(span.start, span.stop)
    return place


def _breaks(gates: Sequence[_Found], place: Tensor) -> tuple[list[list[float]], Tensor]:
    """Ascending unions of breakpoints, and which of them each coordinate has (−1: no wall)."""
    kinds = list(dict.fromkeys(gate.breakpoints for _, _, gate, _, _ in gates))
    reads = torch.zeros(len(kinds), len(place), dtype=torch.bool)
    for _, _, gate, _, index in gates:
        reads[kinds.index(gate.breakpoints), index.flatten()] = True
    reads &= place >= 0
    code = (reads.long() << torch.arange(len(kinds))[:, None]).sum(0)  # one bit for each kind
    codes, which = code.unique(return_inverse=True)
    unions = [
        sorted({t for i, kind in enumerate(kinds) if c >> i & 1 for t in kind})
        for c in codes.tolist()
    ]
    return unions, torch.where(code > 0, which, -1)


def _thresholds(rows: Sequence[tuple[list[list[float]], Tensor]], like: Tensor) -> Tensor:
    """The breakpoints of every wall, `(walls, K)`, padded with +∞."""
    used = [[breaks[i] for i in which.unique().tolist()] for breaks, which in rows]
    depth = max((len(b) for breaks in used for b in breaks), default=1)
    parts = []
    for breaks, which in rows:
        padded = [(b + [torch.inf] * depth)[:depth] for b in breaks]
        parts.append(like.new_tensor(padded).reshape(-1, depth)[which.to(like.device)])
    return torch.cat([like.new_zeros(0, depth), *parts])


def _interior(thresholds: Tensor) -> Tensor:
    """A point strictly inside every interval, `(walls, K + 1)`."""
    first, last = thresholds[:, :1] - 1, thresholds[:, -1:] + 1
    middle = (thresholds[:, 1:] + thresholds[:, :-1]) / 2
    points = torch.cat([first, middle, last], 1)
    return points.clamp_max(torch.finfo(points.dtype).max / 2)


def _reader(
    entry: _Found,
    number: Mapping[str, Tensor],
    middle: Tensor,
) -> Reader:
    operation, node, gate, vertex, index = entry
    read = index.flatten()
    wall = number[vertex][read] if vertex in number else torch.full_like(read, -1)
    wall = wall.to(middle.device)
    if middle.shape[0] == 0:
        slopes = middle.new_zeros(wall.numel(), middle.shape[1])
    else:
        slopes = gate.select(middle[wall.clamp_min(0)])
    return Reader(operation, wall, slopes, tuple(index.shape), gate, node)
