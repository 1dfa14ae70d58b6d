"""Reads an `nn.Module` as a `Network`: nodes in topological order, each claimed by a rule.

The only folder that imports torch.export and torch.fx.
"""

from torchsheaf.network.capture import ExportedProgram as ExportedProgram
from torchsheaf.network.capture import read_network as read_network
from torchsheaf.network.capture import require_traceable as require_traceable
from torchsheaf.network.composition import Composition as Composition
from torchsheaf.network.errors import Offender as Offender
from torchsheaf.network.errors import UnsupportedModel as UnsupportedModel
from torchsheaf.network.gates import CurvedGate as CurvedGate
from torchsheaf.network.gates import ExtremeGate as ExtremeGate
from torchsheaf.network.gates import Gate as Gate
from torchsheaf.network.gates import ScalarGate as ScalarGate
from torchsheaf.network.gates import SlopeGate as SlopeGate
from torchsheaf.network.gates import WindowGate as WindowGate
from torchsheaf.network.network import Network as Network
from torchsheaf.network.network import Node as Node
from torchsheaf.network.registration import register_rule as register_rule
from torchsheaf.network.rules import Kind as Kind
from torchsheaf.network.rules import known_operations as known_operations
