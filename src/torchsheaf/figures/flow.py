"""A flow in pictures: energy, its shares, activation bands, phase plane, output, animation."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.animation import FuncAnimation, PillowWriter
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, to_hex, to_rgb
from matplotlib.figure import Figure
from torch import Tensor

from torchsheaf.diagnose.discord import discord_edges
from torchsheaf.figures.relaxation import FLOOR, draw_energies, drawable
from torchsheaf.figures.style import LIGHT, Theme, new_figure, shorten
from torchsheaf.file import write_file
from torchsheaf.flow import Trajectory

MAX_BANDS = 40
"""Rows of a band picture."""


def _array(t: Tensor) -> np.ndarray:
    return t.detach().double().cpu().numpy()


def _recorded(flow: Trajectory, name: str) -> np.ndarray:
    """All coordinates of a vertex at the recorded times, `(T, batch, dim)`."""
    vertex = flow.problem.sheaf.vertices[name]
    kept = flow.states.get(name)
    if kept is None or kept.shape[2:] != vertex.shape:
        raise ValueError(
            f'{name!r} was not recorded, or not all of it; pass record="states" or ["{name}"]'
        )
    return _array(kept).reshape(*kept.shape[:2], vertex.dim)


def _last_move(flow: Trajectory) -> float:
    """Where a linear time axis may end: every sample stands, or the record does."""
    end = float(flow.times[-1])
    stop = float(flow.stopped.max())
    return min(end, stop) if stop > 0 else end


def _time_axis(axes: Axes, flow: Trajectory) -> None:
    axes.set_xlim(0, _last_move(flow))
    axes.set_xlabel("time (in units of 1/α)" if flow.alpha == 1 else "time")


def flow_energy_figure(
    flow: Trajectory, sample: int | None = None, *, theme: Theme = LIGHT
) -> Figure:
    """E(t) on a log axis: one sample with its switches marked, or all samples and their median."""
    t, e = _array(flow.times), _array(flow.energy)
    with theme.applied():
        figure = new_figure(3.1)
        axes = figure.add_subplot()
        if sample is None:
            draw_energies(axes, t, e, theme)
        else:
            one = drawable(e[:, sample])
            axes.plot(t, one, color=theme.accent, linewidth=2, label=f"sample {sample}")
            _mark_switches(axes, flow, sample, theme)
        axes.set_yscale("log")
        axes.set_ylabel("energy E = ½ Σ w ‖r‖²")
        _time_axis(axes, flow)
        axes.grid(axis="y")
        figure.legend(loc="outside upper left", ncols=3)
    return figure


def _mark_switches(axes: Axes, flow: Trajectory, sample: int, theme: Theme) -> None:
    times = _array(flow.events.of_sample(sample).time)
    for i, time in enumerate(times):
        axes.axvline(
            time, color=theme.contrast, linewidth=0.8, alpha=0.7,
            label="a gate switches" if i == 0 else None,
        )  # fmt: skip


def energy_shares_figure(
    flow: Trajectory, by: str = "kind", sample: int | None = None, *, theme: Theme = LIGHT
) -> Figure:
    """Where the energy sits over time, on a log axis: added up by "kind" of edge or by "layer".

    A layer is a step with parameters and what follows it, as in `Discord.by_layer`. One sample, or
    the mean over samples.
    """
    if by not in ("kind", "layer"):
        raise ValueError(f'by is {by!r}; write "kind" or "layer"')
    groups: dict[str, np.ndarray] = {}
    for row in discord_edges(flow.problem):
        table = _array(flow.edge_energy[row.name])
        value = table.mean(1) if sample is None else table[:, sample]
        label = row.kind if by == "kind" else row.layer
        groups[label] = groups.get(label, 0) + value
    colours = [colour for kind, colour in theme.kinds.items() if kind != "input"]
    dashes = ["-", "--", ":", "-."]
    with theme.applied():
        figure = new_figure(3.3)
        axes = figure.add_subplot()
        for i, (label, value) in enumerate(groups.items()):
            turn, place = divmod(i, len(colours))
            axes.plot(
                _array(flow.times), drawable(value), dashes[turn % len(dashes)],
                color=theme.kind(label) if by == "kind" else colours[place],
                label=shorten(label),
            )  # fmt: skip
        axes.set_yscale("log")
        axes.set_ylabel("energy on edges")
        _time_axis(axes, flow)
        axes.grid(axis="y")
        figure.legend(loc="outside upper left", ncols=4)
    return figure


def pattern_bands_figure(flow: Trajectory, sample: int = 0, *, theme: Theme = LIGHT) -> Figure:
    """The activation pattern over time: one row per gate that switches (all of them where few),
    off, sliding or on; for gates with several pieces, darker is higher."""
    starts, states = flow.states_of_walls(sample)
    walls = flow.events.walls
    switching = [w for w in range(len(walls)) if len(set(states[:, w].tolist())) > 1]
    rows = (list(range(len(walls))) if len(walls) <= MAX_BANDS else switching)[:MAX_BANDS]
    if not rows:
        rows = list(range(min(len(walls), MAX_BANDS)))
    edges = np.append(_array(starts), max(_last_move(flow), float(starts[-1]) * 1.02))
    table = states[:, rows].T.numpy()
    top = 2 * walls.thresholds.shape[1]
    colours = _band_colours(theme, top)
    with theme.applied():
        figure = new_figure(0.9 + 0.2 * len(rows))
        axes = figure.add_subplot()
        axes.pcolormesh(
            edges, np.arange(len(rows) + 1), table, cmap=ListedColormap(colours), vmin=-0.5,
            vmax=top + 0.5, edgecolor="none",
        )  # fmt: skip
        axes.set_yticks(
            np.arange(len(rows)) + 0.5,
            [f"{shorten(walls.vertices[w], 14)} [{int(walls.neurons[w])}]" for w in rows],
            fontsize=7,
        )
        axes.invert_yaxis()
        _time_axis(axes, flow)
        names = ("off", "sliding", "on") if top == 2 else ("lowest piece", "…", "highest piece")
        ends = (colours[0], colours[1], colours[-1])
        for colour, name in zip(ends, names, strict=True):
            axes.fill_between([], [], color=colour, label=name)
        figure.legend(loc="outside upper left", ncols=3)
    return figure


def _band_colours(theme: Theme, top: int) -> list[str]:
    pieces = [theme.grid, theme.accent]
    if top == 2:
        return [pieces[0], theme.contrast, pieces[1]]
    blend = np.linspace(0.15, 1, top // 2 + 1)
    low, high = np.array(to_rgb(theme.grid)), np.array(to_rgb(theme.accent))
    shades = [to_hex((1 - b) * low + b * high) for b in blend]
    return [shades[k // 2] if k % 2 == 0 else theme.contrast for k in range(top + 1)]


def phase_plane_figure(
    flow: Trajectory, vertex: str, neurons: tuple[int, int] = (0, 1), *, theme: Theme = LIGHT
) -> Figure:
    """Trajectories of two coordinates of a vertex, with the walls of their gates.

    Raises ValueError without `record="states"` or a record of that vertex, all of it.
    """
    vertex = flow.problem.sheaf.vertex(vertex)
    i, j = neurons
    path = _recorded(flow, vertex)
    with theme.applied():
        figure = new_figure(3.9)
        axes = figure.add_subplot()
        for place, line in ((i, axes.axvline), (j, axes.axhline)):
            for w, (name, neuron) in enumerate(
                zip(flow.events.walls.vertices, flow.events.walls.neurons.tolist(), strict=True)
            ):
                if (name, neuron) == (vertex, place):
                    for at in flow.events.walls.thresholds[w].tolist():
                        line(at, color=theme.contrast, linewidth=1, dashes=(4, 2))
        axes.plot(path[:, :, i], path[:, :, j], color=theme.accent, linewidth=1.2, alpha=0.8)
        axes.plot(path[0, :, i], path[0, :, j], "o", ms=4, color=theme.muted, label="start")
        axes.plot(path[-1, :, i], path[-1, :, j], "o", ms=5, color=theme.accent, label="end")
        axes.plot([], [], color=theme.contrast, dashes=(4, 2), label="walls")
        axes.set_xlabel(f"{vertex} [{i}]")
        axes.set_ylabel(f"{vertex} [{j}]")
        figure.legend(loc="outside upper left", ncols=3)
    return figure


def output_figure(
    flow: Trajectory, target: Tensor | None = None, sample: int = 0, *, theme: Theme = LIGHT
) -> Figure:
    """The output stalk of a sample over time; `target` (outputs,), say the forward pass, dashed.

    Raises ValueError without a record of the output vertex, all of it.
    """
    name = flow.problem.sheaf.outputs[0]
    path = _recorded(flow, name)[:, sample]
    with theme.applied():
        figure = new_figure(3.1)
        axes = figure.add_subplot()
        lines = axes.plot(_array(flow.times), path, linewidth=1.8)
        for k, line in enumerate(lines):
            line.set_label(f"{name} [{k}]" if k < 6 else None)
        if target is not None:
            for line, value in zip(lines, _array(target).ravel(), strict=True):
                axes.axhline(value, color=line.get_color(), linewidth=0.9, dashes=(4, 2))
            axes.plot([], [], color=theme.muted, dashes=(4, 2), label="forward pass")
        _mark_switches(axes, flow, sample, theme)
        axes.set_ylabel("output stalk")
        _time_axis(axes, flow)
        axes.grid(axis="y")
        figure.legend(loc="outside upper left", ncols=4)
    return figure


def flow_animation(
    flow: Trajectory,
    path: str | Path,
    sample: int = 0,
    *,
    goal: Mapping[str, Tensor] | None = None,
    frames: int = 60,
    theme: Theme = LIGHT,
) -> Path:
    """Write a GIF of one sample's cochain relaxing along the graph.

    One column per vertex in topological order, one dot per coordinate; `goal` (a cochain, say the
    forward pass) as hollow marks; below, the energy on every edge. Needs `record="states"`.
    Raises ValueError without it, and for a name that does not end in .gif.
    """
    if Path(path).suffix != ".gif":
        raise ValueError(f"path is {str(path)!r}; write a name that ends in .gif")
    names = list(flow.problem.sheaf.vertices)
    values = [_recorded(flow, n)[:, sample] for n in names]
    rows = np.unique(np.linspace(0, flow.times.numel() - 1, frames).round().astype(int))
    x = np.concatenate([_spread(k, v.shape[1]) for k, v in enumerate(values)])
    y = np.concatenate(values, 1)
    edges = [n for n in flow.edge_energy if n in names]
    parts = np.stack([_array(flow.edge_energy[n])[:, sample] for n in edges], 1).clip(FLOOR)
    with theme.applied():
        figure = new_figure(4.2)
        figure.patch.set_facecolor(theme.paper)
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        if goal is not None:
            end = np.concatenate([_array(goal[n][sample]).ravel() for n in names])
            above.plot(x, end, "o", ms=7, mfc="none", mec=theme.contrast, label="goal")
        (dots,) = above.plot(x, y[0], "o", ms=4, color=theme.accent, label="cochain")
        bars = below.bar(
            [names.index(n) for n in edges], parts[0], width=0.5,
            color=[theme.kind(str(flow.problem.sheaf.edges[n].kind)) for n in edges],
        )  # fmt: skip
        above.set_ylim(y.min() - 0.3, y.max() + 0.3)
        below.set_yscale("log")
        below.set_ylim(max(FLOOR, parts.max() * 1e-12), parts.max() * 2)
        below.set_ylabel("edge energy")
        below.set_xticks(range(len(names)), [shorten(n, 10) for n in names])
        title = above.set_title("t = 0")
        above.legend(loc="upper right")

        def draw(row: int) -> list[Artist]:
            dots.set_ydata(y[row])
            for bar, height in zip(bars, parts[row], strict=True):
                bar.set_height(height)
            title.set_text(f"t = {float(flow.times[row]):.2f}")
            return [dots, *bars, title]

    # Saved outside the theme: frames need an opaque ground, and log ticks their mathematics.
    movie = FuncAnimation(figure, draw, frames=rows.tolist())
    paper = {"facecolor": theme.paper}
    write_file(
        path, lambda part: movie.save(part, PillowWriter(fps=12), dpi=90, savefig_kwargs=paper)
    )
    return Path(path)


def _spread(column: int, count: int) -> np.ndarray:
    """Abscissae of a stalk's dots around its column."""
    return column + (np.linspace(-0.25, 0.25, count) if count > 1 else np.zeros(1))
