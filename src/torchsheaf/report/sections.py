"""Which sections a page has, and in which order."""

from torchsheaf.precision import Plan
from torchsheaf.report.against_section import against_section
from torchsheaf.report.analysis import Analysis
from torchsheaf.report.diagnosis_section import diagnosis_section
from torchsheaf.report.labels_section import labels_section
from torchsheaf.report.nearest_section import nearest_section
from torchsheaf.report.network_section import network_section
from torchsheaf.report.precision_section import TITLE, precision_section
from torchsheaf.report.proof_section import proof_section
from torchsheaf.report.relaxation_section import relaxation_section
from torchsheaf.report.samples_section import samples_section
from torchsheaf.report.section import Section, absent
from torchsheaf.report.spectrum_section import spectrum_section

SECTIONS = (
    network_section,
    against_section,
    diagnosis_section,
    proof_section,
    spectrum_section,
    relaxation_section,
    labels_section,
    samples_section,
)


def sections_of(analysis: Analysis, *, plan: Plan | None) -> list[Section]:
    """The sections of an analysis, then those that were asked for."""
    made = [
        make(analysis)
        for make in SECTIONS
        if make is not against_section or analysis.against is not None
    ]
    if analysis.nearest is not None:
        made.append(nearest_section(analysis, analysis.nearest))
    if plan is not None:
        made.append(precision_section(plan))
    elif "precision" in analysis.missing:
        made.append(absent("precision", TITLE, analysis.missing["precision"]))
    return made
