"""Energy against time: a relaxation on a log axis."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from torchsheaf.figures.style import LIGHT, Theme, new_figure

FLOOR = 1e-32
"""Energies below this are rounding and are not drawn on a log axis."""


def drawable(energy: np.ndarray) -> np.ndarray:
    """Energies for a log axis: NaN where they are rounding."""
    return np.where(energy > FLOOR, energy, np.nan)


def draw_energies(axes: Axes, t: np.ndarray, energy: np.ndarray, theme: Theme) -> None:
    """E(t) of every sample, thin, and the median sample, bold; `energy` (T, batch)."""
    axes.plot(t, drawable(energy), color=theme.accent, linewidth=0.7, alpha=0.35)
    axes.plot([], [], color=theme.accent, linewidth=0.7, alpha=0.5, label="each sample")
    median = drawable(np.median(energy, 1))
    axes.plot(t, median, color=theme.accent, linewidth=2.2, label="median sample")


def relaxation_figure(
    times: Tensor, energy: Tensor, *, rate: float | None = None, theme: Theme = LIGHT
) -> Figure:
    """E(t) of every sample (thin) and its median (bold); `times` (T,), `energy` (T, batch).

    `rate` draws the decay e^{−2·rate·t} that the smallest eigenvalue predicts for late times,
    through the last point of the median.
    """
    t = times.double().cpu().numpy()
    e = energy.double().cpu().numpy()
    with theme.applied():
        figure = new_figure(3.1)
        axes = figure.add_subplot()
        draw_energies(axes, t, e, theme)
        if rate is not None and rate > 0:
            late = np.median(e[-1]) * np.exp(2 * rate * (t[-1] - t))
            late = drawable(np.where(late <= 3 * e.max(), late, np.nan))
            axes.plot(
                t, late, color=theme.contrast, linewidth=1.5, dashes=(4, 2),
                label="predicted late slope, from the smallest eigenvalue",
            )  # fmt: skip
        axes.set_yscale("log")
        axes.set_xlabel("time (in units of 1/α)")
        axes.set_ylabel("energy E = ½ Σ ‖r‖²")
        axes.grid(axis="y")
        axes.margins(x=0.01)
        figure.legend(loc="outside upper left", ncols=3)
    return figure
