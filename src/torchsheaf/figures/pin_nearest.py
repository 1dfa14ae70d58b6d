"""The nearest consistent input, for inputs that are pictures."""

import math

from matplotlib.figure import Figure

from torchsheaf.figures.samples import as_picture
from torchsheaf.figures.style import LIGHT, Theme, new_figure
from torchsheaf.harmonic import Nearest


def nearest_figure(found: Nearest, *, count: int = 8, theme: Theme = LIGHT) -> Figure:
    """Rows: the reference, what must change, the changed input; one column per sample.

    Samples whose class was reached come first, by distance. Of coloured pictures the change is
    that of brightness, the mean of the channels. Raises ValueError for inputs that are no pictures
    (see `torchsheaf.figures.samples.image_shape`).
    """
    moved = found.reached & (found.distance > 0)
    order = found.distance.masked_fill(~moved, math.inf).argsort()[:count].tolist()
    with theme.applied():
        figure = new_figure(4.4)
        grid = figure.subplots(3, max(len(order), 1), squeeze=False)
        for column, sample in enumerate(order):
            before, after = as_picture(found.reference[sample]), as_picture(found.changed[sample])
            if before is None or after is None:
                shape = tuple(found.reference.shape[1:])
                raise ValueError(f"the input has shape {shape} and is no picture")
            change = after - before
            change = change.mean(2) if change.ndim == 3 else change
            top = float(change.abs().max()) or 1.0
            low, span = before.min(), before.max() - before.min()
            before, after = (((t - low) / (span or 1)).clamp(0, 1) for t in (before, after))
            shown = (
                (before, "gray_r", 0, 1),
                (change, "RdBu_r", -top, top),
                (after, "gray_r", 0, 1),
            )
            for row, (image, colours, least, most) in enumerate(shown):
                axes = grid[row][column]
                axes.imshow(image.numpy(), cmap=colours, vmin=least, vmax=most)
                axes.set_xticks([])
                axes.set_yticks([])
            title = f"says {int(found.wanted[sample])}\n‖Δ‖ {float(found.distance[sample]):.2f}"
            grid[2][column].set_xlabel(title, fontsize=8.5)
        for row, name in enumerate(("reference", "change", "changed")):
            grid[row][0].set_ylabel(name)
    return figure
