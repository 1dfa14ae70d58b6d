"""The nearest consistent input, for inputs that are pictures."""

import math

from matplotlib.figure import Figure
from torch import Tensor

from torchsheaf.figures.style import LIGHT, Theme, new_figure
from torchsheaf.harmonic import Nearest


def nearest_figure(found: Nearest, *, count: int = 8, theme: Theme = LIGHT) -> Figure:
    """Rows: the reference, what must change, the changed input; one column per sample.

    Samples whose class was reached come first, by distance. Raises ValueError for inputs that
    are neither pictures nor square.
    """
    moved = found.reached & (found.distance > 0)
    order = found.distance.masked_fill(~moved, math.inf).argsort()[:count].tolist()
    with theme.applied():
        figure = new_figure(4.4)
        grid = figure.subplots(3, max(len(order), 1), squeeze=False)
        for column, sample in enumerate(order):
            before, after = _picture(found.reference[sample]), _picture(found.changed[sample])
            change = after - before
            top = float(change.abs().max()) or 1.0
            low, high = float(before.min()), float(before.max())
            shown = (
                (before, "gray_r", low, high), (change, "RdBu_r", -top, top),
                (after, "gray_r", low, high),
            )  # fmt: skip
            for row, (image, colours, least, most) in enumerate(shown):
                axes = grid[row][column]
                axes.imshow(image.cpu().numpy(), cmap=colours, vmin=least, vmax=most)
                axes.set_xticks([])
                axes.set_yticks([])
            title = f"says {int(found.wanted[sample])}\n‖Δ‖ {float(found.distance[sample]):.2f}"
            grid[2][column].set_xlabel(title, fontsize=8.5)
        for row, name in enumerate(("reference", "change", "changed")):
            grid[row][0].set_ylabel(name)
    return figure


def _picture(values: Tensor) -> Tensor:
    """The last two axes of a picture, or a flat square folded into one."""
    while values.ndim > 2:
        values = values[0]
    if values.ndim == 2:
        return values.detach()
    side = math.isqrt(values.numel())
    if side * side != values.numel():
        raise ValueError(f"the input has {values.numel()} entries and is no picture")
    return values.detach().reshape(side, side)
