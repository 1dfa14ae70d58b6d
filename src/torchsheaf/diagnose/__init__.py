"""Results → findings: how much each edge disagrees, and whether the claims about a network hold.

`discord` reads the disagreement of every edge off an equilibrium; `agreement` checks that the
forward pass is the harmonic extension. Nothing here trains or draws.
"""

from torchsheaf.diagnose.agreement import agreement as agreement
from torchsheaf.diagnose.discord import Discord as Discord
from torchsheaf.diagnose.discord import DiscordEdge as DiscordEdge
from torchsheaf.diagnose.discord import discord as discord
from torchsheaf.diagnose.evolution import Evolution as Evolution
from torchsheaf.diagnose.familiarity import Familiarity as Familiarity
from torchsheaf.diagnose.fault import FaultProfile as FaultProfile
from torchsheaf.diagnose.fault import fault_profile as fault_profile
from torchsheaf.diagnose.findings import Finding as Finding
from torchsheaf.diagnose.findings import Verdict as Verdict
from torchsheaf.diagnose.label_energy import LabelEnergy as LabelEnergy
from torchsheaf.diagnose.label_energy import label_energy as label_energy
from torchsheaf.diagnose.nudge import nudged_discord as nudged_discord
from torchsheaf.diagnose.pathology import pathologies as pathologies
from torchsheaf.diagnose.prediction import Prediction as Prediction
from torchsheaf.diagnose.prediction import prediction as prediction
from torchsheaf.diagnose.spectra import Spectra as Spectra
from torchsheaf.diagnose.spectra import spectra as spectra
from torchsheaf.diagnose.tension import Tension as Tension
from torchsheaf.diagnose.tension import tension_correction as tension_correction
from torchsheaf.diagnose.watch import Watch as Watch
from torchsheaf.diagnose.watch import watch as watch
