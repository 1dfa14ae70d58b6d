"""Figures: a result in, a Figure out, nothing computed and nothing left behind."""

import ast
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import torchsheaf as ts
from torchsheaf import figures
from torchsheaf.figures.samples import image_shape
from torchsheaf.figures.style import shorten


class Residual(nn.Module):
    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)) for _ in range(blocks)
        )
        self.head_with_quite_a_long_name = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        return torch.softmax(self.head_with_quite_a_long_name(x), 1)


@pytest.fixture(scope="module")
def problem() -> ts.Problem:
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    return ts.hold(ts.encode(Residual(2), x), x)


def drawings(problem: ts.Problem) -> dict[str, Callable[[figures.Theme], Figure]]:
    low, high = (ts.spectrum(problem, which=w, throw=False) for w in ("smallest", "largest"))
    kinds = {e.name: str(e.kind) for e in problem.sheaf.edges.values()}
    table = ts.discord(problem, problem.start("random", torch.Generator().manual_seed(1)))
    times = torch.linspace(0, 5, 20)
    energy = torch.exp(-times)[:, None] * torch.ones(6)
    pictures = torch.rand(7, 64)
    captions = [f"sample {i}\ndiscord 0.{i}" for i in range(7)]
    return {
        "graph": lambda t: figures.graph_figure(problem.sheaf, theme=t),
        "values": lambda t: figures.eigenvalue_figure(low, high, theme=t),
        "vectors": lambda t: figures.eigenvector_figure(low, high, kinds, theme=t),
        "relaxation": lambda t: figures.relaxation_figure(times, energy, rate=0.5, theme=t),
        "discord": lambda t: figures.discord_figure(table, theme=t),
        "samples": lambda t: figures.samples_figure(pictures, captions, theme=t),
        "bars": lambda t: figures.sample_bars(torch.randn(5), torch.randn(3, 5), theme=t),
    }


def test_every_figure_draws_in_both_themes(problem: ts.Problem) -> None:
    before = dict(plt.rcParams)
    for name, draw in drawings(problem).items():
        for theme in (figures.LIGHT, figures.DARK):
            figure = draw(theme)
            assert isinstance(figure, Figure), name
            figure.canvas.draw()
            assert overlapping_texts(figure) == [], name
    assert dict(plt.rcParams) == before
    assert plt.get_fignums() == []


def overlapping_texts(figure: Figure) -> list[tuple[str, str]]:
    """Pairs of visible texts whose boxes overlap by more than a pixel."""
    from matplotlib.text import Text

    boxes = []
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        if text.get_visible() and text.get_text().strip():
            axes = text.axes
            if axes is not None and not axes.axison and not hasattr(text, "xyann"):
                if text not in (axes.title, axes._left_title, axes._right_title):
                    continue  # tick labels of axes that are switched off
            box = text.get_window_extent()
            if box.width > 0 and figure.bbox.padded(2).contains(*box.min):
                boxes.append((text.get_text(), box))
    return [
        (a, b)
        for i, (a, one) in enumerate(boxes)
        for b, other in boxes[i + 1 :]
        if min(one.x1, other.x1) - max(one.x0, other.x0) > 1
        and min(one.y1, other.y1) - max(one.y0, other.y0) > 1
    ]


def test_the_check_for_overlaps_sees_one() -> None:
    figure = Figure()
    figure.text(0.5, 0.5, "here")
    figure.text(0.51, 0.5, "there")
    figure.canvas.draw()
    assert overlapping_texts(figure) == [("here", "there")]


@pytest.mark.parametrize("blocks", [1, 8])
def test_the_graph_is_readable_from_four_to_forty_vertices(blocks: int) -> None:
    sheaf = ts.encode(Residual(blocks), torch.randn(3, 4))
    figure = figures.graph_figure(sheaf)
    figure.canvas.draw()
    assert overlapping_texts(figure) == []
    (axes,) = figure.axes
    drawn = {t.get_text() for t in axes.texts}
    assert {shorten(name, 20) for name in sheaf.vertices} <= drawn
    # One arrow per incidence of a tail: a join has as many as parents.
    assert len(axes.patches) == sum(len(e.parents) for e in sheaf.edges.values())


