"""A training run as its sheaf saw it: discord in space and time, and the running spectrum."""

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from torchsheaf.diagnose import Evolution
from torchsheaf.figures.style import LIGHT, Theme, new_figure, shorten


def evolution_heatmap(seen: Evolution, *, theme: Theme = LIGHT) -> Figure:
    """Space-time heat map: a row per edge and sample, a column per look, colour log discord.

    Samples are sorted within each edge by their last discord; edge names carry their kind's colour.
    """
    values = seen.discord.double().numpy()
    edges, samples, _ = values.shape
    floor = (float(values.max()) or 1.0) * 1e-10
    rows = [values[e][np.argsort(-values[e, :, -1])] for e in range(edges)]
    with theme.applied():
        figure = new_figure(1.2 + 0.42 * edges)
        axes = figure.add_subplot()
        shown = np.clip(np.concatenate(rows), floor, None)
        picture = axes.imshow(
            shown, aspect="auto", interpolation="nearest", cmap="magma",
            norm=LogNorm(floor, max(float(values.max()), 10 * floor)),
        )  # fmt: skip
        axes.set_yticks([(e + 0.5) * samples - 0.5 for e in range(edges)])
        axes.set_yticklabels([f"{shorten(edge.name)} ({edge.op})" for edge in seen.edges])
        for label, edge in zip(axes.get_yticklabels(), seen.edges, strict=True):
            label.set_color(theme.kind(edge.kind))
        for e in range(1, edges):
            axes.axhline(e * samples - 0.5, color=theme.paper, linewidth=1.2)
        looks = len(seen.steps)
        ticks = sorted({round(t) for t in np.linspace(0, looks - 1, min(6, looks))})
        axes.set_xticks(ticks, [str(seen.steps[t]) for t in ticks])
        axes.set_xlabel("epoch; within each edge one row per sample")
        figure.colorbar(picture, ax=axes, label="discord")
    return figure


def spectral_evolution_figure(seen: Evolution, *, theme: Theme = LIGHT) -> Figure:
    """λ₁ and λ_max over training: median and quartiles over samples, log axes."""
    with theme.applied():
        figure = new_figure(2.6)
        pair = figure.subplots(1, 2)
        for axes, values, name, colour in (
            (pair[0], seen.gap, "smallest eigenvalue (gap)", theme.accent),
            (pair[1], seen.top, "largest eigenvalue", theme.contrast),
        ):
            low, middle, high = values.double().numpy().T
            axes.fill_between(seen.steps, low, high, color=colour, alpha=0.25, linewidth=0)
            axes.plot(seen.steps, middle, color=colour)
            axes.set_yscale("log")
            axes.set_title(name)
            axes.set_xlabel("epoch")
            axes.grid(axis="y")
    return figure
