"""The Laplacian's eigenvalues over the samples, and the vertices where the extreme ones live."""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter, PercentFormatter
from torch import Tensor

from torchsheaf.figures.style import LIGHT, Theme, new_figure, shorten
from torchsheaf.harmonic import Spectrum


def eigenvalue_figure(smallest: Spectrum, largest: Spectrum, *, theme: Theme = LIGHT) -> Figure:
    """Every sample's smallest and largest eigenvalues on a log axis, one dot per sample.

    Dots are spread vertically in order of the sample, so that equal values stay visible.
    """
    with theme.applied():
        figure = new_figure(1.9)
        axes = figure.add_subplot()
        rows = (("smallest", smallest, theme.accent), ("largest", largest, theme.contrast))
        for row, (_, found, colour) in enumerate(rows):
            values = found.values[:, 0].double().cpu().numpy()
            n = len(values)
            height = [row + 0.32 * (2 * (i * 0.618 % 1) - 1) for i in range(n)]
            axes.plot(values, height, "o", color=colour, markersize=3.6, alpha=0.65, mew=0)
            middle = float(found.values[:, 0].median())
            axes.plot([middle, middle], [row - 0.4, row + 0.4], color=theme.ink, linewidth=1.6)
            axes.annotate(
                f"median {middle:.3g}", (middle, row + 0.4), xytext=(0, 1),
                textcoords="offset points", fontsize=8.5, ha="center", va="bottom",
            )  # fmt: skip
        axes.set_xscale("log")
        axes.set_yticks([0, 1], ["smallest\n(slowest to settle)", "largest\n(fastest)"])
        axes.set_ylim(-0.6, 1.85)
        axes.set_xlabel("eigenvalue of the Laplacian (per unit of time); one dot per sample")
        axes.grid(axis="x")
        axes.margins(x=0.12)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
    return figure


def eigenvector_figure(
    smallest: Spectrum,
    largest: Spectrum,
    kinds: Mapping[str, str],
    *,
    theme: Theme = LIGHT,
) -> Figure:
    """Where the slowest and the fastest mode live: each vertex's share of the eigenvector.

    Bars are the mean over samples, lines the range from the 10th to the 90th percentile. `kinds`
    gives the kind of each vertex, for colour.
    """
    names = list(smallest.block_energy())
    with theme.applied():
        figure = new_figure(0.95 + 0.235 * len(names))
        left, right = figure.subplots(1, 2, sharey=True)
        for axes, found, title in (
            (left, smallest, "slowest mode"),
            (right, largest, "fastest mode"),
        ):
            _bars(axes, names, [found.block_energy()[n] for n in names], kinds, theme)
            axes.set_title(title)
        left.set_yticks(range(len(names)), [shorten(n) for n in names])
        left.invert_yaxis()
        figure.supxlabel("share of the mode on each vertex", fontsize=9.5)
    return figure


def _bars(
    axes: Axes, names: Sequence[str], shares: Sequence[Tensor], kinds: Mapping[str, str],
    theme: Theme,
) -> None:  # fmt: skip
    for i, (name, share) in enumerate(zip(names, shares, strict=True)):
        values = share.double().cpu()
        axes.barh(i, float(values.mean()), color=theme.kind(kinds[name]), height=0.66)
        low, high = (float(values.quantile(q)) for q in (0.1, 0.9))
        axes.plot([low, high], [i, i], color=theme.ink, linewidth=1.0, alpha=0.7)
    axes.set_xlim(0, 1.02)
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
    axes.grid(axis="x")
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
