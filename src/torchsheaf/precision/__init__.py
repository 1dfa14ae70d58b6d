"""How few bits each operation of a network needs, with a certificate.

A model is traced to core-ATen kernels; every kernel gets a set of formats it may use (its stalk),
the output error that each format causes, and a price; the cheapest section within an output-error
budget is found exactly, run against float64, tightened until it holds, and certified.
"""

from torchsheaf.precision.check_certificate import Rejected as Rejected
from torchsheaf.precision.check_certificate import check as check
from torchsheaf.precision.formats import FORMATS as FORMATS
from torchsheaf.precision.formats import Format as Format
from torchsheaf.precision.formats import find_format as find_format
from torchsheaf.precision.plan import Plan as Plan
from torchsheaf.precision.plan import plan as plan
from torchsheaf.precision.price import NoSection as NoSection
from torchsheaf.precision.refute import Refutation as Refutation
from torchsheaf.precision.refute import refute as refute
from torchsheaf.precision.seed_surface import SheafPrecisionOptimizer as SheafPrecisionOptimizer
