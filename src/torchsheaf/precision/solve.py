"""The cheapest section within the budgets, and a tree of dual multipliers that proves how cheap.

The section comes from HiGHS. The proof is separate: linear relaxations are branched on, every leaf
keeps its dual multipliers, and any multipliers at all give a valid bound in exact arithmetic, so
the checker trusts neither HiGHS nor this file.
"""

import heapq
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.optimize import LinearConstraint, linprog, milp
from scipy.sparse import csr_array, hstack

from torchsheaf.precision.problem import AssignmentProblem
from torchsheaf.precision.program import Program, build, read_section


@dataclass(frozen=True)
class Solution:
    """A section with its cost, or none; `tree` is the proof of the bound.

    section is None where no section meets the budgets (then every leaf of the tree is a proof of
    infeasibility) or where the solver stopped at its limit without one.
    """

    section: dict[str, str] | None
    cost: float
    bound: float
    tree: dict[str, Any]
    status: str

    @property
    def gap(self) -> float:
        """(cost − bound)/cost: how much cheaper a section could still be, at most."""
        if self.section is None or self.cost <= 0:
            return 0.0
        return max(0.0, (self.cost - self.bound) / self.cost)


def cheapest(
    problem: AssignmentProblem, *, leaves: int = 40, seconds: float = 30.0, prove: bool = True
) -> Solution:
    """Solve exactly, then prove a lower bound with at most `leaves` linear programs.

    Raises nothing on an infeasible problem: the answer is a `Solution` without section whose tree
    proves it. Cost: one mixed-integer program and up to `leaves` linear ones.
    """
    if any(not problem.stalk_of(g) for g in problem.free()):
        return Solution(None, np.inf, np.inf, {"leaf": "empty stalk"}, "a stalk is empty")
    section, status = _integer(problem, seconds)
    incumbent = np.inf if section is None else problem.price(section)
    if not prove:
        return Solution(section, incumbent, -np.inf, {}, status)
    tree, bound = prove_bound(build(problem), problem, incumbent, leaves)
    return Solution(section, incumbent, bound, tree, status)


def _integer(problem: AssignmentProblem, seconds: float) -> tuple[dict[str, str] | None, str]:
    """The cheapest section that keeps the budgets, or none, and what HiGHS said."""
    status = ""
    # HiGHS accepts rows up to 1e-6 over: such a section is not within budget.
    for slack in (0.0, 4e-6):
        rows = tuple(replace(r, limit=r.limit * (1 - slack)) for r in problem.rows)
        program = build(problem.with_rows(rows))
        result = _milp(program, program.c, seconds)
        status = str(result.message)
        if result.x is None:
            break
        section = read_section(program, result.x)
        if problem.meets(section) and problem.supports(section):
            return section, status
        status = "the solver's tolerance was larger than the slack of the budget"
    return None, status


def _milp(
    program: Program, objective: np.ndarray, seconds: float, *, rows: bool = True, gap: float = 0.0
) -> Any:
    """min objective·x over the program with its inequalities (`rows`) or without, z in {0, 1}."""
    constraints = [LinearConstraint(program.equal, program.equal_rhs, program.equal_rhs)]
    if rows and program.upper.shape[0]:
        constraints.append(LinearConstraint(program.upper, -np.inf, program.upper_rhs))
    integrality = np.zeros(len(program.c))
    integrality[list(program.z.values())] = 1
    return milp(
        objective, constraints=constraints, integrality=integrality, bounds=(0, 1),
        options={"mip_rel_gap": gap, "time_limit": seconds},
    )  # fmt: skip


@dataclass(frozen=True)
class _Leaf:
    fixed: Mapping[int, str]
    bound: float
    multipliers: dict[str, Any]
    x: np.ndarray | None


def prove_bound(
    program: Program, problem: AssignmentProblem, incumbent: float, leaves: int
) -> tuple[dict[str, Any], float]:
    """Best-first branching on groups; returns the tree and the bound it proves (in cost units)."""
    root = _relax(program, {})
    counter = itertools.count()
    heap = [(root.bound, next(counter), root)]
    nodes: dict[tuple[tuple[int, str], ...], Any] = {(): root}
    solved = 1
    while heap and solved < leaves:
        bound, _, leaf = heap[0]
        # Stop once the proof is as good as doubles can tell, or the leaf cannot be split.
        if bound * program.scale >= incumbent * (1 - 1e-9):
            break
        group = _branch(program, problem, leaf)
        if group is None:
            break
        heapq.heappop(heap)
        children = {}
        for f in problem.stalk_of(program.groups[group]):
            child = _relax(program, {**leaf.fixed, group: f})
            children[f] = child
            solved += 1
            heapq.heappush(heap, (child.bound, next(counter), child))
        nodes[tuple(sorted(leaf.fixed.items()))] = (group, children)
    bound = min((b for b, _, _ in heap), default=np.inf)
    return _write(program, nodes, {}), float(bound * program.scale)


def _write(program: Program, nodes: dict[Any, Any], fixed: dict[int, str]) -> dict[str, Any]:
    node = nodes.get(tuple(sorted(fixed.items())))
    if isinstance(node, tuple):
        group, children = node
        branches = {}
        for f, child in children.items():
            key = tuple(sorted(child.fixed.items()))
            if isinstance(nodes.get(key), tuple):
                branches[f] = _write(program, nodes, {**fixed, group: f})
            else:
                branches[f] = child.multipliers
        return {"branch": program.groups[group][0], "formats": branches}
    assert node is not None
    return node.multipliers


