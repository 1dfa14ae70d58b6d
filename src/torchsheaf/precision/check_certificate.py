"""Check a precision certificate: exact rational arithmetic, the standard library and nothing else.

    python check_certificate.py certificate.json

It needs neither torch nor torchsheaf, and trusts neither the solver nor the program that wrote the
file. Exit status 0: every claim in the file holds; 1: some claim does not; 2: it cannot be read.

What is proved: that the section obeys stalks, pins, ties, ranges and casts; that its cost and its
predicted error are the stated sums; that no section within the budgets is cheaper than the stated
bound (or that none exists at all). What is only measured, and repeated as such: the coefficients
of the error model, and the errors of the runs.
"""

import hashlib
import json
import math
import sys
from fractions import Fraction
from typing import Any

Json = dict[str, Any]
ZERO = Fraction(0)
SCHEMA = "torchsheaf precision certificate 1"
NOT_PROVED = "NOT PROVED: that the model's coefficients describe these kernels; inputs not run"


class Rejected(Exception):
    """A claim of the certificate that does not hold, in words."""


def digest(certificate: Json) -> str:
    """SHA-256 of everything but the digest itself, in canonical form."""
    body = {k: v for k, v in certificate.items() if k != "digest"}
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def need(condition: bool, claim: str) -> None:
    """Reject with `claim` unless the condition holds."""
    if not condition:
        raise Rejected(claim)


def exact(number: Any) -> Fraction:
    """The rational number that a JSON number stands for."""
    plain = isinstance(number, int | float) and not isinstance(number, bool)
    need(plain and math.isfinite(number), f"{number!r} is no finite number")
    return Fraction(number)


class Problem:
    """The assignment problem of a certificate, in rationals, with its own consistency checked."""

    def __init__(self, body: Json) -> None:
        self.stalks: dict[str, list[str]] = body["stalks"]
        self.cost = {v: {f: exact(c) for f, c in t.items()} for v, t in body["cost"].items()}
        self.casts = [
            (e["source"], e["consumer"], e["operand"], pairs_of(e["cost"])) for e in body["casts"]
        ]
        self.rows = [
            (
                r["name"],
                exact(r["limit"]),
                {v: {f: exact(a) for f, a in t.items()} for v, t in r["unary"].items()},
                {int(i): pairs_of(t) for i, t in r["pair"].items()},
            )
            for r in body["rows"]
        ]
        self.ties: list[list[str]] = body["ties"]
        self.groups = self.classes()
        self.check()

    def classes(self) -> list[list[str]]:
        """Overlapping ties joined, then every other operation alone."""
        merged: list[list[str]] = []
        for tie in self.ties:
            joined = list(tie)
            for c in [c for c in merged if set(c) & set(joined)]:
                # A tie may bridge two classes: join each that it meets.
                joined = c + [v for v in joined if v not in c]
                merged.remove(c)
            merged.append(joined)
        merged = [c for c in merged if len(c) > 1]
        tied = {v for c in merged for v in c}
        return merged + [[v] for v in self.stalks if v not in tied]

    def check(self) -> None:
        for v, stalk in self.stalks.items():
            need(len(set(stalk)) == len(stalk), f"the stalk of {v} repeats a format")
            need(set(stalk) <= set(self.cost.get(v, {})), f"{v} has a format without a cost")
        for v, table in self.cost.items():
            need(v in self.stalks, f"a cost is given for the unknown operation {v}")
            need(all(c >= 0 for c in table.values()), f"{v} has a negative cost")
        prices: dict[Any, Fraction] = {}
        for source, consumer, operand, cost in self.casts:
            need({source, consumer} <= set(self.stalks), f"cast of {operand}: no such end")
            for key, c in cost.items():
                need(c >= 0, f"a cast of {operand} has a negative cost")
                first = prices.setdefault((operand, key), c)
                need(first == c, f"a cast of {operand} has two prices")
        for name, limit, unary, pairs in self.rows:
            need(limit > 0, f"the budget {name!r} is not positive")
            terms = [a for t in [*unary.values(), *pairs.values()] for a in t.values()]
            need(all(a >= 0 for a in terms), f"the budget {name!r} has a negative term")
            need(set(unary) <= set(self.stalks), f"the budget {name!r} names an unknown operation")
            need(all(0 <= i < len(self.casts) for i in pairs), f"{name!r} names an unknown cast")

    def stalk(self, group: list[str]) -> list[str]:
        return [f for f in self.stalks[group[0]] if all(f in self.stalks[v] for v in group)]

    def price(self, section: dict[str, str]) -> Fraction:
        total = sum((self.cost[v][section[v]] for v in self.stalks), ZERO)
        shared = {}
        for source, consumer, operand, cost in self.casts:
            key = section[source], section[consumer]
            shared[operand, key] = cost[key]
        return total + sum(shared.values(), ZERO)

    def load(self, row: Any, section: dict[str, str]) -> Fraction:
        _, _, unary, pairs = row
        total = sum((t.get(section[v], ZERO) for v, t in unary.items()), ZERO)
        for i, table in pairs.items():
            source, consumer, _, _ = self.casts[i]
            total += table.get((section[source], section[consumer]), ZERO)
        return total


