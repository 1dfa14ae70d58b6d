"""The cells of a sheaf, drawn: vertices in the order of computation, edges as arrows."""

from collections.abc import Iterable
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch

from torchsheaf.figures.style import LIGHT, Theme, new_figure, shorten
from torchsheaf.sheaf import Sheaf

ROW = 0.42
"""Inches per vertex."""
COLUMN = 2.4
"""Inches per column."""
ROWS = 14
"""Vertices per column before the drawing continues in the next one."""
NAMES = {
    "input": "input (held)",
    "affine": "affine",
    "gate": "gate",
    "join": "join",
    "smooth": "smooth",
}


@dataclass(frozen=True)
class _Place:
    column: int
    row: int

    @property
    def xy(self) -> tuple[float, float]:
        """Inches from the top left corner."""
        return COLUMN * self.column + 0.55, -ROW * self.row


def graph_figure(sheaf: Sheaf, *, theme: Theme = LIGHT) -> Figure:
    """The computation graph: one mark per vertex, one arrow per (parent, head) incidence.

    Circles carry values; a square is a product vertex, the value of a join, whose one edge is
    incident to all its parents. Colour is the kind of the edge that computes the vertex. Each
    vertex is labelled with its name, operation and shape. Readable for up to about 40 vertices;
    long graphs continue in further columns, at whose head the vertices that are still needed
    from the columns before stand again, hollow.
    """
    places, again = _layout(sheaf)
    columns = 1 + max(p.column for p in places.values())
    rows = 1 + max(p.row for p in places.values())
    kinds = ["input", *dict.fromkeys(str(e.kind) for e in sheaf.edges.values())]
    with theme.applied():
        height = ROW * rows + 0.1
        legend_rows = -(-len(kinds) // (2 * columns))
        figure = new_figure(height + 0.22 * legend_rows, COLUMN * columns)
        axes = figure.add_subplot()
        for edge in sheaf.edges.values():
            end = places[edge.head]
            for parent in edge.parents:
                start = again.get((parent, end.column), places[parent])
                _arrow(axes, start, end, theme.kind(str(edge.kind)))
        for name, place in places.items():
            _vertex(axes, sheaf, name, place, theme)
        for (name, _), place in again.items():
            _repeated(axes, sheaf, name, place, theme)
        _legend(figure, kinds, theme, 2 * columns)
        # One data unit is about one inch, so that arcs and labels keep their proportions.
        axes.set_xlim(0, COLUMN * columns)
        axes.set_ylim(-height + 0.27, 0.27)
        axes.set_axis_off()
    return figure


def _layout(sheaf: Sheaf) -> tuple[dict[str, _Place], dict[tuple[str, int], _Place]]:
    """Places of the vertices, and of those that stand again at the head of a later column."""
    names = list(sheaf.vertices)
    columns = max(1, -(-len(names) // ROWS))
    length = -(-len(names) // columns)
    places: dict[str, _Place] = {}
    again: dict[tuple[str, int], _Place] = {}
    for column in range(columns):
        own = names[column * length : (column + 1) * length]
        edges = [sheaf.edges[n] for n in own if n in sheaf.edges]
        outside = sorted({p for e in edges for p in e.parents if p not in own}, key=names.index)
        for row, name in enumerate(outside):
            again[name, column] = _Place(column, row)
        for row, name in enumerate(own):
            places[name] = _Place(column, row + len(outside))
    return places, again


def _arrow(axes: Axes, start: _Place, end: _Place, colour: str) -> None:
    """Straight to the next row, an arc on the left past others."""
    rows = end.row - start.row
    # The bulge is about a third of an inch whatever the distance.
    bend = 0.0 if rows == 1 else min(0.6, 0.66 / (ROW * rows))
    axes.add_patch(
        FancyArrowPatch(
            start.xy, end.xy, connectionstyle=f"arc3,rad={bend:.3f}", arrowstyle="-|>",
            mutation_scale=8, shrinkA=7, shrinkB=7, color=colour, linewidth=1.2, zorder=1,
        )
    )  # fmt: skip


def _mark(sheaf: Sheaf, name: str, theme: Theme) -> tuple[str, str]:
    """Marker and colour of a vertex."""
    edge = sheaf.edges.get(name)
    if edge is None:
        return "o", theme.kind("input")
    return "s" if len(edge.parents) > 1 else "o", theme.kind(str(edge.kind))


def _repeated(axes: Axes, sheaf: Sheaf, name: str, place: _Place, theme: Theme) -> None:
    marker, colour = _mark(sheaf, name, theme)
    axes.plot(
        *place.xy, marker, markersize=8, markerfacecolor="none", markeredgecolor=colour,
        markeredgewidth=1.4, zorder=3,
    )  # fmt: skip
    axes.annotate(
        f"{shorten(name, 20)}, again", place.xy, xytext=(11, 0), textcoords="offset points",
        va="center", ha="left", fontsize=8.5, color=theme.muted,
    )  # fmt: skip


def _vertex(axes: Axes, sheaf: Sheaf, name: str, place: _Place, theme: Theme) -> None:
    vertex = sheaf.vertices[name]
    marker, colour = _mark(sheaf, name, theme)
    axes.plot(
        *place.xy, marker, markersize=8.5, color=colour,
        markeredgecolor=theme.ink if name in sheaf.outputs or vertex.is_input else "none",
        markeredgewidth=1.4, zorder=3,
    )  # fmt: skip
    shape = "×".join(map(str, vertex.shape)) or "1"
    role = "given" if vertex.is_input else sheaf.edges[name].operation
    if name in sheaf.outputs:
        role += ", output"
    axes.annotate(
        shorten(name, 20), place.xy, xytext=(11, 1), textcoords="offset points",
        va="bottom", ha="left", fontsize=9, fontweight="bold",
    )  # fmt: skip
    axes.annotate(
        f"{shorten(role, 22)} · {shape}", place.xy, xytext=(11, -1),
        textcoords="offset points", va="top", ha="left", fontsize=7.8, color=theme.muted,
    )  # fmt: skip


def _legend(figure: Figure, kinds: Iterable[str], theme: Theme, columns: int) -> None:
    handles = [
        Line2D(
            [], [], marker="s" if kind == "join" else "o", linestyle="none", markersize=7,
            color=theme.kind(kind), label=NAMES.get(kind, kind),
        )
        for kind in kinds
    ]  # fmt: skip
    figure.legend(
        handles=handles, loc="outside upper left", ncols=columns, handletextpad=0.1,
        columnspacing=0.8,
    )  # fmt: skip
