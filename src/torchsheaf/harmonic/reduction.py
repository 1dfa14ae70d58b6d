"""What is eliminated and what stays: the columns of a held problem's reduced variables."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from torchsheaf.boundary import Problem
from torchsheaf.cochain import Cochain, coordinates
from torchsheaf.harmonic.elimination import Held, Pieces, Pull, Weight
from torchsheaf.network import Composition, Kind, Node, ScalarGate


@dataclass(frozen=True)
class Cell:
    """One computed value m = f(parents) among the columns `rows` of M.

    `head` is the variable that it feeds: the node's own vertex, or, when that vertex was
    eliminated, the gate's output; None for an eliminated leaf. `pieces` is the gate in between.
    """

    node: Node
    head: str | None
    rows: slice
    pieces: Pieces | None


@dataclass(frozen=True)
class SweepStep:
    """A cell's turn in a sweep: its block among those of M (and of C, if it has a head there), and
    which of its parents are variables."""

    name: str
    rows: slice
    place: int
    head: bool
    parents: tuple[str, ...]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """Columns of the variables C = [gated heads | plain heads | sources] and of the incoming
    values M = [gated | plain | leaves]; heads and their incoming values share columns.

    A vertex z is eliminated when its only use is one coordinatewise gate; so are leaves. Sources
    are inputs with free coordinates.
    """

    cells: tuple[Cell, ...]
    slots: Mapping[str, slice]
    shapes: Mapping[str, tuple[int, ...]]
    gated: int
    heads: int
    leaves: int
    sources: int

    @classmethod
    def of(cls, problem: Problem) -> "Layout":
        """Choose what to eliminate, in topological order."""
        sheaf = problem.sheaf
        nodes = {n.name: n for n in sheaf.network.nodes}
        pieces = _eliminable(problem)
        behind = {sheaf.children[z][0]: z for z in pieces}
        leaves = [n for n in nodes if not sheaf.children[n] and n not in behind]
        gated = sorted(behind, key=lambda a: (repr(pieces[behind[a]]), list(nodes).index(a)))
        plain = [n for n in nodes if n not in behind and n not in pieces and n not in leaves]
        free = problem.free.shapes
        sources = [n for n in sheaf.inputs if n in free]
        groups = (gated, plain, sources, leaves)
        widths = [sum(sheaf.vertices[n].dim for n in group) for group in groups]
        heads = widths[0] + widths[1]
        slots: dict[str, slice] = {}
        # sources follow the heads in C, leaves in M
        for group, start in zip(groups, (0, widths[0], heads, heads), strict=True):
            for name in group:
                slots[name] = slice(start, start + sheaf.vertices[name].dim)
                start = slots[name].stop
        cells = []
        for node in sheaf.network.nodes:
            name = node.name
            if name in behind:
                continue
            head = sheaf.children[name][0] if name in pieces else name
            rows = slots[head]
            given = pieces.get(name)
            cells.append(Cell(node, None if name in leaves else head, rows, given))
        return cls(
            tuple(cells),
            {n: s for n, s in slots.items() if n not in leaves},
            {n: v.shape for n, v in sheaf.vertices.items()},
            gated=widths[0], heads=heads, leaves=widths[3], sources=widths[2],
        )  # fmt: skip

    @property
    def variables(self) -> int:
        """Width of C."""
        return self.heads + self.sources

    @property
    def values(self) -> int:
        """Width of M."""
        return self.heads + self.leaves

    @cached_property
    def groups(self) -> tuple[tuple[slice, Pieces], ...]:
        """Gated columns with one and the same gate, in the order of the columns."""
        found: dict[Pieces, slice] = {}
        for cell in self.cells:
            if cell.pieces is not None:
                old = found.get(cell.pieces, cell.rows)
                start, stop = min(old.start, cell.rows.start), max(old.stop, cell.rows.stop)
                found[cell.pieces] = slice(start, stop)
        ordered = sorted(found.items(), key=lambda item: item[1].start)
        return tuple((rows, pieces) for pieces, rows in ordered)

    @cached_property
    def steps(self) -> tuple[SweepStep, ...]:
        """The cells in topological order."""
        places = sorted(c.rows.start for c in self.cells)
        return tuple(
            SweepStep(
                cell.node.name, cell.rows, places.index(cell.rows.start), cell.head is not None,
                tuple(p for p in cell.node.parents if p in self.slots),
                self.shapes[cell.node.name],
            )
            for cell in self.cells
        )  # fmt: skip

    @cached_property
    def places(self) -> dict[str, int]:
        """Number of each variable's block among those of C."""
        return {name: i for i, name in enumerate(self.slots)}

    @cached_property
    def _widths(self) -> tuple[list[int], list[int], list[int]]:
        """Of the blocks of C, of M, and of the heads that begin both."""
        c = [s.stop - s.start for s in self.slots.values()]
        rows = sorted((c.rows for c in self.cells), key=lambda r: (r.start, r.stop))
        m = [r.stop - r.start for r in rows]
        return c, m, m[: sum(cell.head is not None for cell in self.cells)]

    def of_variables(self, columns: Tensor) -> tuple[Tensor, ...]:
        """Views of the blocks of C, one per variable."""
        return columns.split_with_sizes(self._widths[0], 1)

    def of_values(self, columns: Tensor) -> tuple[Tensor, ...]:
        """Views of the blocks of M, one per cell; its heads' blocks are those of C."""
        return columns.split_with_sizes(self._widths[1], 1)

    def of_heads(self, columns: Tensor) -> tuple[Tensor, ...]:
        """Views of the blocks of the heads alone."""
        return columns.split_with_sizes(self._widths[2], 1)

    def shaped(self, blocks: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """The variables' blocks by name, `(batch, *shape)`."""
        return {
            name: block
            if len(self.shapes[name]) == 1
            else block.reshape(len(block), *self.shapes[name])
            for name, block in zip(self.slots, blocks, strict=True)
        }

    def gather(self, c: Mapping[str, Tensor]) -> Tensor:
        """C of a cochain."""
        batch = next(iter(c.values())).shape[0]
        like = next(iter(c[n] for n in self.slots)) if self.slots else next(iter(c.values()))
        out = like.new_empty(batch, self.variables)
        for name, slot in self.slots.items():
            out[:, slot] = coordinates(c[name])
        return out


def _eliminable(problem: Problem) -> dict[str, Pieces]:
    sheaf, network = problem.sheaf, problem.sheaf.network
    nodes = {n.name: n for n in network.nodes}
    found: dict[str, Pieces] = {}
    for name, node in nodes.items():
        children = sheaf.children[name]
        if len(children) != 1 or any(p in found for p in node.parents):
            continue
        gate_node = nodes[children[0]]
        plain = gate_node.kind is Kind.GATE and len(gate_node.operations) == 1
        if not plain or gate_node.parents != (name,) or gate_node.shape != node.shape:
            continue
        probe = problem.like.new_zeros(problem.batch, *node.shape)
        ((gate, _),) = network.gate_operands(gate_node, {name: probe}).values()
        if isinstance(gate, ScalarGate) and gate.breakpoints:
            found[name] = _pieces(problem, gate_node, name, gate)
    return found


def _pieces(problem: Problem, node: Node, parent: str, gate: ScalarGate) -> Pieces:
    shape = problem.sheaf.vertices[parent].shape
    first = problem.like.new_full((problem.batch, *shape), gate.breakpoints[0])
    anchor = float(problem.sheaf.network.evaluate(node, {parent: first}).flatten()[0])
    return Pieces.of(gate.breakpoints, gate.slopes, anchor)


@dataclass(frozen=True)
class Holds:
    """What pulls on and holds the columns: masks and weights `(1 or batch, columns)`.

    `w_in` over M's heads is the weight of a value's own edge, `w_out` over the gated columns that
    of the gate's edge. Leaves: weight ω and target q of ½ ω (m − q)², with y eliminated.
    """

    w_in: Weight
    w_out: Weight
    w_plain: Weight
    gate_pull: Pull | None
    gate_held: Held | None
    pull: Pull | None
    keep: Tensor | None
    leaf_weight: Tensor
    leaf_target: Tensor

    @classmethod
    def of(cls, problem: Problem, layout: Layout) -> "Holds":
        """Read the problem's weights, pins and held coordinates into columns."""
        reader = _HoldReader(problem, layout)
        return reader.read()

    def samples(self, index: Tensor) -> "Holds":
        """The chosen samples."""

        def pick(pull: Pull | None) -> Pull | None:
            return pull and Pull(rows_of(pull.gamma, index), pull.target[index])

        held = self.gate_held
        return replace(
            self,
            gate_pull=pick(self.gate_pull),
            gate_held=held and Held(rows_of(held.mask, index), held.value[index]),
            pull=pick(self.pull),
            keep=None if self.keep is None else rows_of(self.keep, index),
            leaf_weight=rows_of(self.leaf_weight, index),
            leaf_target=self.leaf_target[index],
        )


def rows_of(table: Tensor, index: Tensor) -> Tensor:
    """The chosen samples of a table `(1 or batch, n)`; a single row is that of all."""
    return table if len(table) == 1 else table[index]


@dataclass(frozen=True)
class _HoldReader:
    problem: Problem
    layout: Layout

    def read(self) -> Holds:
        layout, problem = self.layout, self.problem
        gated = [(c.node.name, c.head, c.rows) for c in layout.cells if c.pieces is not None]
        plain = [
            (c.node.name, c.rows) for c in layout.cells if c.pieces is None and c.head is not None
        ]
        leaves = [(c.node.name, c.rows) for c in layout.cells if c.head is None]
        first = layout.gated
        shifted = [(n, slice(r.start - first, r.stop - first)) for n, r in plain]
        below = [(n, slice(r.start - layout.heads, r.stop - layout.heads)) for n, r in leaves]
        into = [(z, r) for z, _, r in gated]
        mask, value = self._held(into, layout.gated)
        kept, _ = self._held(list(layout.slots.items()), layout.variables)
        leaf_pull = self._pull(below, layout.leaves)
        leaf_mask, leaf_value = self._held(below, layout.leaves)
        weight = problem.like.new_ones(1, layout.leaves) * self._weights(below, layout.leaves)
        omega, target = torch.zeros_like(weight), leaf_value
        if leaf_pull is not None:
            omega = weight * leaf_pull.gamma / (weight + leaf_pull.gamma)
            target = leaf_pull.target
        target = torch.where(leaf_mask, leaf_value, target)
        omega = torch.where(leaf_mask, weight, omega)
        return Holds(
            self._weights(into, layout.gated),
            self._weights([(a or "", r) for _, a, r in gated], layout.gated),
            self._weights(shifted, layout.heads - first),
            self._pull(into, layout.gated),
            Held(mask, value) if bool(mask.any()) else None,
            self._pull(list(layout.slots.items()), layout.variables),
            (~kept).to(problem.like.dtype) if bool(kept.any()) else None,
            omega,
            target,
        )

    def _weights(self, columns: list[tuple[str, slice]], width: int) -> Weight:
        given = self.problem.weights
        if not any(n in given for n, _ in columns):
            return 1.0
        out = self.problem.like.new_ones(width)
        for name, rows in columns:
            out[rows] = given.get(name, 1.0)
        return out

    def _pull(self, columns: list[tuple[str, slice]], width: int) -> Pull | None:
        """γ of all soft pins of a coordinate together, and their γ-weighted mean target."""
        problem = self.problem
        found = [(rows, pull) for name, rows in columns if (pull := problem.soft_pull(name))]
        if not found:
            return None
        gamma = problem.like.new_zeros(max(len(weight) for _, (weight, _) in found), width)
        moment = problem.like.new_zeros(problem.batch, width)
        for rows, (weight, weighted) in found:
            gamma[:, rows], moment[:, rows] = weight, weighted
        return Pull(gamma, moment / torch.where(gamma > 0, gamma, 1))

    def _held(self, columns: list[tuple[str, slice]], width: int) -> tuple[Tensor, Tensor]:
        problem = self.problem
        held = {n: problem.held_mask(n) for n, _ in columns if n in problem.held}
        count = max(map(len, held.values()), default=1)
        mask = torch.zeros(count, width, dtype=torch.bool, device=problem.like.device)
        value = problem.like.new_zeros(problem.batch, width)
        for name, rows in columns:
            if name in held:
                mask[:, rows] = held[name]
                value[:, rows] = coordinates(problem.values[name])
        return mask, value


@dataclass(frozen=True)
class Reduction:
    """A held problem with its pre-activations and leaves eliminated."""

    problem: Problem
    layout: Layout
    holds: Holds

    @classmethod
    def of(cls, problem: Problem) -> "Reduction":
        """Choose the columns and read the holds."""
        layout = Layout.of(problem)
        return cls(problem, layout, Holds.of(problem, layout))

    def samples(self, index: Tensor) -> "Reduction":
        """The chosen samples only."""
        return Reduction(self.problem.samples(index), self.layout, self.holds.samples(index))

    def point(self, columns: Tensor) -> dict[str, Tensor]:
        """Values by vertex name of everything that a map reads: held inputs and variables."""
        layout, problem = self.layout, self.problem
        held = {n: problem.values[n] for n in problem.sheaf.inputs if n not in layout.slots}
        return held | layout.shaped(layout.of_variables(columns))

    def linearise(
        self, columns: Tensor, pattern: Mapping[str, Tensor] | None = None
    ) -> dict[str, Composition]:
        """Every map's differential at the present variables; gates of a `pattern` on its pieces."""
        point, network = self.point(columns), self.problem.sheaf.network
        return {
            c.node.name: network.linearise(c.node, point, pattern or {}) for c in self.layout.cells
        }

    @torch.no_grad()
    def incoming(self, columns: Tensor) -> Tensor:
        """M: every map at the present variables. Cost: one forward pass."""
        point, network = self.point(columns), self.problem.sheaf.network
        out = columns.new_empty(columns.shape[0], self.layout.values)
        for cell in self.layout.cells:
            out[:, cell.rows] = coordinates(network.evaluate(cell.node, point))
        return out

    @torch.no_grad()
    def substituted(
        self, columns: Tensor, incoming: Tensor, move: Tensor, slope: Tensor
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """(C', M') with C' = C + move + S (M' − M) on the heads, M' the maps at C'.

        The curve on which a step keeps residuals, not values, on a straight line: at first order
        dC = move + S dM, with affine maps the same at any length. Cost: one forward pass.
        """
        network, layout = self.problem.sheaf.network, self.layout
        c, m = columns + move, torch.empty_like(incoming)
        point = self.point(c)  # views of c
        for cell in layout.cells:
            rows = cell.rows
            m[:, rows] = coordinates(network.evaluate(cell.node, point))
            if cell.head is not None:
                c[:, rows].addcmul_(slope[:, rows], m[:, rows] - incoming[:, rows])
        return c, m

    def restore(self, columns: Tensor, incoming: Tensor, z: Tensor) -> Cochain:
        """The whole cochain: variables, eliminated z, eliminated leaves."""
        layout, holds, problem = self.layout, self.holds, self.problem
        batch = columns.shape[0]
        point = self.point(columns)
        for cell in layout.cells:
            name, shape = cell.node.name, layout.shapes[cell.node.name]
            if cell.pieces is not None:
                point[name] = z[:, cell.rows].reshape(batch, *shape)
            elif cell.head is None:
                m = incoming[:, cell.rows]
                rows = slice(cell.rows.start - layout.heads, cell.rows.stop - layout.heads)
                w = problem.weights.get(name, 1.0)
                # y = m + (ω/w)(q − m): all of it where held, the weighted mean where pulled
                y = m + holds.leaf_weight[:, rows] / w * (holds.leaf_target[:, rows] - m)
                point[name] = y.reshape(batch, *shape)
        return problem.clamp({n: point[n] for n in problem.sheaf.vertices})
