"""The sheaf heat equation: a problem and a start become a `Trajectory`.

Integrators are interchangeable (`FlowMethod`): explicit Euler as in the paper, the exact flow of
piecewise linear networks (regions, crossings, slides), and ODE libraries for smooth edges.
"""

from torchsheaf.flow.euler import Euler as Euler
from torchsheaf.flow.euler import euler_step as euler_step
from torchsheaf.flow.events import Event as Event
from torchsheaf.flow.events import Events as Events
from torchsheaf.flow.exact import Exact as Exact
from torchsheaf.flow.heat_flow import heat_flow as heat_flow
from torchsheaf.flow.method import FlowMethod as FlowMethod
from torchsheaf.flow.ode import Ode as Ode
from torchsheaf.flow.trajectory import Trajectory as Trajectory
from torchsheaf.flow.walls import Walls as Walls
