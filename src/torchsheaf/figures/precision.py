"""A precision plan, drawn: what every operation adds to the error and costs, and its format."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Patch

from torchsheaf.figures.style import LIGHT, Theme, new_figure, shorten
from torchsheaf.precision import FORMATS, Plan

# From the widest to the narrowest; the same hues in both themes.
COLOURS = {
    "fp64": "#7a5195",
    "fp32": "#0072b2",
    "tf32": "#56b4e9",
    "bf16": "#e69f00",
    "fp16": "#d55e00",
    "fp8_e4m3": "#009e73",
    "fp8_e5m2": "#66c2a5",
}
ROWS = 28
"""Operations per column before the drawing continues in the next one."""


def used_formats(plan: Plan) -> list[str]:
    """Formats of the plan, widest first."""
    used = set(plan.assignment.values())
    return [f for f in FORMATS if f in used]


def error_and_cost_figure(plan: Plan, *, top: int = 18, theme: Theme = LIGHT) -> Figure:
    """Two bars per operation: its share of the predicted output error, its share of the cost.

    The `top` operations by either share, in the order of execution; colour is the format.
    """
    shares = {s.operation: s.share for s in plan.blame()}
    cost = {v: plan.problem.cost[v][f] for v, f in plan.assignment.items()}
    whole = sum(cost.values()) or 1.0
    names = list(plan.assignment)
    weight = {v: max(shares[v], cost[v] / whole) for v in names}
    shown = set(sorted(names, key=lambda v: -weight[v])[:top])
    rows = [v for v in names if v in shown][::-1]
    with theme.applied():
        figure = new_figure(0.9 + 0.24 * max(3, len(rows)))
        left, right = figure.subplots(1, 2, sharey=True)
        colours = [COLOURS[plan.assignment[v]] for v in rows]
        _bars(left, rows, [shares[v] for v in rows], colours, "share of the output error", theme)
        _bars(right, rows, [cost[v] / whole for v in rows], colours, "share of the cost", theme)
        handles = [Patch(color=COLOURS[f], label=f) for f in used_formats(plan)]
        figure.legend(handles=handles, loc="outside lower center", ncols=max(1, len(handles)))
    return figure


def _bars(
    axes: Axes, names: Sequence[str], values: Sequence[float], colours: Sequence[str], title: str,
    theme: Theme,
) -> None:  # fmt: skip
    axes.barh(range(len(names)), values, color=colours, height=0.7)
    axes.set_yticks(range(len(names)), [shorten(n, 30) for n in names])
    axes.set_xlim(0, max([*values, 1e-12]) * 1.18)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:.0%}")
    axes.set_title(title)
    axes.grid(axis="x")
    for i, value in enumerate(values):
        axes.annotate(
            f"{value:.1%}", (value, i), xytext=(3, 0), textcoords="offset points", va="center",
            fontsize=7.5, color=theme.muted,
        )  # fmt: skip


def assignment_figure(plan: Plan, *, theme: Theme = LIGHT) -> Figure:
    """The assignment on the graph: one box per operation, coloured by format, arrows by dataflow.

    Operations stand in the order of execution, in columns of 28; an arrow between different
    formats is a cast and drawn strong. Arrows between columns are left out.
    """
    names = list(plan.assignment)
    place = {v: (i // ROWS, i % ROWS) for i, v in enumerate(names)}
    columns = 1 + (len(names) - 1) // ROWS if names else 1
    rows = min(len(names), ROWS) or 1
    with theme.applied():
        figure = new_figure(0.27 * rows + 0.7, max(3.6, 2.9 * columns))
        axes = figure.add_subplot()
        for e in plan.problem.casts:
            _arrow(axes, plan, place, e.source, e.consumer, theme)
        for v, (column, row) in place.items():
            form = plan.assignment[v]
            axes.text(
                3.0 * column, -row, form, ha="center", va="center", fontsize=7, color="white",
                bbox={"boxstyle": "round,pad=0.25", "facecolor": COLOURS[form], "linewidth": 0},
            )  # fmt: skip
            axes.text(3.0 * column + 0.42, -row, shorten(v, 30), va="center", fontsize=7.5)
        axes.set_xlim(-0.9, 3.0 * columns - 0.4)
        axes.set_ylim(-rows + 0.4, 0.7)
        axes.set_axis_off()
        handles = [Patch(color=COLOURS[f], label=f) for f in used_formats(plan)]
        if handles:
            figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return figure


def _arrow(
    axes: Axes, plan: Plan, place: dict[str, tuple[int, int]], source: str, consumer: str,
    theme: Theme,
) -> None:  # fmt: skip
    if source not in place or consumer not in place or place[source][0] != place[consumer][0]:
        return
    (column, start), (_, end) = place[source], place[consumer]
    cast = plan.assignment[source] != plan.assignment[consumer]
    bend = 0.0 if end - start == 1 else min(0.35, 1.4 / (end - start))
    x = 3.0 * column - (0.3 if bend else 0.0)
    axes.add_patch(
        FancyArrowPatch(
            (x, -start),
            (x, -end),
            connectionstyle=f"arc3,rad={bend}",
            arrowstyle="-|>",
            mutation_scale=7,
            shrinkA=7,
            shrinkB=7,
            linewidth=1.5 if cast else 0.8,
            color=theme.contrast if cast else theme.muted,
            zorder=0,
        )
    )
