"""Figures: one picture per file, a result in, a matplotlib Figure out; nothing is computed here.

Every function takes a `theme` (LIGHT or DARK) and returns a Figure that belongs to no window:
save it with `figure.savefig(path)`, or show it as the last value of a notebook cell.
"""

from torchsheaf.figures.discord import discord_figure as discord_figure
from torchsheaf.figures.evolution import evolution_heatmap as evolution_heatmap
from torchsheaf.figures.evolution import spectral_evolution_figure as spectral_evolution_figure
from torchsheaf.figures.flow import energy_shares_figure as energy_shares_figure
from torchsheaf.figures.flow import flow_animation as flow_animation
from torchsheaf.figures.flow import flow_energy_figure as flow_energy_figure
from torchsheaf.figures.flow import output_figure as output_figure
from torchsheaf.figures.flow import pattern_bands_figure as pattern_bands_figure
from torchsheaf.figures.flow import phase_plane_figure as phase_plane_figure
from torchsheaf.figures.graph import graph_figure as graph_figure
from torchsheaf.figures.pin import pin_figure as pin_figure
from torchsheaf.figures.pin_nearest import nearest_figure as nearest_figure
from torchsheaf.figures.prediction import prediction_figure as prediction_figure
from torchsheaf.figures.relaxation import relaxation_figure as relaxation_figure
from torchsheaf.figures.samples import sample_bars as sample_bars
from torchsheaf.figures.samples import sample_picture as sample_picture
from torchsheaf.figures.samples import samples_figure as samples_figure
from torchsheaf.figures.spectrum import eigenvalue_figure as eigenvalue_figure
from torchsheaf.figures.spectrum import eigenvector_figure as eigenvector_figure
from torchsheaf.figures.style import DARK as DARK
from torchsheaf.figures.style import LIGHT as LIGHT
from torchsheaf.figures.style import Theme as Theme