def test_bars_are_the_table(problem: ts.Problem) -> None:
    table = ts.discord(problem, problem.start("random", torch.Generator().manual_seed(1)))
    (axes,) = figures.discord_figure(table).axes
    assert [bar.get_width() for bar in axes.patches] == pytest.approx(table.mean.tolist())
    shares = [t.get_text() for t in axes.texts]
    assert shares == [f"{float(s):.0%}" for s in table.share]


def test_dots_are_the_eigenvalues(problem: ts.Problem) -> None:
    low, high = (ts.spectrum(problem, which=w, throw=False) for w in ("smallest", "largest"))
    (axes,) = figures.eigenvalue_figure(low, high).axes
    dots = [line.get_xdata() for line in axes.lines if line.get_marker() == "o"]
    assert np.allclose(np.asarray(dots[0]), low.values[:, 0])
    assert np.allclose(np.asarray(dots[1]), high.values[:, 0])


@pytest.mark.parametrize(
    ("shape", "picture"),
    [
        ((64,), (8, 8)), ((36,), (6, 6)), ((1, 8, 8), (8, 8)), ((3, 8, 8), (8, 8, 3)),
        ((28, 28), (28, 28)), ((4,), None), ((63,), None), ((2, 8, 8), None), ((25,), None),
    ],
)  # fmt: skip
def test_what_counts_as_a_picture(shape: tuple[int, ...], picture: tuple[int, ...] | None) -> None:
    assert image_shape(shape) == picture


def test_a_small_picture_keeps_its_pixels() -> None:
    sample = torch.arange(64.0)
    drawn = figures.sample_picture(sample, sample)
    assert drawn is not None
    assert drawn.bbox.size.tolist() == [144, 144]
    (image,) = drawn.axes[0].images
    assert np.allclose(np.asarray(image.get_array()) * 63, sample.reshape(8, 8))
    assert figures.sample_picture(torch.ones(5), torch.ones(5)) is None


class Scalar(nn.Module):
    """One number per sample, `(batch,)`: a stalk without axes."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).squeeze(1)


@pytest.mark.parametrize("start", ["forward", "random"])  # at rest from the beginning, or not
@pytest.mark.parametrize("scalar", [False, True])
def test_a_flow_is_drawn_whatever_its_energy_and_its_stalks(
    start: str, scalar: bool, tmp_path: Path
) -> None:
    net = Scalar() if scalar else Scalar().layers
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    problem = ts.hold(ts.encode(net, x), x)
    flow = ts.heat_flow(problem, start=start, until=1.0, times=5, record="states")
    for drawn in (
        figures.flow_energy_figure(flow), figures.flow_energy_figure(flow, 0),
        figures.energy_shares_figure(flow), figures.output_figure(flow),
        figures.relaxation_figure(flow.times, flow.energy, rate=0.1),
    ):  # fmt: skip
        drawn.canvas.draw()
    assert figures.flow_animation(flow, tmp_path / "flow.gif", goal=flow.final, frames=2).is_file()


def test_a_vertex_of_a_flow_is_drawn_by_any_of_its_names_if_all_of_it_was_kept() -> None:
    net = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3))
    x = torch.randn(2, 2, generator=torch.Generator().manual_seed(0))
    problem = ts.hold(ts.encode(net, x), x)
    flow = ts.heat_flow(problem, until=1.0, times=5, record={"output": None, "0": [1, 3]})
    (axes,) = figures.phase_plane_figure(flow, "output", (2, 0)).axes
    path = flow.states["2"]
    assert np.allclose(np.asarray(axes.lines[1].get_xydata()), path[:, 1, [2, 0]])
    for vertex in ("0", "1"):  # two coordinates of four, and none
        with pytest.raises(ValueError, match=f"'{vertex}' was not recorded, or not all of it"):
            figures.phase_plane_figure(flow, vertex)


def test_figures_compute_nothing() -> None:
    """They may read results and take means and quantiles; solvers and flows are out of reach."""
    folder = Path(figures.__file__).parent
    solvers = {"harmonic_extension", "spectrum", "heat_flow", "encode", "hold", "discord"}
    for file in folder.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in solvers, file.name
