"""Problem → Extension: the cochain of least energy, by substitution or by relaxation; spectrum."""

from torchsheaf.harmonic.counterfactual import Change as Change
from torchsheaf.harmonic.counterfactual import Counterfactual as Counterfactual
from torchsheaf.harmonic.counterfactual import counterfactual as counterfactual
from torchsheaf.harmonic.equilibria import Equilibria as Equilibria
from torchsheaf.harmonic.extension import Extension as Extension
from torchsheaf.harmonic.extension import harmonic_extension as harmonic_extension
from torchsheaf.harmonic.nearest import Nearest as Nearest
from torchsheaf.harmonic.nearest import nearest_consistent as nearest_consistent
from torchsheaf.harmonic.newton import Newton as Newton
from torchsheaf.harmonic.solver import HarmonicSolver as HarmonicSolver
from torchsheaf.harmonic.spectrum import Spectrum as Spectrum
from torchsheaf.harmonic.spectrum import spectrum as spectrum
