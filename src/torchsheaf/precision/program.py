"""The assignment problem as a 0/1 linear program: the local polytope with shared casts.

z[group, d] = 1 where the group computes in d. w[edge, s, t] = 1 where an edge goes from s to t:
Σ_t w = z[source, s] and Σ_s w = z[consumer, t]. y[operand, s, t] ≥ w prices a shared cast once.
`check_certificate.py` builds the same program again from the certificate, in exact rationals.
"""

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array

from torchsheaf.precision.problem import AssignmentProblem

EXCESS = 1e6
"""What a term of a budget row counts at most, in units of the limit."""


@dataclass(frozen=True)
class Program:
    """min c·x subject to equal·x = equal_rhs, upper·x ≤ upper_rhs, 0 ≤ x ≤ 1, z integer.

    The last `budgets` rows of `upper` are the budget rows, each divided by its limit. A term over
    the limit excludes its format however large it is, so it is written as `EXCESS` at most: solvers
    lose larger numbers. Multipliers found so prove at least as much with the term in full.
    """

    c: np.ndarray
    equal: csr_array
    equal_rhs: np.ndarray
    upper: csr_array
    upper_rhs: np.ndarray
    z: dict[tuple[int, str], int]
    groups: tuple[tuple[str, ...], ...]
    budgets: int
    scale: float


class _Rows:
    def __init__(self) -> None:
        self.entries: list[tuple[int, int, float]] = []
        self.rhs: list[float] = []

    def add(self, terms: list[tuple[int, float]], rhs: float) -> None:
        row = len(self.rhs)
        self.entries += [(row, j, a) for j, a in terms if a != 0.0]
        self.rhs.append(rhs)

    def matrix(self, columns: int) -> csr_array:
        if not self.entries:
            return csr_array((len(self.rhs), columns))
        i, j, a = zip(*self.entries, strict=True)
        return csr_array((a, (i, j)), shape=(len(self.rhs), columns))


def cost_scale(problem: AssignmentProblem) -> float:
    """The sum of every operation's dearest format: costs are divided by it."""
    return sum(max(problem.cost[v][f] for f in s) for v, s in problem.stalks.items() if s) or 1.0


def build(problem: AssignmentProblem) -> Program:
    """Write the problem as a program; the variables come in the order z, w, y."""
    groups = problem.free()
    owner = {v: g for g, members in enumerate(groups) for v in members}
    scale = cost_scale(problem)
    cost: list[float] = []
    z: dict[tuple[int, str], int] = {}
    equal, upper = _Rows(), _Rows()
    for g, members in enumerate(groups):
        for f in problem.stalk_of(members):
            z[g, f] = len(cost)
            cost.append(sum(problem.cost[v][f] for v in members) / scale)
    for g, members in enumerate(groups):
        equal.add([(z[g, f], 1.0) for f in problem.stalk_of(members)], 1.0)
    w: list[dict[tuple[str, str], int]] = []
    for e in problem.casts:
        sources = problem.stalk_of(groups[owner[e.source]])
        readers = problem.stalk_of(groups[owner[e.consumer]])
        table = {}
        for s in sources:
            for t in readers:
                if (s, t) in e.cost:
                    table[s, t] = len(cost)
                    cost.append(0.0)
        for s in sources:
            terms = [(table[s, t], 1.0) for t in readers if (s, t) in table]
            equal.add([*terms, (z[owner[e.source], s], -1.0)], 0.0)
        for t in readers:
            terms = [(table[s, t], 1.0) for s in sources if (s, t) in table]
            equal.add([*terms, (z[owner[e.consumer], t], -1.0)], 0.0)
        w.append(table)
    _share(problem, w, cost, upper, scale)
    for row in problem.rows:
        merged: dict[int, float] = {}
        for v, unary in row.unary.items():
            for f, a in unary.items():
                if (owner[v], f) in z:
                    j = z[owner[v], f]
                    merged[j] = merged.get(j, 0.0) + min(a / row.limit, EXCESS)
        for i, pair in row.pair.items():
            for key, a in pair.items():
                if key in w[i]:
                    j = w[i][key]
                    merged[j] = merged.get(j, 0.0) + min(a / row.limit, EXCESS)
        upper.add(sorted(merged.items()), 1.0)
    n = len(cost)
    return Program(
        np.array(cost), equal.matrix(n), np.array(equal.rhs), upper.matrix(n), np.array(upper.rhs),
        z, groups, len(problem.rows), scale,
    )  # fmt: skip


def _share(
    problem: AssignmentProblem,
    w: list[dict[tuple[str, str], int]],
    cost: list[float],
    upper: _Rows,
    scale: float,
) -> None:
    """Price casts: on the edge where it is the operand's only reader, else on a shared variable."""
    readers: dict[str, list[int]] = {}
    for i, e in enumerate(problem.casts):
        readers.setdefault(e.operand, []).append(i)
    for edges in readers.values():
        if len(edges) == 1:
            (i,) = edges
            for key, j in w[i].items():
                cost[j] = problem.casts[i].cost[key] / scale
            continue
        for key in dict.fromkeys(k for i in edges for k in w[i]):
            price = next(problem.casts[i].cost[key] for i in edges if key in problem.casts[i].cost)
            if price == 0.0:
                continue
            y = len(cost)
            cost.append(price / scale)
            for i in edges:
                if key in w[i]:
                    upper.add([(w[i][key], 1.0), (y, -1.0)], 0.0)


def read_section(program: Program, x: np.ndarray) -> dict[str, str]:
    """The section at a 0/1 point of the program."""
    best: dict[int, tuple[float, str]] = {}
    for (g, f), j in program.z.items():
        if g not in best or x[j] > best[g][0]:
            best[g] = (float(x[j]), f)
    return {v: best[g][1] for g, members in enumerate(program.groups) for v in members}
