"""A certificate with one field changed is refused; resealed, it is refused or still true."""

import contextlib
import copy
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.reference.precision_problems import random_problem
from torchsheaf.precision import check_certificate as checker
from torchsheaf.precision.certificate import measurement, write_certificate
from torchsheaf.precision.problem import AssignmentProblem, Cast, Row, brute_force
from torchsheaf.precision.solve import cheapest

MUTATIONS = 1000


def made(seed: int, size: int = 5) -> dict[str, Any]:
    problem = random_problem(seed, size)
    first = next(iter(problem.stalks))
    problem = problem.restrict({first: problem.stalks[first][:1]})
    runs = {
        "calibration": measurement([0.2, 0.4], 1.0, 0.95, chosen_on=True),
        "held out": measurement([0.1, 0.3, 1.5], 1.0, 0.95),
    }
    certificate = write_certificate(
        problem,
        cheapest(problem, leaves=200),
        budget=1.0,
        norm="rms",
        pins={first: problem.stalks[first][0]},
        ranges=dict.fromkeys(problem.stalks, 3.0),
        range_margin=2.0,
        measured=runs,
        origin={"torch": "2"},
    )
    plain: dict[str, Any] = json.loads(json.dumps(certificate))
    return plain


def places(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every leaf of a JSON value, by path."""
    if isinstance(node, dict):
        return [p for k, v in node.items() for p in places(v, (*path, k))]
    if isinstance(node, list):
        return [p for i, v in enumerate(node) for p in places(v, (*path, i))]
    return [path]


def changed(value: Any, r: random.Random) -> Any:
    """A different value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + r.choice([-1, 1, 7])
    if isinstance(value, float):
        return r.choice(
            [value * 1.01 + 1e-6, value * 0.5 + 1e-9, value * 0.999 - 1e-6, value * 2 + 1.0]
        )
    if isinstance(value, str):
        others = [f for f in ("fp32", "bf16", "fp16") if f != value]
        return r.choice([*others, value + "0", "1/3"])
    return 1


def mutate(certificate: dict[str, Any], r: random.Random) -> tuple[dict[str, Any], tuple[Any, ...]]:
    twin = copy.deepcopy(certificate)
    path = r.choice(places(twin))
    holder = twin
    for step in path[:-1]:
        holder = holder[step]
    before = holder[path[-1]]
    holder[path[-1]] = changed(before, r)
    assert holder[path[-1]] != before
    return twin, path


def refused(certificate: dict[str, Any]) -> bool:
    try:
        checker.check(certificate)
    except checker.Rejected:
        return True
    return False


def test_one_thousand_mutations_are_all_refused() -> None:
    r = random.Random(1)
    originals = [made(s) for s in (0, 1, 3, 4, 6)]
    for original in originals:
        assert checker.check(original)
    for i in range(MUTATIONS):
        twin, path = mutate(originals[i % len(originals)], r)
        assert refused(twin), f"accepted with {path} changed"


def problem_of(body: dict[str, Any]) -> AssignmentProblem:
    def pairs(table: dict[str, float]) -> dict[tuple[str, str], float]:
        return {(k.split(">")[0], k.split(">")[1]): c for k, c in table.items()}

    return AssignmentProblem(
        {v: tuple(s) for v, s in body["stalks"].items()},
        body["cost"],
        tuple(
            Cast(e["source"], e["consumer"], e["operand"], pairs(e["cost"])) for e in body["casts"]
        ),
        tuple(
            Row(
                r["name"],
                r["limit"],
                r["unary"],
                {int(i): pairs(t) for i, t in r["pair"].items()},
            )
            for r in body["rows"]
        ),
        tuple(tuple(t) for t in body["ties"]),
    )


def test_a_forger_who_reseals_can_only_state_truths_about_another_problem() -> None:
    """With the digest recomputed, what is accepted must be true, by trying every section."""
    r = random.Random(2)
    originals = [made(s, 4) for s in (0, 1, 3, 4, 6)]
    rejected = accepted = 0
    for i in range(600):
        twin, path = mutate(originals[i % len(originals)], r)
        twin["digest"] = checker.digest(twin)
        try:
            checker.check(twin)
        except checker.Rejected:
            rejected += 1
            continue
        accepted += 1
        assert path[0] not in ("section", "claims", "pins"), path
        best = brute_force(problem_of(twin["problem"]))
        if twin["section"] is None:
            assert best is None
        else:
            bound = float(checker.Fraction(twin["claims"]["bound"]))
            assert best is None or best[0] >= bound * (1 - 1e-9), path
            # A section on the very edge may fail in floating point what it meets exactly.
            problem = checker.Problem(twin["problem"])
            assert problem.price(twin["section"]) == checker.Fraction(twin["claims"]["cost"])
            assert all(problem.load(row, twin["section"]) <= row[1] for row in problem.rows)
    assert rejected > 200
    assert accepted > 0, "some changed problem has the same solution: the test must meet it"


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.update(schema="other"),
        lambda c: c.pop("tree"),
        lambda c: c["problem"].pop("rows"),
        lambda c: c.update(section={}),
        lambda c: c["problem"]["cost"].popitem(),
        lambda c: c["problem"]["rows"][0].update(limit=float("1e400")),
        lambda c: c.update(problem=[]),
    ],
)
def test_malformed_certificates_are_refused_in_words(change: Any) -> None:
    certificate = made(0)
    change(certificate)
    try:
        certificate["digest"] = checker.digest(certificate)
    except ValueError:
        pass
    with pytest.raises(checker.Rejected):
        checker.check(certificate)


