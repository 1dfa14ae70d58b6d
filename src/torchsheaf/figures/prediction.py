"""What each step predicts against what stands there, coordinate by coordinate."""

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from torchsheaf.diagnose import Prediction
from torchsheaf.figures.style import LIGHT, Theme, new_figure, shorten


def prediction_figure(seen: Prediction, *, theme: Theme = LIGHT) -> Figure:
    """Left: prediction f(c_parent) against the actual value, with the identity. Right: residual.

    For a gate edge both are drawn over its input, so that its curve appears. Inactive coordinates
    (negative input of a gate, negative value of another edge) have the muted colour.
    """
    with theme.applied():
        figure = new_figure(2.9)
        left, right = figure.subplots(1, 2)
        gate = seen.kind == "gate" and seen.input is not None
        across = seen.input if gate and seen.input is not None else seen.actual
        active = across >= 0
        _points(left, across if gate else seen.predicted, seen.actual, active, theme)
        low, high = float(across.min()), float(across.max())
        if gate:
            order = across.flatten().argsort()
            x, y = (t.flatten()[order].double().cpu().numpy() for t in (across, seen.predicted))
            left.plot(x, y, color=theme.ink, linewidth=0.9)
        else:
            left.plot([low, high], [low, high], color=theme.ink, linewidth=0.9)
        left.set_title(f"{shorten(seen.edge)}: predicted and actual")
        left.set_xlabel("input of the gate" if gate else "predicted by the step")
        left.set_ylabel("actual value")
        _points(right, across, seen.predicted - seen.actual, active, theme)
        right.axhline(0, color=theme.ink, linewidth=0.9)
        right.set_title("predicted − actual")
        right.set_xlabel("input of the gate" if gate else "actual value")
    return figure


def _points(
    axes: Axes, x: torch.Tensor, y: torch.Tensor, active: torch.Tensor, theme: Theme
) -> None:
    for chosen, colour, label in (
        (active, theme.accent, "active"),
        (~active, theme.muted, "inactive"),
    ):
        axes.plot(
            x[chosen].double().cpu().numpy(), y[chosen].double().cpu().numpy(), "o",
            markersize=2.2, alpha=0.6, mew=0, color=colour, label=label,
        )  # fmt: skip
    axes.grid()
