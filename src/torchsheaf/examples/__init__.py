"""Small models that ship with the package, trained in seconds by an ordinary optimiser.

They use the handwritten digits bundled with scikit-learn, or closed formulas: nothing is
downloaded. Every random number comes from a `torch.Generator`.
"""

from torchsheaf.examples.example import Example as Example
from torchsheaf.examples.example import TrainedExample as TrainedExample
from torchsheaf.examples.shipped import EXAMPLES as EXAMPLES
from torchsheaf.examples.shipped import load as load
