"""torchsheaf: any PyTorch network as a cellular sheaf over its computation graph.

Vertices carry the intermediate values, edges carry the operations, and the forward pass is the
one assignment on which all local rules agree.

Every name is imported when it is first asked for, so that `torchsheaf --help` does not wait for
torch.
"""

import importlib
import importlib.util
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torchsheaf import precision as precision
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

__version__ = "0.1.0"

# The part that each name comes from: the imports above, for the interpreter.
HOMES = {
    "Pin": "torchsheaf.boundary",
    "Problem": "torchsheaf.boundary",
    "hold": "torchsheaf.boundary",
    "stationarity": "torchsheaf.boundary",
    "Cochain": "torchsheaf.cochain",
    "Discord": "torchsheaf.diagnose",
    "Familiarity": "torchsheaf.diagnose",
    "Finding": "torchsheaf.diagnose",
    "Verdict": "torchsheaf.diagnose",
    "agreement": "torchsheaf.diagnose",
    "discord": "torchsheaf.diagnose",
    "fault_profile": "torchsheaf.diagnose",
    "label_energy": "torchsheaf.diagnose",
    "nudged_discord": "torchsheaf.diagnose",
    "pathologies": "torchsheaf.diagnose",
    "spectra": "torchsheaf.diagnose",
    "tension_correction": "torchsheaf.diagnose",
    "watch": "torchsheaf.diagnose",
    "Trajectory": "torchsheaf.flow",
    "heat_flow": "torchsheaf.flow",
    "Counterfactual": "torchsheaf.harmonic",
    "Equilibria": "torchsheaf.harmonic",
    "Extension": "torchsheaf.harmonic",
    "Nearest": "torchsheaf.harmonic",
    "Spectrum": "torchsheaf.harmonic",
    "counterfactual": "torchsheaf.harmonic",
    "harmonic_extension": "torchsheaf.harmonic",
    "nearest_consistent": "torchsheaf.harmonic",
    "spectrum": "torchsheaf.harmonic",
    "UnsupportedModel": "torchsheaf.network",
    "register_rule": "torchsheaf.network",
    "ConvergenceError": "torchsheaf.outcome",
    "Outcome": "torchsheaf.outcome",
    "report": "torchsheaf.report",
    "Sheaf": "torchsheaf.sheaf",
    "encode": "torchsheaf.sheaf",
    "SheafTrainer": "torchsheaf.train",
    "fit": "torchsheaf.train",
}


def _imported(name: str) -> Any:
    """A public name, or a part such as `torchsheaf.precision`, imported now."""
    if name in HOMES:
        found = getattr(importlib.import_module(HOMES[name]), name)
        globals()[name] = found
        return found
    whole = f"{__name__}.{name}"
    plain = not name.startswith("_") and "." not in name
    if plain and importlib.util.find_spec(whole) is not None:
        return importlib.import_module(whole)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


if not TYPE_CHECKING:  # to a type checker a name that is not above is a mistake
    __all__ = list(HOMES)  # what `from torchsheaf import *` takes
    __getattr__ = _imported


def __dir__() -> list[str]:
    return sorted({*globals(), *HOMES, "precision"})


class _Package(ModuleType):
    """`torchsheaf.report` is the function, also after an import of the part of that name."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in HOMES and isinstance(value, ModuleType):
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
