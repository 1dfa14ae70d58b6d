"""From random values to the network's own answer, by local steps."""

from torchsheaf.figures import relaxation_figure
from torchsheaf.report.analysis import Analysis
from torchsheaf.report.headlines import ARRIVED, arrival
from torchsheaf.report.markup import figure, number, paragraph
from torchsheaf.report.section import Section, absent

TITLE = "From random values to the answer"
LATE = (
    " The slowest part of the disturbance needs longer than was computed here: see its rate in "
    "the section before."
)


def relaxation_section(analysis: Analysis) -> Section:
    """Energy of a relaxation from a random start, on a log axis."""
    flow, distance = analysis.flow, arrival(analysis)
    if flow is None or distance is None:
        return absent("relaxation", TITLE, analysis.missing["relaxation"])
    samples = flow.energy.shape[1]
    first, last = (float(flow.energy[i].median()) for i in (0, -1))
    end = number(float(flow.times[-1]))
    body = paragraph(
        "The same agreement can be reached without ever running the network forwards. Hold the "
        "input, put random numbers everywhere else, and let every value drift towards what its "
        "own step and the steps after it ask for, all at once. No vertex sees more than its "
        "neighbours.",
        f"Energy, the total disagreement, falls from {number(first)} to {number(last)} (median of "
        f"{samples} samples), and after time {end} the output differs from the network's own by "
        f"{number(distance, 2)} of its size." + ("" if distance <= ARRIVED else LATE),
    )
    switches = len(flow.events)
    if switches and flow.method == "exact":  # Euler's steps chatter at a gate that slides
        body += paragraph(
            f"On the way, gates switched {switches:,} times in all ({switches / samples:,.0f} per "
            "sample). Each switch changes the rule of the game a little; the energy falls all the "
            "same.",
        )
    gap = analysis.gap
    body += figure(
        lambda theme: relaxation_figure(flow.times, flow.energy, rate=gap, theme=theme),
        f"Energy against time on a logarithmic axis, falling from {number(first)} to "
        f"{number(last)}.",
        "A straight line on this axis is a constant rate of decay. The dashed line has the slope "
        "that the median smallest eigenvalue of the section before predicts for late times; it is "
        "drawn through the end of the median curve, so compare slopes, not heights.",
    )
    if not flow.outcome.ok and float(flow.energy[-1].max()) > 1e-12 * max(first, 1e-300):
        body += paragraph(f"The relaxation was cut short ({flow.outcome.value}).")
    return Section("relaxation", TITLE, body)
