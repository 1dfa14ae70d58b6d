"""A finding: one number, what it should be, and what to do when it is not."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum


class Verdict(Enum):
    """Whether a number keeps its bound; NOTED when there is no bound to keep."""

    HOLDS = "holds"
    FAILS = "fails"
    NOTED = "noted"


@dataclass(frozen=True)
class Finding:
    """One measured number with its bound and verdict.

    `relation` is "≤", "≥", ">" or "" (no bound); `source` says where the claim comes from;
    `advice` what the number means, or what to do about it.
    """

    name: str
    value: float
    unit: str
    relation: str
    bound: float | None
    verdict: Verdict
    source: str
    advice: str

    @property
    def holds(self) -> bool:
        """Whether nothing is wrong: the bound is kept, or there is none."""
        return self.verdict is not Verdict.FAILS

    def __str__(self) -> str:
        unit = f" {self.unit}" if self.unit else ""
        bound = f" ({self.relation} {self.bound:.3g})" if self.bound is not None else ""
        return f"{self.name}: {self.value:.3g}{unit}{bound}: {self.verdict.value}"


def listed(found: Sequence[object], most: int) -> str:
    """The first ones of a list as text, with "…" where there are more."""
    return ", ".join(map(str, found[:most])) + (", …" if len(found) > most else "")


def at_most(
    name: str, value: float, bound: float, *, source: str, advice: str, unit: str = ""
) -> Finding:
    """A number that must not exceed its bound; NaN fails."""
    verdict = Verdict.HOLDS if value <= bound else Verdict.FAILS
    return Finding(name, float(value), unit, "≤", float(bound), verdict, source, advice)


def above(
    name: str, value: float, bound: float, *, source: str, advice: str, unit: str = ""
) -> Finding:
    """A number that must be greater than its bound; NaN fails."""
    verdict = Verdict.HOLDS if value > bound else Verdict.FAILS
    return Finding(name, float(value), unit, ">", float(bound), verdict, source, advice)


def noted(name: str, value: float, *, source: str, advice: str, unit: str = "") -> Finding:
    """A number without a bound; it fails only when it is not a number."""
    verdict = Verdict.FAILS if math.isnan(value) else Verdict.NOTED
    return Finding(name, float(value), unit, "", None, verdict, source, advice)
