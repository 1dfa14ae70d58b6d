"""What is held fixed: a `Problem` is a sheaf with held values, pins and edge weights."""

from torchsheaf.boundary.hold import hold as hold
from torchsheaf.boundary.pin import Pin as Pin
from torchsheaf.boundary.pin import Weight as Weight
from torchsheaf.boundary.problem import Problem as Problem
from torchsheaf.boundary.problem import require_problem as require_problem
from torchsheaf.boundary.stationarity import GateStates as GateStates
from torchsheaf.boundary.stationarity import Stationarity as Stationarity
from torchsheaf.boundary.stationarity import stationarity as stationarity