def pairs_of(table: Json) -> dict[tuple[str, str], Fraction]:
    """{"fp32>bf16": c} → {("fp32", "bf16"): c}."""
    return {(k.split(">")[0], k.split(">")[1]): exact(c) for k, c in table.items()}


def cost_scale(problem: Problem) -> Fraction:
    """The sum of every operation's dearest format: the program divides costs by it."""
    dearest = (
        max((problem.cost[v][f] for f in s), default=ZERO) for v, s in problem.stalks.items()
    )
    return sum(dearest, ZERO) or Fraction(1)


class Program:
    """Local polytope with shared casts: the same variables and rows, in the same order."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        owner = {v: g for g, members in enumerate(problem.groups) for v in members}
        self.cost: list[Fraction] = []
        self.z: dict[tuple[int, str], int] = {}
        self.equal: list[tuple[dict[int, Fraction], Fraction]] = []
        self.upper: list[tuple[dict[int, Fraction], Fraction]] = []
        one = Fraction(1)
        for g, members in enumerate(problem.groups):
            for f in problem.stalk(members):
                self.z[g, f] = self.variable(sum((problem.cost[v][f] for v in members), ZERO))
        for g, members in enumerate(problem.groups):
            self.equal.append(({self.z[g, f]: one for f in problem.stalk(members)}, one))
        w: list[dict[tuple[str, str], int]] = []
        for source, consumer, _, cost in problem.casts:
            sources = problem.stalk(problem.groups[owner[source]])
            readers = problem.stalk(problem.groups[owner[consumer]])
            table = {}
            for s in sources:
                for t in readers:
                    if (s, t) in cost:
                        table[s, t] = self.variable(ZERO)
            for s in sources:
                row = {table[s, t]: one for t in readers if (s, t) in table}
                self.equal.append(({**row, self.z[owner[source], s]: -one}, ZERO))
            for t in readers:
                row = {table[s, t]: one for s in sources if (s, t) in table}
                self.equal.append(({**row, self.z[owner[consumer], t]: -one}, ZERO))
            w.append(table)
        self.share(w)
        for _, limit, unary, pairs in problem.rows:
            terms: dict[int, Fraction] = {}
            for v, values in unary.items():
                for f, a in values.items():
                    if (owner[v], f) in self.z:
                        j = self.z[owner[v], f]
                        terms[j] = terms.get(j, ZERO) + a / limit
            for i, between in pairs.items():
                for key, a in between.items():
                    if key in w[i]:
                        terms[w[i][key]] = terms.get(w[i][key], ZERO) + a / limit
            self.upper.append((terms, one))

    def variable(self, cost: Fraction) -> int:
        self.cost.append(cost)
        return len(self.cost) - 1

    def share(self, w: list[dict[tuple[str, str], int]]) -> None:
        readers: dict[str, list[int]] = {}
        for i, (_, _, operand, _) in enumerate(self.problem.casts):
            readers.setdefault(operand, []).append(i)
        for edges in readers.values():
            if len(edges) == 1:
                for key, j in w[edges[0]].items():
                    self.cost[j] = self.problem.casts[edges[0]][3][key]
                continue
            for key in dict.fromkeys(k for i in edges for k in w[i]):
                price = next(
                    self.problem.casts[i][3][key] for i in edges if key in self.problem.casts[i][3]
                )
                y = self.variable(price) if price else 0
                for i in edges:
                    if price and key in w[i]:
                        self.upper.append(({w[i][key]: Fraction(1), y: Fraction(-1)}, ZERO))

    def dual_bound(self, leaf: Json, fixed: dict[int, str], scale: Fraction) -> Fraction:
        """min over the box of the Lagrangian, in the units of the costs."""
        infeasible = leaf["leaf"] == "infeasible"
        reduced = [ZERO if infeasible else c for c in self.cost]
        unit = Fraction(1) if infeasible else scale
        constant = ZERO
        for table, rows, sign in ((leaf["equal"], self.equal, 0), (leaf["upper"], self.upper, 1)):
            for index, value in table.items():
                m = exact(value) * unit
                need(0 <= int(index) < len(rows), f"multiplier {index} belongs to no row")
                need(sign == 0 or m >= 0, f"the multiplier of inequality {index} is negative")
                terms, rhs = rows[int(index)]
                constant -= m * rhs
                for j, a in terms.items():
                    reduced[j] += m * a
        closed = {j for (g, f), j in self.z.items() if g in fixed and fixed[g] != f}
        low = sum((r for j, r in enumerate(reduced) if r < 0 and j not in closed), ZERO)
        return constant + low


def tree_bound(program: Program, node: Json, fixed: dict[int, str], scale: Fraction) -> Any:
    """Smallest leaf bound of a branching tree; None where every leaf is proved infeasible."""
    problem = program.problem
    if "branch" in node:
        matches = [g for g, m in enumerate(problem.groups) if m[0] == node["branch"]]
        need(len(matches) == 1, f"the tree branches on {node['branch']!r}, which is no group")
        (group,) = matches
        need(group not in fixed, f"the tree branches on {node['branch']!r} twice")
        stalk = problem.stalk(problem.groups[group])
        need(
            set(node["formats"]) == set(stalk), f"the tree leaves out formats of {node['branch']!r}"
        )
        bounds = [
            tree_bound(program, child, {**fixed, group: f}, scale)
            for f, child in node["formats"].items()
        ]
        return min((b for b in bounds if b is not None), default=None)
    kind = node["leaf"]
    need(kind in ("bound", "infeasible", "empty stalk"), f"a leaf claims {kind!r}")
    if kind == "empty stalk":
        need(any(not problem.stalk(g) for g in problem.groups), "no stalk is empty")
        return None
    bound = program.dual_bound(node, fixed, scale)
    if kind == "infeasible":
        need(bound > 0, "the multipliers of a leaf do not prove that it is infeasible")
        return None
    return bound


def check_formats(body: Json, problem: Problem) -> None:
    """Ranges, pins, and that casts into a format that holds all the numbers are exact."""
    table = body["formats"]
    names = {f for stalk in problem.stalks.values() for f in stalk}
    need(names <= set(table), "a stalk names a format that the certificate does not define")
    for v, fmt in body["pins"].items():
        need(problem.stalks.get(v) == [fmt], f"{v} is pinned to {fmt}; its stalk says otherwise")
    for v, r in body["ranges"].items():
        need(v in problem.stalks, f"a range is given for the unknown operation {v}")
        for f in problem.stalks[v]:
            top = exact(table[f]["largest"])
            reach = exact(r["largest"]) * exact(body["range_margin"])
            need(reach <= top, f"{v} reaches past the range of {f}")

    def holds(t: str, s: str) -> bool:
        big, small = table[t], table[table[s]["result"]]
        return (
            big["bits"] >= small["bits"]
            and exact(big["largest"]) >= exact(small["largest"])
            and exact(big["spacing"]) <= exact(small["spacing"])
        )

    for name, _, _, pairs in problem.rows:
        for i, values in pairs.items():
            for (s, t), a in values.items():
                need(a == 0 or not holds(t, s), f"{name!r}, cast {i}: {s} to {t} is exact")


def check_section(body: Json, problem: Problem) -> list[str]:
    """That the section is one, costs what is claimed and meets the budgets as claimed."""
    section, said = body["section"], []
    need(set(section) == set(problem.stalks), "the section does not name every operation once")
    for v, f in section.items():
        need(f in problem.stalks[v], f"{v} is given {f}, which its stalk does not allow")
    for group in problem.groups:
        need(len({section[v] for v in group}) == 1, f"{group[0]} and what is tied to it differ")
    for source, consumer, operand, cost in problem.casts:
        key = section[source], section[consumer]
        need(key in cost, f"no cast of {operand} from {key[0]} to {key[1]}")
    price = problem.price(section)
    need(str(price) == body["claims"]["cost"], "the claimed cost is not the sum of the costs")
    said.append(f"PROVED feasible: the section obeys stalks, pins, ties, ranges and casts; "
                f"its cost is {float(price):.6g}")  # fmt: skip
    need(len(body["claims"]["loads"]) == len(problem.rows), "a budget has no claimed value")
    for row, claim in zip(problem.rows, body["claims"]["loads"], strict=True):
        load = problem.load(row, section)
        need(str(load) == claim, f"the claimed value of {row[0]!r} is not the sum of its terms")
        need(load <= row[1], f"the budget {row[0]!r} is exceeded")
        said.append(f"PROVED within budget {row[0]!r}: {float(load):.6g} ≤ {float(row[1]):.6g} "
                    "(of the stated error model)")  # fmt: skip
    return said


def check_bound(body: Json, problem: Problem) -> list[str]:
    """The lower bound on the cost of every section within the budgets, or that there is none."""
    claims = body["claims"]
    scale = cost_scale(problem)
    bound = tree_bound(Program(problem), body["tree"], {}, scale)
    if body["section"] is None:
        need(bound is None, "the tree does not prove that no section meets the budgets")
        need(claims == {"infeasible": True}, "the claim of infeasibility is not stated as such")
        return ["PROVED infeasible: no section meets the budgets of the stated error model"]
    price = problem.price(body["section"])
    bound = price if bound is None else min(price, bound)
    need(str(bound) == claims["bound"], "the claimed lower bound is not what the tree proves")
    gap = (price - bound) / price if price else ZERO
    need(str(gap) == claims["gap"], "the claimed optimality gap is not (cost − bound)/cost")
    word = "optimal" if gap < Fraction(1, 10**6) else f"within {float(gap):.3%} of optimal"
    return [f"PROVED {word}: no section within the budgets costs less than {float(bound):.6g}"]


def clopper_pearson(violations: int, trials: int, confidence: float) -> float:
    """Upper limit p with P(Binomial(trials, p) ≤ violations) = 1 − confidence, by bisection."""
    if violations >= trials:
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(100):
        p = (low + high) / 2
        tail = sum(
            math.exp(
                math.lgamma(trials + 1) - math.lgamma(k + 1) - math.lgamma(trials - k + 1)
                + (k * math.log(p) if k else 0.0) + (trials - k) * math.log1p(-p)
            )
            for k in range(violations + 1)
        )  # fmt: skip
        low, high = (p, high) if tail > 1 - confidence else (low, p)
    return high


def check_measured(body: Json) -> list[str]:
    """Arithmetic of what was measured; the runs themselves are not repeated here."""
    said = []
    for name, m in body["measured"].items():
        errors = [exact(e) for e in m["errors"]]
        need(m["samples"] == len(errors), f"{name}: the number of samples is not that of errors")
        over = sum(e > exact(body["budget"]) for e in errors)
        need(m["violations"] == over, f"{name}: the number of violations is wrong")
        need(exact(m["worst"]) == max(errors, default=ZERO), f"{name}: the worst is wrong")
        chosen_on = bool(m["chosen_on"])
        limit = clopper_pearson(over, len(errors), m["confidence"]) if not chosen_on else 1.0
        need(abs(limit - m["probability"]) <= 1e-9, f"{name}: the Clopper–Pearson limit is wrong")
        text = f"MEASURED, {name}: worst error {m['worst']:.6g} on {len(errors)} inputs, budget "
        text += f"{body['budget']:.6g}, {over} over it"
        if not chosen_on:
            text += f"; P(violation) ≤ {limit:.3g} at {m['confidence']:.0%} for independent draws"
        said.append(text + ("; chosen on these, so no statement on others" if chosen_on else ""))
    return said


def check(certificate: Json) -> list[str]:
    """Every claim of a certificate, in words; raises `Rejected` at the first that does not hold."""
    try:
        schema, sealed = certificate.get("schema"), certificate.get("digest")
        need(schema == SCHEMA, f"schema {schema!r} is not known")
        need(sealed == digest(certificate), "the digest does not match the content")
        problem = Problem(certificate["problem"])
        check_formats(certificate, problem)
        said = check_section(certificate, problem) if certificate["section"] is not None else []
        said += check_bound(certificate, problem) + check_measured(certificate)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as e:
        raise Rejected(f"malformed: {type(e).__name__}: {e}") from e
    return [*said, NOT_PROVED]


def main(arguments: list[str]) -> int:
    """Check the file named on the command line and say what it proves."""
    try:
        with open(arguments[0], encoding="utf-8") as file:
            certificate = dict(json.load(file))
    except (OSError, ValueError, TypeError, IndexError, RecursionError) as broken:
        print(f"usage: python check_certificate.py certificate.json ({broken})", file=sys.stderr)
        return 2
    try:
        print("\n".join([*check(certificate), "ACCEPTED"]))
    except Rejected as claim:
        print(f"REJECTED: {claim}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
