"""The exact assignment against trying every section, and the checker on every certificate."""

import json
import math
import random
from dataclasses import replace

import pytest

from tests.reference.precision_problems import random_problem
from torchsheaf.precision.certificate import measurement, write_certificate
from torchsheaf.precision.check_certificate import check
from torchsheaf.precision.problem import brute_force
from torchsheaf.precision.solve import cheapest, least_error

SIZES = [3 + seed % 5 for seed in range(54)] + [9, 9]


def test_there_are_enough_problems_of_every_kind() -> None:
    problems = [random_problem(s, n) for s, n in enumerate(SIZES)]
    counts = [sum(1 for _ in p.sections()) for p in problems[:20]]
    answers = [brute_force(p) for p in problems[:54]]
    assert len(SIZES) >= 50
    assert max(counts) > 100
    assert sum(a is None for a in answers) >= 3, "infeasible problems are part of the law"
    assert sum(bool(p.ties) for p in problems) >= 5


@pytest.mark.parametrize(("seed", "size"), list(enumerate(SIZES)))
def test_cheapest_section_equals_brute_force_and_is_certified(seed: int, size: int) -> None:
    problem = random_problem(seed, size)
    expected, found = brute_force(problem), cheapest(problem, leaves=400)
    if expected is None:
        assert found.section is None
    else:
        assert found.section is not None
        assert math.isclose(found.cost, expected[0], rel_tol=1e-9)
        assert problem.meets(found.section)
        assert problem.supports(found.section)
        assert found.gap < 1e-6
    certificate = write_certificate(
        problem, found, budget=1.0, norm="rms", measured={"held out": measurement([0.5], 1.0, 0.95)}
    )
    said = check(json.loads(json.dumps(certificate)))
    assert any(("PROVED infeasible" if expected is None else "PROVED optimal") in s for s in said)


@pytest.mark.parametrize("limit", [1e-9, 1e-30, 1e-300])
@pytest.mark.parametrize("seed", range(6))
def test_a_limit_far_out_of_reach_is_proved_so_and_the_least_error_still_found(
    seed: int, limit: float
) -> None:
    problem = random_problem(seed, 6)
    row = replace(problem.rows[0], limit=limit)
    small = problem.with_rows((row,))
    least = min(row.value(small, s) for s in small.sections())
    found = least_error(small)
    assert found.section is not None
    assert math.isclose(row.value(small, found.section), least, rel_tol=1e-5)
    assert found.bound <= least * (1 + 1e-9)
    certificate = write_certificate(small, cheapest(small), budget=limit, norm="rms")
    assert check(certificate)[0].startswith("PROVED infeasible")


def test_a_full_sized_problem_has_19683_sections() -> None:
    from torchsheaf.precision.problem import AssignmentProblem

    p = random_problem(7, 9)
    full = AssignmentProblem(
        dict.fromkeys(p.stalks, ("fp32", "bf16", "fp16")), p.cost, p.casts, p.rows, ()
    )
    assert sum(1 for _ in full.sections()) == 19_683
    expected, found = brute_force(full), cheapest(full, leaves=400)
    assert expected is not None
    assert found.section is not None
    assert math.isclose(found.cost, expected[0], rel_tol=1e-9)


def test_random_sections_never_beat_the_proved_bound() -> None:
    # The bound with few leaves is loose but must stay a bound.
    r = random.Random(5)
    for seed in range(12):
        problem = random_problem(seed, 7)
        found = cheapest(problem, leaves=3)
        for section in problem.sections():
            if r.random() < 0.1 and problem.meets(section):
                assert problem.price(section) >= found.bound * (1 - 1e-12)
