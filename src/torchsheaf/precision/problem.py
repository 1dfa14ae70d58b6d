"""The assignment problem: stalks, casts, costs and error budgets as plain numbers.

A section picks one format from every stalk. Its cost is a sum over operations and casts, and every
budget row is a sum of non-negative terms over operations and casts. Nothing here knows of torch.
"""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

Pair = tuple[str, str]


@dataclass(frozen=True)
class Cast:
    """An edge: cost[s, t] is that of holding `operand` in s and reading it in t.

    Edges with the same operand share one cast: read twice in t, it is converted once. Pairs that
    are absent from `cost` are not supported by the backend.
    """

    source: str
    consumer: str
    operand: str
    cost: Mapping[Pair, float]


@dataclass(frozen=True)
class Row:
    """A budget: Σ unary[operation][format] + Σ pair[edge][s, t] ≤ limit."""

    name: str
    limit: float
    unary: Mapping[str, Mapping[str, float]]
    pair: Mapping[int, Mapping[Pair, float]]

    def value(self, problem: "AssignmentProblem", section: Mapping[str, str]) -> float:
        """The left-hand side at a section."""
        total = sum(table.get(section[v], 0.0) for v, table in self.unary.items())
        for i, table in self.pair.items():
            e = problem.casts[i]
            total += table.get((section[e.source], section[e.consumer]), 0.0)
        return total

    @property
    def terms(self) -> list[float]:
        """Every term that the row knows."""
        own = [a for table in self.unary.values() for a in table.values()]
        return own + [a for table in self.pair.values() for a in table.values()]

    def least(self, problem: "AssignmentProblem") -> float:
        """A lower bound of `value` over all sections: every term at its smallest."""
        stalks = {v: problem.stalk_of(g) for g in problem.free() for v in g}
        total = sum(min(t.get(f, 0.0) for f in stalks[v]) for v, t in self.unary.items())
        for i, table in self.pair.items():
            total += min((table.get(key, 0.0) for key in problem.casts[i].cost), default=0.0)
        return total


def mean_square(error: float) -> float:
    """error² as the limit of a row, kept within [1e-300, 1e300]: neither zero nor infinite."""
    return min(max(error, 1e-150), 1e150) ** 2


@dataclass(frozen=True)
class AssignmentProblem:
    """Operations with their stalks, the casts between them, the budgets and what is tied.

    cost[operation][format]: time or bytes of the operation. ties: groups that share one format.
    """

    stalks: Mapping[str, tuple[str, ...]]
    cost: Mapping[str, Mapping[str, float]]
    casts: tuple[Cast, ...]
    rows: tuple[Row, ...]
    ties: tuple[tuple[str, ...], ...] = ()

    def __post_init__(self) -> None:
        price: dict[tuple[str, Pair], float] = {}
        for e in self.casts:
            for key, c in e.cost.items():
                if price.setdefault((e.operand, key), c) != c:
                    raise ValueError(
                        f"casts of {e.operand!r} from {key[0]} to {key[1]} have two prices; "
                        "a shared cast has one"
                    )

    def supports(self, section: Mapping[str, str]) -> bool:
        """Whether the section obeys stalks, ties and the backend's casts (budgets aside)."""
        return (
            all(section[v] in stalk for v, stalk in self.stalks.items())
            and all(len({section[v] for v in tie}) == 1 for tie in self.ties)
            and all((section[e.source], section[e.consumer]) in e.cost for e in self.casts)
        )

    def price(self, section: Mapping[str, str]) -> float:
        """Cost of a section, every shared cast counted once."""
        total = sum(self.cost[v][section[v]] for v in self.stalks)
        shared: dict[tuple[str, str, str], float] = {}
        for e in self.casts:
            s, t = section[e.source], section[e.consumer]
            shared[e.operand, s, t] = e.cost[s, t]
        return total + sum(shared.values())

    def meets(self, section: Mapping[str, str]) -> bool:
        """Whether every budget holds; a relative 1e-13 is kept so that it holds exactly."""
        return all(r.value(self, section) <= r.limit * (1 - 1e-13) for r in self.rows)

    def free(self) -> tuple[tuple[str, ...], ...]:
        """Groups of operations that choose together: tie classes, then the rest one by one."""
        classes = [tuple(t) for t in _merge(self.ties)]
        tied = {v for c in classes for v in c}
        return tuple(classes) + tuple((v,) for v in self.stalks if v not in tied)

    def stalk_of(self, group: tuple[str, ...]) -> tuple[str, ...]:
        """Formats that every member of a group allows."""
        first, *rest = (self.stalks[v] for v in group)
        return tuple(f for f in first if all(f in s for s in rest))

    def sections(self) -> Iterator[dict[str, str]]:
        """Every supported section, budgets aside: exponentially many, for small problems only."""
        groups = self.free()
        for pick in itertools.product(*(self.stalk_of(g) for g in groups)):
            section = {v: f for g, f in zip(groups, pick, strict=True) for v in g}
            if self.supports(section):
                yield section

    def restrict(self, stalks: Mapping[str, tuple[str, ...]]) -> "AssignmentProblem":
        """The same problem with some stalks replaced by smaller ones."""
        return replace(self, stalks={**self.stalks, **stalks})

    def with_rows(self, rows: tuple[Row, ...]) -> "AssignmentProblem":
        """The same problem under other budgets."""
        return replace(self, rows=rows)


def _merge(ties: tuple[tuple[str, ...], ...]) -> list[tuple[str, ...]]:
    """Overlapping ties joined into disjoint classes."""
    classes: list[dict[str, None]] = []
    for tie in ties:
        joined = dict.fromkeys(tie)
        rest = []
        for c in classes:
            if joined.keys() & c.keys():
                joined = {**c, **joined}
            else:
                rest.append(c)
        classes = [*rest, joined]
    return [tuple(c) for c in classes if len(c) > 1]


def brute_force(problem: AssignmentProblem) -> tuple[float, dict[str, str]] | None:
    """Cheapest section within every budget by trying them all; None where there is none."""
    best = None
    for section in problem.sections():
        if problem.meets(section):
            price = problem.price(section)
            if best is None or price < best[0]:
                best = (price, section)
    return best
