"""Which inputs would have been called another class, as a section of the page; made when asked."""

from torch import Tensor

from torchsheaf.figures import nearest_figure
from torchsheaf.harmonic import Nearest, nearest_consistent
from torchsheaf.report.analysis import Analysis
from torchsheaf.report.markup import figure, number, paragraph
from torchsheaf.report.section import Section, absent

TITLE = "What would have to change"
NAME = "nearest"
SAMPLES = 24


def nearest_section(analysis: Analysis, wanted: int) -> Section:
    """Free the input, hold the output at class `wanted`, pull gently back: pictures of the change.

    Takes the first samples that the network does not call `wanted` already. What cannot be asked
    was refused by `analyse`.
    """
    sheaf = analysis.problem.sheaf
    x: Tensor = analysis.problem.values[sheaf.inputs[0]]
    logits = sheaf.forward(x)[sheaf.outputs[0]]
    other = (logits.argmax(1) != wanted).nonzero().flatten()[:SAMPLES]
    if not other.numel():
        return absent(NAME, TITLE, f"The network calls every sample {wanted} already.")
    return section_of(nearest_consistent(sheaf, x[other], wanted, output=sheaf.outputs[0]))


def section_of(found: Nearest) -> Section:
    """The section of a result that has been computed already."""
    count, reached = found.reached.numel(), int(found.reached.sum())
    wanted = int(found.wanted[0])
    body = paragraph(
        f"The input is let go and the output is held at class {wanted}; the input is pulled back "
        "to where it was, ever more weakly, until the network's own answer to the changed input "
        f"is {wanted}. That happened for {reached} of {count} samples.",
    )
    if not found.outcome.ok:
        body += paragraph(f"Not every relaxation arrived ({found.outcome.value}).")
    if reached:
        middle = float(found.distance[found.reached].median())
        body += paragraph(f"The median change ‖Δx‖ is {number(middle)}.")
        try:
            body += figure(
                lambda theme: nearest_figure(found, theme=theme),
                f"Inputs before and after, and the change that makes the network say {wanted}.",
                "Red must rise, blue must fall. These are local minima of the sheaf's energy, "
                "not the smallest changes that fool the network.",
            )
        except ValueError:  # the input is no picture
            body += paragraph("The input is no picture, so that none is drawn.")
    return Section(NAME, TITLE, body)
