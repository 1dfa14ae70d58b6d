"""Two models side by side on the same samples, and where the two computations part."""

from torchsheaf.diagnose import FaultProfile, Finding, fault_profile
from torchsheaf.report.analysis import Analysis
from torchsheaf.report.diagnosis_section import amount, verdict
from torchsheaf.report.headlines import typical
from torchsheaf.report.markup import number, paragraph, table
from torchsheaf.report.section import Section

TITLE = "Side by side"


def against_section(analysis: Analysis) -> Section:
    """This model and the one it is compared with."""
    other = analysis.against
    assert other is not None
    ours, theirs = f"{analysis.title} (this page)", other.title
    body = paragraph(
        f"{analysis.title} and {other.title} on the same {analysis.problem.batch} samples."
    )
    body += table(("", ours, theirs), _rows(analysis, other), numeric=(1, 2))
    body += _parting(analysis, other)
    return Section("against", TITLE, body)


def _rows(a: Analysis, b: Analysis) -> list[tuple[str, str, str]]:
    rows = []
    for name, measure in (
        ("samples classified as labelled", _accuracy),
        ("root-mean-square error", _error),
        ("smallest eigenvalue, median", _gap),
        ("largest eigenvalue, median", _top),
        ("mean discord with labels held", _discord),
    ):
        left, right = measure(a), measure(b)
        if left or right:
            rows.append((name, left or "–", right or "–"))
    known = {f.name: f for f in b.pathologies}
    for finding in a.pathologies:
        twin = known.pop(finding.name, None)
        rows.append((finding.name, _seen(finding), _seen(twin)))
    rows += [(name, "–", _seen(f)) for name, f in known.items()]
    return rows


def _seen(finding: Finding | None) -> str:
    if finding is None:
        return "–"
    return f"{amount(finding, finding.value)}: {verdict(finding)}"


def _accuracy(a: Analysis) -> str:
    if a.labels is None or not a.labels.is_classes:
        return ""
    return f"{1 - float(a.labels.wrong(a.output).double().mean()):.1%}"


def _error(a: Analysis) -> str:
    if a.labels is None or a.labels.is_classes:
        return ""
    return number(float((a.output - a.labels.target).square().mean().sqrt()))


def _gap(a: Analysis) -> str:
    return "" if a.gap is None else number(a.gap)


def _top(a: Analysis) -> str:
    return "" if a.largest is None else number(typical(a.largest.values[:, 0]))


def _discord(a: Analysis) -> str:
    return "" if a.table is None else number(float(a.table.total.mean()))


def parting(a: Analysis, b: Analysis) -> FaultProfile | None:
    """Misfit of a's steps at b's values, where both have the same cells; else None."""
    ours = {n: v.shape for n, v in a.sheaf.vertices.items()}
    if ours != {n: v.shape for n, v in b.sheaf.vertices.items()}:
        return None
    return fault_profile(a.problem, b.forward.cochain)


def _parting(a: Analysis, b: Analysis) -> str:
    profile = parting(a, b)
    if profile is None:
        return paragraph(
            "The two networks have different vertices, so their steps cannot be compared one by "
            "one."
        )
    intro = paragraph(
        f"Now give every step of {a.title} the values that {b.title} has before it, and compare "
        "what it makes of them with what stands after it. This misfit is a step's own: a step that "
        "merely receives wrong values from an earlier one shows none.",
    )
    rows = [(n, number(m, 2)) for n, m in profile.ranked()]
    return intro + table(("step", "misfit, relative"), rows, numeric=(1,))
