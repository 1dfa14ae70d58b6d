"""The sheaf of supported formats: arc consistency, the count of sections, and why there is none.

Stalks are finite sets of formats; every edge and tie is a cell whose relation is the set of pairs
that the backend supports; restriction maps are projections. H⁰ is the set of solutions.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torchsheaf.precision.problem import AssignmentProblem

Relation = frozenset[tuple[str, str]]
Factor = tuple[tuple[str, ...], dict[tuple[str, ...], int]]
"""Operations, and for formats of theirs the number of ways in which they occur; absent: none."""


@dataclass(frozen=True)
class FormatSheaf:
    """Stalks on operations and binary relations on cells (operation, operation)."""

    stalks: Mapping[str, tuple[str, ...]]
    cells: tuple[tuple[str, str, Relation], ...]


@dataclass(frozen=True)
class Sections:
    """What H⁰ is: how many sections, or the reason why there is none.

    reason: "" where there are some; else "empty stalk", "no consistent choice" or "budget".
    trace: the removals of arc consistency, or what else shows the reason.
    """

    count: int
    reason: str
    trace: tuple[str, ...]
    uniform: tuple[str, ...]


def sheaf_of(problem: AssignmentProblem, *, casts: bool = True) -> FormatSheaf:
    """The format sheaf of a problem; `casts=False` demands equal formats along every edge.

    Inputs and the output keep the format of the model: edges that touch them may always cast.
    """
    cells = []
    for e in problem.casts:
        pairs = frozenset(
            (s, t)
            for s in problem.stalks[e.source]
            for t in problem.stalks[e.consumer]
            if (s, t) in e.cost and (casts or s == t or _is_end(e.source) or _is_end(e.consumer))
        )
        cells.append((e.source, e.consumer, pairs))
    for tie in problem.ties:
        for a, b in zip(tie, tie[1:], strict=False):
            shared = set(problem.stalks[a]) & set(problem.stalks[b])
            cells.append((a, b, frozenset((f, f) for f in shared)))
    return FormatSheaf(problem.stalks, tuple(cells))


def arc_consistent(sheaf: FormatSheaf) -> tuple[dict[str, tuple[str, ...]], tuple[str, ...]]:
    """Remove formats that some neighbour has no partner for, until nothing changes (AC-3).

    Returns the pruned stalks and one line per removal. An empty stalk proves that H⁰ is empty.
    """
    stalks = {v: list(s) for v, s in sheaf.stalks.items()}
    trace: list[str] = []
    changed = True
    while changed:
        changed = False
        for u, v, relation in sheaf.cells:
            for here, there, flip in ((u, v, False), (v, u, True)):
                for f in list(stalks[here]):
                    partners = ((g, f) if flip else (f, g) for g in stalks[there])
                    if not any(p in relation for p in partners):
                        stalks[here].remove(f)
                        trace.append(f"{here}: {f} has no partner at {there}")
                        changed = True
    return {v: tuple(s) for v, s in stalks.items()}, tuple(trace)


def count_sections(sheaf: FormatSheaf) -> int:
    """The number of sections, exactly, by eliminating one operation after another.

    Cost: exponential in the width of the graph (the number of open neighbours), not in its size.
    """
    factors: list[Factor] = [((v,), {(f,): 1 for f in s}) for v, s in sheaf.stalks.items()]
    open_neighbours: dict[str, set[str]] = {v: set() for v in sheaf.stalks}
    for u, v, relation in sheaf.cells:
        if u == v:
            factors.append(((u,), {(s,): 1 for s, t in relation if s == t}))
        else:
            factors.append(((u, v), dict.fromkeys(relation, 1)))
            open_neighbours[u].add(v)
            open_neighbours[v].add(u)
    while open_neighbours:
        v = min(open_neighbours, key=lambda w: len(open_neighbours[w]))
        around = open_neighbours.pop(v)
        for w in around:
            open_neighbours[w] = (open_neighbours[w] | around) - {v, w}
        touching = [f for f in factors if v in f[0]]
        factors = [f for f in factors if v not in f[0]]
        factors.append(_eliminate(v, touching))
    return math.prod(sum(table.values()) for _, table in factors)


def _eliminate(v: str, factors: list[Factor]) -> Factor:
    product: Factor = ((), {(): 1})
    for factor in factors:
        product = _multiply(product, factor)
    scope, table = product
    rest = tuple(w for w in scope if w != v)
    keep = [i for i, w in enumerate(scope) if w != v]
    summed: dict[tuple[str, ...], int] = {}
    for key, n in table.items():
        short = tuple(key[i] for i in keep)
        summed[short] = summed.get(short, 0) + n
    return rest, summed


def _multiply(one: Factor, two: Factor) -> Factor:
    (a, left), (b, right) = one, two
    new = [i for i, w in enumerate(b) if w not in a]
    old = [(a.index(w), i) for i, w in enumerate(b) if w in a]
    index: dict[tuple[str, ...], list[tuple[tuple[str, ...], int]]] = {}
    for key, n in right.items():
        index.setdefault(tuple(key[i] for _, i in old), []).append((key, n))
    product = {}
    for key, n in left.items():
        for other, m in index.get(tuple(key[i] for i, _ in old), []):
            product[key + tuple(other[i] for i in new)] = n * m
    return a + tuple(b[i] for i in new), product


def sections(problem: AssignmentProblem, *, casts: bool = True) -> Sections:
    """H⁰ of the format sheaf, budgets aside: the count, or the reason for emptiness."""
    sheaf = sheaf_of(problem, casts=casts)
    uniform = tuple(
        f
        for f in dict.fromkeys(f for s in problem.stalks.values() for f in s)
        if all(f in s for v, s in problem.stalks.items() if not _is_end(v))
    )
    empty = [v for v, s in sheaf.stalks.items() if not s]
    if empty:
        return Sections(0, "empty stalk", tuple(f"{v}: no format" for v in empty), uniform)
    stalks, trace = arc_consistent(sheaf)
    if any(not s for s in stalks.values()):
        return Sections(0, "no consistent choice", trace, uniform)
    count = count_sections(FormatSheaf(stalks, sheaf.cells))
    return Sections(count, "" if count else "no consistent choice", trace, uniform)


def _is_end(v: str) -> bool:
    """Inputs and the output keep the model's own format and are no operations."""
    return v == "output" or v.startswith("input ")
