"""A counterfactual: how far each vertex moves when coordinates are pinned, beside patching."""

from matplotlib.figure import Figure
from torch import Tensor

from torchsheaf.figures.style import LIGHT, Theme, new_figure, shorten
from torchsheaf.harmonic import Counterfactual


def pin_figure(found: Counterfactual, *, sample: int | None = None, theme: Theme = LIGHT) -> Figure:
    """One column per vertex in topological order, upstream to the left of the pinned ones.

    Upper bars: change from the forward pass in the equilibrium with the pins. Lower bars: change
    when the same values are patched in. Mean over the samples, or one `sample`. In the spirit of
    Bosca & Ghrist 2026, Fig. 3: a pin acts in both directions, a patch in one.
    """
    rows = found.changes

    def level(values: Tensor) -> float:
        return float(values.mean() if sample is None else values[sample])

    pinned = [level(r.pinned) for r in rows]
    patched = [level(r.patched) for r in rows]
    with theme.applied():
        figure = new_figure(3.1)
        axes = figure.add_subplot()
        colours = {
            "upstream": theme.contrast, "pinned": theme.kind("pin"),
            "downstream": theme.accent, "beside": theme.muted,
        }  # fmt: skip
        places = range(len(rows))
        axes.bar(places, pinned, color=[colours[r.side] for r in rows], width=0.7)
        axes.bar(
            places, [-v for v in patched], width=0.7, fill=False, linewidth=1.2,
            edgecolor=[colours[r.side] for r in rows],
        )  # fmt: skip
        axes.axhline(0, color=theme.ink, linewidth=0.8)
        for i, row in enumerate(rows):
            if row.side == "pinned":
                axes.annotate(
                    "pin", (i, pinned[i]), xytext=(0, 3), textcoords="offset points",
                    ha="center", va="bottom", fontsize=8.5,
                )  # fmt: skip
        axes.set_xticks(
            list(places), [shorten(r.vertex, 14) for r in rows], rotation=30, ha="right"
        )
        axes.yaxis.set_major_formatter(lambda v, _: f"{abs(v):g}")
        axes.set_ylabel("patched ↓   change ‖Δc‖   ↑ pinned")
        price = level(found.price)
        axes.set_title(f"Pinned (filled) moves both sides, patched (hollow) one; price {price:.3g}")
        axes.margins(y=0.15)
    return figure
