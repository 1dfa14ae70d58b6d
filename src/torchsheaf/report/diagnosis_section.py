"""The dashboard: what was looked for, what was seen, and what to do about it."""

from collections.abc import Iterable

from torchsheaf.diagnose import Finding, Verdict
from torchsheaf.report.analysis import Analysis
from torchsheaf.report.markup import number, paragraph, table
from torchsheaf.report.section import Section, absent

TITLE = "Is anything wrong with it?"


def diagnosis_section(analysis: Analysis) -> Section:
    """The pathologies as a table, failures first."""
    findings = analysis.pathologies
    if not findings:
        return absent("diagnosis", TITLE, analysis.missing["diagnosis"])
    failed = [f for f in findings if not f.holds]
    found = (
        f"{len(failed)} found: " + "; ".join(f.name for f in failed) if failed else "none was found"
    )
    lead = f"{looked_for(findings)} known faults were looked for; {found}."
    body = paragraph(
        lead,
        "Each line says what was measured, what it should stay below, and what to do.",
    )
    ordered = failed + [f for f in findings if f.holds]
    body += table(
        ("looked for", "verdict", "seen", "at most", "what it means, what to do"),
        [(f.name, verdict(f), amount(f, f.value), bound(f), f.advice) for f in ordered],
        numeric=(2, 3),
    )
    return Section("diagnosis", TITLE, body)


def verdict(finding: Finding) -> str:
    """A finding's verdict in plain words."""
    words = {Verdict.HOLDS: "fine", Verdict.FAILS: "look at this", Verdict.NOTED: "cannot be told"}
    return words[finding.verdict]


def looked_for(findings: Iterable[Finding]) -> int:
    """How many findings have a verdict: not those that are only noted."""
    return sum(f.verdict is not Verdict.NOTED for f in findings)


def amount(finding: Finding, value: float) -> str:
    """A value with its unit."""
    unit = f" {finding.unit}" if finding.unit and finding.unit != "×" else finding.unit
    return f"{number(value, 2)}{unit}"


def bound(finding: Finding) -> str:
    """The bound, if there is one."""
    return "" if finding.bound is None else number(finding.bound, 2)
