"""Discord per edge as bars, in the order of the computation."""

from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter

from torchsheaf.diagnose import Discord
from torchsheaf.figures.style import LIGHT, Theme, new_figure, shorten


def discord_figure(table: Discord, *, theme: Theme = LIGHT) -> Figure:
    """Mean ‖r_e‖² per edge, with the 10th to 90th percentile over samples; colour is the kind.

    The share of the total stands beside each bar. A rule separates the layers.
    """
    edges, mean, share = table.edges, table.mean.double().cpu(), table.share.double().cpu()
    low, high = (table.values.double().cpu().quantile(q, 0) for q in (0.1, 0.9))
    with theme.applied():
        figure = new_figure(0.95 + 0.27 * len(edges))
        axes = figure.add_subplot()
        for i, edge in enumerate(edges):
            axes.barh(i, float(mean[i]), color=theme.kind(edge.kind), height=0.66)
            axes.plot([float(low[i]), float(high[i])], [i, i], color=theme.ink, lw=1.0, alpha=0.7)
            end = max(float(high[i]), float(mean[i]))
            axes.annotate(
                f"{float(share[i]):.0%}", (end, i), xytext=(5, 0), textcoords="offset points",
                va="center", fontsize=8.5,
            )  # fmt: skip
            if i and edge.layer != edges[i - 1].layer:
                axes.axhline(i - 0.5, color=theme.grid, linewidth=0.9, zorder=0)
        labels = [f"{shorten(e.name)}  ({e.op})" for e in edges]
        axes.set_yticks(range(len(edges)), labels)
        axes.invert_yaxis()
        top = max(float(high.max()), float(mean.max()))
        axes.set_xlim(0, 1.12 * top if top > 0 else 1)
        axes.set_xlabel("discord ‖r‖² per sample: bar = mean, line = middle 80% of samples")
        axes.grid(axis="x")
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:.4g}"))
        kinds = list(dict.fromkeys(e.kind for e in edges))
        figure.legend(
            handles=[Patch(color=theme.kind(k), label=k) for k in kinds],
            loc="outside upper left", ncols=len(kinds), handlelength=1.0,
        )  # fmt: skip
    return figure