def test_what_is_no_object_is_refused_in_words() -> None:
    for given in (None, 3, [], "x", {"schema": checker.SCHEMA}):
        with pytest.raises(checker.Rejected):
            checker.check(given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "number", [float("nan"), float("inf"), 10**400, -1, True, None, "1", [], {}]
)
def test_no_number_at_any_place_breaks_the_checker(number: Any, tmp_path: Path) -> None:
    certificate = made(3)
    r = random.Random(4)
    for path in r.sample(places(certificate), 60):
        other = copy.deepcopy(certificate)
        node = other
        for key in path[:-1]:
            node = node[key]
        node[path[-1]] = number
        # Sealed again where it can be: otherwise the digest alone would refuse it.
        text = json.dumps({k: v for k, v in other.items() if k != "digest"}, sort_keys=True)
        if "NaN" not in text and "Infinity" not in text:
            other["digest"] = checker.digest(other)
        with contextlib.suppress(checker.Rejected):
            checker.check(other)
    file = tmp_path / "c.json"
    file.write_text(json.dumps({**certificate, "budget": float("nan")}))
    assert checker.main([str(file)]) == 1
    file.write_text("[" * 100_000)
    assert checker.main([str(file)]) == 2


def test_the_checker_runs_where_nothing_is_installed(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    certificate = made(0)
    good.write_text(json.dumps(certificate))
    certificate["claims"]["cost"] = "1"
    bad.write_text(json.dumps(certificate))
    # -S leaves out site-packages: neither torch nor numpy nor torchsheaf can be imported.
    python = [sys.executable, "-I", "-S"]
    absent = subprocess.run([*python, "-c", "import torch"], capture_output=True, text=True)
    assert absent.returncode != 0, "the test must run without torch"
    script = checker.__file__
    fine = subprocess.run([*python, script, str(good)], capture_output=True, text=True)
    assert fine.returncode == 0, fine.stderr
    assert "ACCEPTED" in fine.stdout
    assert "PROVED" in fine.stdout
    assert "NOT PROVED" in fine.stdout
    wrong = subprocess.run([*python, script, str(bad)], capture_output=True, text=True)
    assert wrong.returncode == 1
    assert "REJECTED" in wrong.stdout
    unreadable = subprocess.run([*python, script, str(tmp_path)], capture_output=True, text=True)
    assert unreadable.returncode == 2