def _branch(program: Program, problem: AssignmentProblem, leaf: _Leaf) -> int | None:
    """The most undecided group, weighed by what its formats differ in cost."""
    best, choice = 1e-7, None
    if leaf.x is None:
        return None
    for g, members in enumerate(program.groups):
        stalk = problem.stalk_of(members)
        if g in leaf.fixed or len(stalk) < 2:
            continue
        values = [leaf.x[program.z[g, f]] for f in stalk]
        prices = [program.c[program.z[g, f]] for f in stalk]
        weight = (1 - max(values)) * (max(prices) - min(prices) + 1e-9)
        if 1 - max(values) > 1e-9 and (choice is None or weight > best):
            best, choice = weight, g
    return choice


def _bounds(program: Program, fixed: Mapping[int, str]) -> np.ndarray:
    high = np.ones_like(program.c)
    for (g, f), j in program.z.items():
        if g in fixed and fixed[g] != f:
            high[j] = 0.0
    return np.stack([np.zeros_like(high), high], axis=1)


def _relax(program: Program, fixed: Mapping[int, str]) -> _Leaf:
    """Linear relaxation with some groups fixed, its bound and its dual multipliers."""
    bounds = _bounds(program, fixed)
    result = linprog(
        program.c, A_ub=program.upper, b_ub=program.upper_rhs, A_eq=program.equal,
        b_eq=program.equal_rhs, bounds=bounds, method="highs-ds",
    )  # fmt: skip
    if result.status == 0:
        equal, upper = _tidy(-result.eqlin.marginals), _tidy(-result.ineqlin.marginals)
        bound = lagrangian(program, program.c, equal, upper, bounds)
        return _Leaf(fixed, bound, _multipliers("bound", equal, upper), result.x)
    equal, upper = _farkas(program, bounds)
    # More than doubles may lose in the sum: the checker adds the same terms exactly.
    if lagrangian(program, np.zeros_like(program.c), equal, upper, bounds) > 1e-6:
        return _Leaf(fixed, np.inf, _multipliers("infeasible", equal, upper), None)
    # No proof either way (numerical trouble): the trivial bound is still true.
    zero = np.zeros(program.equal.shape[0]), np.zeros(program.upper.shape[0])
    bound = lagrangian(program, program.c, *zero, bounds)
    return _Leaf(fixed, bound, _multipliers("bound", *zero), None)


def _farkas(program: Program, bounds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Multipliers of the program 'minimise the largest excess over a budget'."""
    rows = program.upper.shape[0]
    relax = np.zeros((rows, 1))
    relax[rows - program.budgets :] = -1.0
    equal_pad = csr_array((program.equal.shape[0], 1))
    result = linprog(
        np.append(np.zeros_like(program.c), 1.0),
        A_ub=hstack([program.upper, csr_array(relax)]), b_ub=program.upper_rhs,
        A_eq=hstack([program.equal, equal_pad]), b_eq=program.equal_rhs,
        bounds=np.vstack([bounds, np.array([[-1.0, np.inf]])]), method="highs-ds",
    )  # fmt: skip
    if result.status != 0:
        return np.zeros(program.equal.shape[0]), np.zeros(rows)
    # All digits: multipliers of columns that are never chosen are large, and what is left is small.
    return _tidy(-result.eqlin.marginals, 17), _tidy(-result.ineqlin.marginals, 17)


def lagrangian(
    program: Program, c: np.ndarray, equal: np.ndarray, upper: np.ndarray, bounds: np.ndarray
) -> float:
    """min over the box of c·x + upper·(Ux − u) + equal·(Ex − e): a bound for any upper ≥ 0."""
    upper = np.maximum(upper, 0.0)
    reduced = c + program.upper.T @ upper + program.equal.T @ equal
    constant = -(upper @ program.upper_rhs) - equal @ program.equal_rhs
    return float(constant + np.minimum(reduced * bounds[:, 0], reduced * bounds[:, 1]).sum())


def _tidy(marginals: np.ndarray, digits: int = 9) -> np.ndarray:
    """Few significant digits: shorter certificates, and any multipliers are valid."""
    return np.array([float(f"{m:.{digits}g}") if abs(m) > 1e-13 else 0.0 for m in marginals])


def _multipliers(kind: str, equal: np.ndarray, upper: np.ndarray) -> dict[str, Any]:
    upper = np.maximum(upper, 0.0)
    return {
        "leaf": kind,
        "equal": {str(i): float(m) for i, m in enumerate(equal) if m != 0.0},
        "upper": {str(i): float(m) for i, m in enumerate(upper) if m != 0.0},
    }


def least_error(problem: AssignmentProblem, row: int = 0, seconds: float = 10.0) -> Solution:
    """The section with the smallest value of one budget row, whatever it costs.

    Its `bound` is then a bound on that row: where it exceeds the limit, no section meets it.
    """
    if any(not problem.stalk_of(g) for g in problem.free()):
        return Solution(None, np.inf, np.inf, {"leaf": "empty stalk"}, "a stalk is empty")
    wanted = problem.rows[row]
    # In units of what it is at least: a limit far from that would make the numbers extreme.
    unit = wanted.least(problem) or wanted.limit
    program = build(problem.with_rows((replace(wanted, limit=unit),)))
    objective = np.asarray(program.upper[[-1], :].toarray()).ravel()
    result = _milp(program, objective, seconds, rows=False, gap=1e-6)
    if result.x is None:
        return Solution(None, np.inf, np.inf, {}, str(result.message))
    section = read_section(program, result.x)
    bound = float(result.mip_dual_bound) * unit
    return Solution(section, problem.price(section), bound, {}, str(result.message))
