"""Write a precision certificate: the problem, the section, the proof tree and the measurements."""

import json
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from torchsheaf.file import write_text
from torchsheaf.precision import check_certificate as checker
from torchsheaf.precision.formats import FORMATS, Format
from torchsheaf.precision.problem import AssignmentProblem
from torchsheaf.precision.solve import Solution


def describe_problem(problem: AssignmentProblem) -> dict[str, Any]:
    """The assignment problem as JSON; pairs of formats are written "source>target"."""

    def pairs(table: Mapping[tuple[str, str], float]) -> dict[str, float]:
        return {f"{s}>{t}": float(c) for (s, t), c in table.items()}

    return {
        "stalks": {v: list(s) for v, s in problem.stalks.items()},
        "cost": {v: {f: float(c) for f, c in t.items()} for v, t in problem.cost.items()},
        "casts": [
            {
                "source": e.source,
                "consumer": e.consumer,
                "operand": e.operand,
                "cost": pairs(e.cost),
            }
            for e in problem.casts
        ],
        "rows": [
            {
                "name": r.name,
                "limit": float(r.limit),
                "unary": {v: {f: float(a) for f, a in t.items()} for v, t in r.unary.items()},
                "pair": {str(i): pairs(t) for i, t in r.pair.items()},
            }
            for r in problem.rows
        ],
        "ties": [list(t) for t in problem.ties],
    }


def describe_format(f: Format) -> dict[str, Any]:
    """The numbers that decide which casts are exact and which values fit."""
    return {
        "bits": f.bits,
        "largest": f.largest,
        "spacing": f.spacing,
        "result": f.result.name,
        "emulated": f.is_emulated,
    }


def measurement(
    errors: Sequence[float], budget: float, confidence: float, *, chosen_on: bool = False
) -> dict[str, Any]:
    """Errors of runs, their violations of the budget, and the Clopper–Pearson limit.

    chosen_on: the section was chosen by looking at these inputs, so there is no limit (1.0).
    """
    finite = [float(e) if math.isfinite(e) else 1e300 for e in errors]
    violations = sum(e > budget for e in finite)
    return {
        "errors": finite,
        "samples": len(finite),
        "violations": violations,
        "worst": max(finite, default=0),
        "confidence": confidence,
        "chosen_on": chosen_on,
        "probability": 1.0
        if chosen_on
        else checker.clopper_pearson(violations, len(finite), confidence),
    }


def write_certificate(
    problem: AssignmentProblem,
    solution: Solution,
    *,
    budget: float,
    norm: str,
    pins: Mapping[str, str] | None = None,
    ranges: Mapping[str, float] | None = None,
    range_margin: float = 1.0,
    measured: Mapping[str, Mapping[str, Any]] | None = None,
    origin: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The certificate of a solution as JSON data, sealed with its digest.

    The claims (cost, loads, bound, gap) are exact rationals written "p/q". Raises `ValueError`
    where the solution does not prove what it says, by running the checker on the result.
    """
    body = describe_problem(problem)
    rational = checker.Problem(body)
    names = {f for s in problem.stalks.values() for f in s}
    names |= {FORMATS[f].result.name for f in names}
    certificate: dict[str, Any] = {
        "schema": checker.SCHEMA,
        "origin": dict(origin or {}),
        "budget": float(budget),
        "norm": norm,
        "formats": {f: describe_format(FORMATS[f]) for f in sorted(names)},
        "pins": dict(pins or {}),
        "ranges": {v: {"largest": float(r)} for v, r in (ranges or {}).items()},
        "range_margin": float(range_margin),
        "problem": body,
        "section": solution.section,
        "tree": solution.tree,
        "measured": {k: dict(m) for k, m in (measured or {}).items()},
    }
    scale = checker.cost_scale(rational)
    bound = checker.tree_bound(checker.Program(rational), solution.tree, {}, scale)
    if solution.section is None:
        certificate["claims"] = {"infeasible": True}
    else:
        price = rational.price(solution.section)
        bound = price if bound is None else min(price, bound)
        certificate["claims"] = {
            "cost": str(price),
            "loads": [str(rational.load(row, solution.section)) for row in rational.rows],
            "bound": str(bound),
            "gap": str((price - bound) / price if price else Fraction(0)),
        }
    certificate["digest"] = checker.digest(certificate)
    try:
        checker.check(certificate)
    except checker.Rejected as claim:
        raise ValueError(f"the solution does not prove what it claims: {claim}") from claim
    return certificate


def save_certificate(certificate: Mapping[str, Any], path: str | Path) -> None:
    """Write a certificate as JSON, atomically."""
    write_text(path, json.dumps(certificate, indent=1, allow_nan=False))
