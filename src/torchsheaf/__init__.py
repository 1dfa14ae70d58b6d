"""torchsheaf: any PyTorch network as a cellular sheaf over its computation graph.

Vertices carry the intermediate values, edges carry the operations, and the forward pass is the
one assignment on which all local rules agree.
"""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

from torchsheaf.boundary import Pin as Pin
from torchsheaf.boundary import Problem as Problem
from torchsheaf.boundary import hold as hold
from torchsheaf.boundary import stationarity as stationarity
from torchsheaf.cochain import Cochain as Cochain
from torchsheaf.diagnose import Discord as Discord
from torchsheaf.diagnose import Familiarity as Familiarity
from torchsheaf.diagnose import Finding as Finding
from torchsheaf.diagnose import Verdict as Verdict
from torchsheaf.diagnose import agreement as agreement
from torchsheaf.diagnose import discord as discord
from torchsheaf.diagnose import fault_profile as fault_profile
from torchsheaf.diagnose import label_energy as label_energy
from torchsheaf.diagnose import nudged_discord as nudged_discord
from torchsheaf.diagnose import pathologies as pathologies
from torchsheaf.diagnose import spectra as spectra
from torchsheaf.diagnose import tension_correction as tension_correction
from torchsheaf.diagnose import watch as watch
from torchsheaf.flow import Trajectory as Trajectory
from torchsheaf.flow import heat_flow as heat_flow
from torchsheaf.harmonic import Counterfactual as Counterfactual
from torchsheaf.harmonic import Equilibria as Equilibria
from torchsheaf.harmonic import Extension as Extension
from torchsheaf.harmonic import Nearest as Nearest
from torchsheaf.harmonic import Spectrum as Spectrum
from torchsheaf.harmonic import counterfactual as counterfactual
from torchsheaf.harmonic import harmonic_extension as harmonic_extension
from torchsheaf.harmonic import nearest_consistent as nearest_consistent
from torchsheaf.harmonic import spectrum as spectrum
from torchsheaf.network import UnsupportedModel as UnsupportedModel
from torchsheaf.network import register_rule as register_rule
from torchsheaf.outcome import ConvergenceError as ConvergenceError
from torchsheaf.outcome import Outcome as Outcome
from torchsheaf.report import report as report
from torchsheaf.sheaf import Sheaf as Sheaf
from torchsheaf.sheaf import encode as encode
from torchsheaf.train import SheafTrainer as SheafTrainer
from torchsheaf.train import fit as fit

if TYPE_CHECKING:
    from torchsheaf import precision as precision

__version__ = "0.1.0"


def __getattr__(name: str) -> ModuleType:
    """`torchsheaf.precision`, imported (with SciPy's optimisers) when it is first asked for."""
    if name == "precision":
        return importlib.import_module("torchsheaf.precision")
    raise AttributeError(f"module 'torchsheaf' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), "precision"]
