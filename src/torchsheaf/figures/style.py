"""One quiet style for every figure: two themes, colours that the colour-blind can tell apart."""

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import matplotlib
from matplotlib.figure import Figure

# Okabe & Ito 2008, an order of colours that stays distinct under the common colour blindnesses;
# the dark theme's are lightened to keep the contrast.
_LIGHT_KINDS = {
    "input": "#6b7280",
    "affine": "#0072b2",
    "gate": "#d55e00",
    "join": "#009e73",
    "smooth": "#cc79a7",
    "pin": "#b8860b",
}
_DARK_KINDS = {
    "input": "#9ca3af",
    "affine": "#56b4e9",
    "gate": "#f08a4b",
    "join": "#3cc9a0",
    "smooth": "#e0a3c8",
    "pin": "#f0e442",
}


@dataclass(frozen=True)
class Theme:
    """Colours of a figure, whose ground is transparent, so that the page shows through."""

    name: str
    ink: str
    muted: str
    grid: str
    accent: str
    contrast: str
    paper: str
    kinds: Mapping[str, str] = field(repr=False)

    def kind(self, kind: str) -> str:
        """Colour of an edge kind."""
        return self.kinds.get(kind, self.muted)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """matplotlib's settings for figures made inside."""
        with matplotlib.rc_context(
            {
                "font.family": ["DejaVu Sans"],
                "font.size": 9.5,
                "axes.titlesize": 10.5,
                "axes.titleweight": "bold",
                "axes.titlelocation": "left",
                "axes.titlepad": 9.0,
                "axes.labelsize": 9.5,
                "axes.labelcolor": self.ink,
                "axes.edgecolor": self.muted,
                "axes.facecolor": "none",
                "axes.linewidth": 0.8,
                "axes.spines.top": False,
                "axes.spines.right": False,
                "axes.grid": False,
                "axes.axisbelow": True,
                "grid.color": self.grid,
                "grid.linewidth": 0.8,
                "text.color": self.ink,
                "xtick.color": self.muted,
                "ytick.color": self.muted,
                "xtick.labelcolor": self.ink,
                "ytick.labelcolor": self.ink,
                "xtick.labelsize": 8.5,
                "ytick.labelsize": 8.5,
                "figure.facecolor": "none",
                "legend.frameon": False,
                "legend.fontsize": 8.5,
                "lines.linewidth": 1.6,
                "text.parse_math": False,
            }
        ):
            yield


LIGHT = Theme(
    "light", "#1f2430", "#6b7280", "#e4e7ec", "#0072b2", "#d55e00", "#ffffff", _LIGHT_KINDS
)
DARK = Theme("dark", "#e6e8ec", "#9aa3b2", "#333a47", "#56b4e9", "#f08a4b", "#161a22", _DARK_KINDS)

WIDTH = 6.6
"""Inches: the width of every figure, so that text has one size on a page."""


def new_figure(height: float, width: float = WIDTH) -> Figure:
    """A figure that no window manager knows about."""
    return Figure(figsize=(width, height), layout="constrained")


def as_svg(figure: Figure) -> bytes:
    """A figure with its letters as outlines; equal figures give equal bytes."""
    buffer = io.BytesIO()
    # No date, and names that are not random. matplotlib reads these settings when it writes.
    with matplotlib.rc_context({"svg.fonttype": "path", "svg.hashsalt": "torchsheaf"}):
        figure.savefig(buffer, format="svg", facecolor="none", metadata={"Date": None})
    return buffer.getvalue()


def shorten(text: str, length: int = 24) -> str:
    """A long name with its middle left out: the ends of module paths tell them apart."""
    if len(text) <= length:
        return text
    head = (length - 1) // 3
    return text[:head] + "…" + text[-(length - 1 - head) :]
