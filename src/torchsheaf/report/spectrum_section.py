"""How fast a disturbance settles, and where its slowest and fastest parts live."""

from matplotlib.figure import Figure

from torchsheaf.figures import Theme, eigenvalue_figure, eigenvector_figure
from torchsheaf.report.analysis import Analysis
from torchsheaf.report.headlines import half_life, home, typical
from torchsheaf.report.markup import figure, number, paragraph, percent
from torchsheaf.report.section import Section, absent

TITLE = "How it settles: the spectrum"


def spectrum_section(analysis: Analysis) -> Section:
    """Extreme eigenvalues of the Laplacian and the vertices of their eigenvectors."""
    low, high, gap = analysis.smallest, analysis.largest, analysis.gap
    if low is None or high is None or gap is None:
        return absent("spectrum", TITLE, analysis.missing["spectrum"])
    top = typical(high.values[:, 0])
    slow, fast = home(low), home(high)
    body = paragraph(
        "Disturb all values a little and let every step pull on its neighbours. The disturbance "
        "then fades as a mixture of patterns, each at a rate of its own. These rates are the "
        "eigenvalues of the sheaf's Laplacian.",
        f"Here the slowest rate is {number(gap)} and the fastest {number(top)} in the median over "
        f"{low.values.shape[0]} samples, a ratio of {number(top / gap)}.",
        f"At the slowest rate a disturbance halves every {number(half_life(gap))} units of time; "
        "its energy, which is quadratic, falls twice as fast.",
    )
    body += figure(
        lambda theme: eigenvalue_figure(low, high, theme=theme),
        f"Smallest eigenvalues around {number(gap)}, largest around {number(top)}, one dot per "
        "sample on a logarithmic axis.",
        "Each input switches other gates on and off, so each sample has its own spectrum. All "
        "values are positive: whatever the input, every disturbance fades.",
    )
    body += paragraph(
        f"The slowest pattern sits mostly on {slow[0]} ({percent(slow[1])} of it), the fastest on "
        f"{fast[0]} ({percent(fast[1])}). A vertex with a large share of the slowest pattern is "
        "where the network takes longest to make up its mind.",
    )
    kinds = {e.name: str(e.kind) for e in analysis.sheaf.edges.values()}

    def draw(theme: Theme) -> Figure:
        return eigenvector_figure(low, high, kinds, theme=theme)

    body += figure(
        draw,
        f"Share of the slowest and the fastest mode on each vertex; largest: {slow[0]} and "
        f"{fast[0]}.",
        "Bars: mean over samples. Lines: the middle 80% of samples. Colours: kind of the step, as "
        "in the graph above.",
    )
    return Section("spectrum", TITLE, body)
