"""The format sheaf: sections counted, emptiness explained, and what H¹ over Z/2 sees and misses."""

import itertools

import pytest

from tests.reference.precision_problems import random_problem
from torchsheaf.precision.obstruction import obstruction
from torchsheaf.precision.sections import (
    FormatSheaf,
    Sections,
    arc_consistent,
    count_sections,
    sections,
    sheaf_of,
)

Relation = frozenset[tuple[str, str]]


def differ(stalk: tuple[str, ...]) -> Relation:
    return frozenset((a, b) for a in stalk for b in stalk if a != b)


def equal(stalk: tuple[str, ...]) -> Relation:
    return frozenset((a, a) for a in stalk)


def by_hand(sheaf: FormatSheaf) -> int:
    names = list(sheaf.stalks)
    total = 0
    for pick in itertools.product(*(sheaf.stalks[v] for v in names)):
        section = dict(zip(names, pick, strict=True))
        total += all((section[a], section[b]) in r for a, b, r in sheaf.cells)
    return total


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("casts", [True, False])
def test_counting_by_elimination_equals_counting_one_by_one(seed: int, casts: bool) -> None:
    sheaf = sheaf_of(random_problem(seed, 6), casts=casts)
    assert count_sections(sheaf) == by_hand(sheaf)


def test_an_empty_stalk_and_an_inconsistent_chain_are_told_apart() -> None:
    p = random_problem(1, 4)
    first, second = list(p.stalks)[:2]
    assert sections(p.restrict({first: ()})).reason == "empty stalk"
    apart = p.restrict(dict.fromkeys(p.stalks, ("fp16",))).restrict({second: ("bf16",)})
    found = sections(apart, casts=False)
    assert isinstance(found, Sections)
    assert found.count == 0
    assert found.reason == "no consistent choice"
    assert found.trace, "the removals are the evidence"
    assert sections(apart).count == 1, "with casts the chain is fine"


def test_arc_consistency_removes_only_what_extends_to_no_section() -> None:
    for seed in range(8):
        sheaf = sheaf_of(random_problem(seed, 5), casts=False)
        pruned, _ = arc_consistent(sheaf)
        assert count_sections(FormatSheaf(pruned, sheaf.cells)) == count_sections(sheaf)


def test_a_chain_without_casts_is_obstructed_at_both_ends() -> None:
    s = {"a": ("bf16",), "b": ("bf16", "fp16"), "c": ("fp16",)}
    sheaf = FormatSheaf(s, (("a", "b", equal(s["b"])), ("b", "c", equal(s["b"]))))
    sheaf = FormatSheaf(
        s, tuple((a, b, frozenset(p for p in r if p[0] in s[a] and p[1] in s[b]))
                 for a, b, r in sheaf.cells)
    )  # fmt: skip
    assert ("a", "bf16") in obstruction(sheaf).obstructed
    assert ("c", "fp16") in obstruction(sheaf).obstructed
    free = FormatSheaf(s, (("a", "b", frozenset({("bf16", "bf16"), ("bf16", "fp16")})),
                           ("b", "c", frozenset({("fp16", "fp16")}))))  # fmt: skip
    assert obstruction(free).obstructed == (("b", "bf16"),)


def test_an_odd_cycle_passes_arc_consistency_and_is_obstructed() -> None:
    two = ("fp16", "bf16")
    cells = tuple((a, b, differ(two)) for a, b in (("a", "b"), ("b", "c"), ("c", "a")))
    sheaf = FormatSheaf(dict.fromkeys("abc", two), cells)
    pruned, trace = arc_consistent(sheaf)
    assert pruned == sheaf.stalks
    assert trace == ()
    assert count_sections(sheaf) == 0
    assert len(obstruction(sheaf).obstructed) == 6


def test_k4_with_three_formats_is_the_documented_false_negative() -> None:
    three = ("fp32", "fp16", "bf16")
    cells = tuple((a, b, differ(three)) for a, b in itertools.combinations("abcd", 2))
    sheaf = FormatSheaf(dict.fromkeys("abcd", three), cells)
    assert count_sections(sheaf) == 0
    assert obstruction(sheaf).obstructed == ()


def test_an_obstructed_choice_extends_to_no_section() -> None:
    seen = 0
    for seed in range(20):
        sheaf = sheaf_of(random_problem(seed, 5), casts=False)
        for v, f in obstruction(sheaf).obstructed:
            fixed = FormatSheaf({**sheaf.stalks, v: (f,)}, tuple(
                (a, b, frozenset(p for p in r if (a != v or p[0] == f) and (b != v or p[1] == f)))
                for a, b, r in sheaf.cells
            ))  # fmt: skip
            assert count_sections(fixed) == 0
            seen += 1
    assert seen > 5
