"""Samples shown as what they are: pictures where they are pictures, bars where they are vectors."""

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from torchsheaf.figures.style import LIGHT, Theme, new_figure

PER_ROW = 6


def image_shape(shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """(H, W) or (H, W, 3) when a sample of this shape can be shown as a picture, else None.

    A picture is (H, W), (1, H, W), (3, H, W), or a vector whose length is a square of a side from
    6 to 64 (8×8 digits flattened, say).
    """
    if len(shape) == 3 and shape[0] in (1, 3) and min(shape[1:]) >= 4:
        return (*shape[1:], 3) if shape[0] == 3 else tuple(shape[1:])
    if len(shape) == 2 and min(shape) >= 4:
        return tuple(shape)
    side = math.isqrt(shape[0]) if len(shape) == 1 else 0
    if len(shape) == 1 and 6 <= side <= 64 and side * side == shape[0]:
        return (side, side)
    return None


def as_picture(sample: Tensor) -> Tensor | None:
    """A sample as float64 pixels (H, W) or (H, W, 3) on the CPU; None where it is no picture."""
    shape = image_shape(tuple(sample.shape))
    if shape is None:
        return None
    values = sample.detach().double().cpu()
    return values.permute(1, 2, 0) if len(shape) == 3 else values.reshape(shape)


def samples_figure(
    x: Tensor,
    captions: Sequence[str],
    *,
    marked: Sequence[bool] | None = None,
    theme: Theme = LIGHT,
) -> Figure:
    """A grid of samples `(n, *shape)` with a caption each; `marked` ones get a coloured frame.

    Grey values are scaled over all samples shown, so that they compare.
    """
    n = len(captions)
    rows = max(1, -(-n // PER_ROW))
    lines = max((c.count("\n") for c in captions), default=0) + 1
    with theme.applied():
        figure = new_figure(rows * (1.12 + 0.16 * lines))
        grid = figure.subplots(rows, PER_ROW, squeeze=False)
        for i, axes in enumerate(grid.flat):
            if i >= n:
                axes.set_axis_off()
                continue
            _draw(axes, x[i], x, theme)
            axes.set_title(captions[i], fontsize=8.2, fontweight="normal", loc="center", pad=4)
            if marked is not None and marked[i]:
                for spine in axes.spines.values():
                    spine.set(visible=True, color=theme.contrast, linewidth=2.2)
    return figure


def sample_picture(sample: Tensor, every: Tensor) -> Figure | None:
    """One sample as a bare picture, grey values scaled over `every`; None if it is no picture.

    The pixels are whole multiples of the sample's own, so that small images stay sharp.
    """
    shape = image_shape(tuple(sample.shape))
    if shape is None:
        return None
    zoom = max(1, round(144 / max(shape[:2])))
    figure = Figure(figsize=(zoom * shape[1] / 100, zoom * shape[0] / 100))
    axes = figure.add_axes((0, 0, 1, 1))
    _draw(axes, sample, every, LIGHT)
    axes.set_axis_off()
    return figure


def sample_bars(sample: Tensor, every: Tensor, *, theme: Theme = LIGHT) -> Figure:
    """One sample that is no picture: its numbers as bars, on the scale of `every`."""
    with theme.applied():
        figure = new_figure(1.5, 1.5)
        _draw(figure.add_subplot(), sample, every, theme)
    return figure


def _draw(axes: Axes, sample: Tensor, every: Tensor, theme: Theme) -> None:
    picture = as_picture(sample)
    axes.set_xticks([])
    axes.set_yticks([])
    low, high = float(every.min()), float(every.max())
    if picture is not None:
        scaled = (picture - low) / (high - low) if high > low else picture * 0
        axes.imshow(scaled.numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        for spine in axes.spines.values():
            spine.set_visible(False)
        return
    flat = sample.detach().double().cpu().flatten()
    axes.bar(range(len(flat)), flat.numpy(), color=theme.accent, width=0.9)
    axes.axhline(0, color=theme.muted, linewidth=0.8)
    axes.set_ylim(min(low, 0) - 1e-9, max(high, 0) + 1e-9)
    axes.spines["left"].set_visible(False)
    axes.spines["bottom"].set_visible(False)
