"""Figures: one picture per file, a result in, a matplotlib Figure out; nothing is computed here.

Every function takes a `theme` (LIGHT or DARK) and returns a Figure that belongs to no window:
save it with `figure.savefig(path)`, or show it as the last value of a notebook cell.
"""

from torchsheaf.figures.discord import discord_figure as discord_figure
from torchsheaf.figures.graph import graph_figure as graph_figure
from torchsheaf.figures.relaxation import relaxation_figure as relaxation_figure
from torchsheaf.figures.samples import sample_bars as sample_bars
from torchsheaf.figures.samples import sample_picture as sample_picture
from torchsheaf.figures.samples import samples_figure as samples_figure
from torchsheaf.figures.spectrum import eigenvalue_figure as eigenvalue_figure
from torchsheaf.figures.spectrum import eigenvector_figure as eigenvector_figure
from torchsheaf.figures.style import DARK as DARK
from torchsheaf.figures.style import LIGHT as LIGHT
from torchsheaf.figures.style import Theme as Theme
