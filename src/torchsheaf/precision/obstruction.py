"""H¹ over Z/2 as a diagnostic: which local choices of a format extend to no section.

The format sheaf is linearised: every stalk and relation becomes the Z/2-space on its elements, and
restriction sums over the forgotten coordinate. A choice f at v whose class in H¹ relative to v is
not zero extends to no section (a proof). A zero class proves nothing: three formats that must all
differ on the complete graph K4 have no section, and every class vanishes. Source: Abramsky,
Barbosa & Mansfield 2011; Ó Conghaile 2022.
"""

from dataclasses import dataclass

from torchsheaf.precision.sections import FormatSheaf


@dataclass(frozen=True)
class Obstruction:
    """Dimensions over Z/2, and the local choices with a non-zero class.

    h0, h1: of the linearised sheaf on its cells; h1 also counts the cycles of the graph, so it is
    positive for a network with skip connections whatever the formats. obstructed: (operation,
    format) pairs that extend to no section: only these are evidence of anything.
    """

    h0: int
    h1: int
    obstructed: tuple[tuple[str, str], ...]


def obstruction(sheaf: FormatSheaf) -> Obstruction:
    """The Z/2 diagnostic. Cost: one elimination with a row per pair of every cell's relation."""
    unknowns, columns = _columns(sheaf)
    kernel, rank = _kernel(columns)
    constraints = _constraint_count(sheaf)
    found = []
    for v, stalk in sheaf.stalks.items():
        cell = next((i for i, (a, b, _) in enumerate(sheaf.cells) if v in (a, b)), None)
        if cell is None:
            continue
        span = _Span()
        for vector in kernel:
            span.add(_marginal(vector, unknowns, sheaf, cell, v, stalk))
        found += [(v, f) for i, f in enumerate(stalk) if not span.holds(1 << i)]
    return Obstruction(len(kernel), constraints - rank, tuple(found))


def _members(sheaf: FormatSheaf) -> dict[str, list[int]]:
    """For every operation, the cells that contain it."""
    members: dict[str, list[int]] = {v: [] for v in sheaf.stalks}
    for i, (a, b, _) in enumerate(sheaf.cells):
        members[a].append(i)
        if b != a:
            members[b].append(i)
    return members


def _columns(sheaf: FormatSheaf) -> tuple[list[tuple[int, tuple[str, str]]], list[int]]:
    """One unknown per (cell, pair); its column: the agreement constraints that it enters.

    At every operation neighbouring cells in a fixed order must have equal marginals: that spans
    all agreements, because the cells around one operation form a simplex of the nerve.
    """
    row: dict[tuple[str, int, str], int] = {}
    for v, cells in _members(sheaf).items():
        for k in range(len(cells) - 1):
            for f in sheaf.stalks[v]:
                row[v, k, f] = len(row)
    places = {v: {c: k for k, c in enumerate(cells)} for v, cells in _members(sheaf).items()}
    unknowns, columns = [], []
    for i, (a, b, relation) in enumerate(sheaf.cells):
        for pair in sorted(relation):
            bits = 0
            for v, f in {(a, pair[0]), (b, pair[1])}:
                k = places[v][i]
                for step in (k - 1, k):
                    if (v, step, f) in row:
                        bits ^= 1 << row[v, step, f]
            unknowns.append((i, pair))
            columns.append(bits)
    return unknowns, columns


def _constraint_count(sheaf: FormatSheaf) -> int:
    return sum(
        max(0, len(cells) - 1) * len(sheaf.stalks[v]) for v, cells in _members(sheaf).items()
    )


def _kernel(columns: list[int]) -> tuple[list[int], int]:
    """Combinations of columns that vanish, as bit sets of column numbers, and the rank."""
    pivots: dict[int, tuple[int, int]] = {}
    kernel = []
    for j, column in enumerate(columns):
        track = 1 << j
        while column:
            top = column.bit_length() - 1
            if top not in pivots:
                pivots[top] = (column, track)
                break
            column ^= pivots[top][0]
            track ^= pivots[top][1]
        else:
            kernel.append(track)
    return kernel, len(pivots)


def _marginal(
    vector: int, unknowns: list[tuple[int, tuple[str, str]]], sheaf: FormatSheaf, cell: int,
    v: str, stalk: tuple[str, ...],
) -> int:  # fmt: skip
    a, _, _ = sheaf.cells[cell]
    side = 0 if v == a else 1
    bits = 0
    for j, (i, pair) in enumerate(unknowns):
        if i == cell and vector >> j & 1:
            bits ^= 1 << stalk.index(pair[side])
    return bits


class _Span:
    """A subspace of Z/2^n, by its echelon basis."""

    def __init__(self) -> None:
        self.basis: dict[int, int] = {}

    def reduce(self, x: int) -> int:
        while x and (top := x.bit_length() - 1) in self.basis:
            x ^= self.basis[top]
        return x

    def add(self, x: int) -> None:
        x = self.reduce(x)
        if x:
            self.basis[x.bit_length() - 1] = x

    def holds(self, x: int) -> bool:
        return self.reduce(x) == 0
