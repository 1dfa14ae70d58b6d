"""The check that running the network and solving its local rules are the same thing."""

from torchsheaf.diagnose import Finding
from torchsheaf.report.analysis import Analysis
from torchsheaf.report.markup import escape, number, paragraph
from torchsheaf.report.section import Section


def proof_section(analysis: Analysis) -> Section:
    """Findings of `agreement`, each with what it means."""
    samples = analysis.problem.batch
    body = paragraph(
        "Running a network means computing one value after the other. One can also ask a "
        "different question: which values, taken all at once, make every step agree with its "
        "neighbours? The answer is called the harmonic extension of the input. It should exist, "
        "be the only one, and be what the network computes anyway.",
    )
    body += paragraph(f"Checked here on {samples} samples:")
    body += f'<ul class="checks">{"".join(map(finding_item, analysis.findings))}</ul>\n'
    return Section("proof", "Forward pass and local rules agree", body)


def finding_item(finding: Finding) -> str:
    """One finding as a list item."""
    bound = ""
    if finding.bound is not None:
        bound = f" (required: {finding.relation} {number(finding.bound)})"
    unit = f" {finding.unit}" if finding.unit else ""
    mark = {"holds": "✓ holds", "fails": "✗ fails"}.get(finding.verdict.value, "noted")
    return (
        f'<li><span class="verdict {escape(finding.verdict.value)}">{escape(mark)}</span><div>'
        f"<p>{escape(_upper(finding.name))}: <b>{escape(number(finding.value))}{escape(unit)}</b>"
        f"{escape(bound)}.</p><p>{escape(finding.advice)}</p>"
        f'<p class="source">{escape(finding.source)}</p></div></li>\n'
    )


def _upper(text: str) -> str:
    return text if text.startswith(("|", "δ")) else text[:1].upper() + text[1:]
