"""A network as a cellular sheaf: cells, restriction maps, coboundary, Laplacian, pattern."""

from torchsheaf.sheaf.cells import Edge as Edge
from torchsheaf.sheaf.cells import Vertex as Vertex
from torchsheaf.sheaf.coboundary import Coboundary as Coboundary
from torchsheaf.sheaf.encode import encode as encode
from torchsheaf.sheaf.extended import ExtendedSheaf as ExtendedSheaf
from torchsheaf.sheaf.laplacian import Laplacian as Laplacian
from torchsheaf.sheaf.pattern import ActivationPattern as ActivationPattern
from torchsheaf.sheaf.sheaf import Sheaf as Sheaf
from torchsheaf.sheaf.sheaf import require_sheaf as require_sheaf
