"""Linear maps between spaces of cochains, and solvers for them; has never heard of sheaves."""

from torchsheaf.linalg.lanczos import Eigenpairs as Eigenpairs
from torchsheaf.linalg.lanczos import lanczos as lanczos
from torchsheaf.linalg.linear_map import LinearMap as LinearMap
from torchsheaf.linalg.three_term import three_term_lanczos as three_term_lanczos
