"""What the pictures of a flow show, read back from their axes."""

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import torchsheaf as ts
from tests.reference.networks import randn, relu_mlp
from torchsheaf import figures


@pytest.fixture(scope="module")
def flow() -> ts.Trajectory:
    net, x = relu_mlp([2, 4, 3, 1], 1), randn(2, 5, 2)
    problem = ts.hold(ts.encode(net, x), x).pin(ts.Pin("output", 1.0, weight=0.5))
    generator = torch.Generator().manual_seed(3)
    return ts.heat_flow(problem, until=8.0, times=30, record="states", generator=generator)


def drawn(figure: Figure) -> dict[str, np.ndarray]:
    """The heights of the labelled lines of the only axes."""
    (axes,) = figure.axes
    return {str(line.get_label()): np.asarray(line.get_ydata()) for line in axes.lines}


@pytest.mark.parametrize("by", ["kind", "layer"])
@pytest.mark.parametrize("sample", [None, 2])
def test_energy_by_kind_and_by_layer_adds_up_the_edges(
    flow: ts.Trajectory, by: str, sample: int | None
) -> None:
    """Half the discord of the same group, at every recorded time; the pin's weight counts."""
    lines = drawn(figures.energy_shares_figure(flow, by, sample))
    for k in (0, 7, 29):
        at = ts.Cochain({name: states[k] for name, states in flow.states.items()})
        table = ts.discord(flow.problem, at)
        groups = table.by_kind if by == "kind" else table.by_layer
        assert set(lines) == set(groups)
        weight = torch.tensor([0.5 if e.kind == "pin" else 1.0 for e in table.edges])
        for name, edges in groups.items():
            rows = [getattr(e, by) == name for e in table.edges]
            value = 0.5 * (table.values * weight)[:, rows].sum(1)
            assert edges.shape == value.shape
            expected = value.mean() if sample is None else value[sample]
            assert lines[name][k] == pytest.approx(float(expected), rel=1e-9)


def switch_lines(axes: Axes) -> list[float]:
    """Where vertical lines stand."""
    ends = [np.asarray(line.get_xdata()).tolist() for line in axes.lines]
    return sorted(e[0] for e in ends if len(e) == 2 and e[0] == e[1])


def test_switches_stand_at_their_times_and_are_named(flow: ts.Trajectory) -> None:
    events = flow.events.of_sample(1)
    assert len(events) > 1
    pictures = figures.output_figure(flow, sample=1), figures.flow_energy_figure(flow, 1)
    for figure in pictures:
        assert switch_lines(figure.axes[0]) == pytest.approx(sorted(events.time.tolist()))
        (legend,) = figure.legends
        assert "a gate switches" in {t.get_text() for t in legend.get_texts()}


def test_the_phase_plane_has_both_walls_and_every_path(flow: ts.Trajectory) -> None:
    (axes,) = figures.phase_plane_figure(flow, "0", (1, 3)).axes
    paths = [line for line in axes.lines if len(np.asarray(line.get_xdata())) == 30]
    assert len(paths) == 5
    states = flow.states["0"][:, 4].numpy()
    assert np.array_equal(np.asarray(paths[4].get_xdata()), states[:, 1])
    assert np.array_equal(np.asarray(paths[4].get_ydata()), states[:, 3])
    across, up = axes.lines[1], axes.lines[0]
    assert np.asarray(up.get_xdata()).tolist() == [0, 0]
    assert np.asarray(across.get_ydata()).tolist() == [0, 0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("0 [1]", "0 [3]")
