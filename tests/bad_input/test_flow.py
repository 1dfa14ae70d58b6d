"""What heat_flow refuses, and what the message says."""

import pytest
import torch

import torchsheaf as ts
from torchsheaf.flow import Ode


@pytest.fixture(scope="module")
def problem():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1))
    x = torch.randn(4, 2, dtype=torch.float64)
    return ts.hold(ts.encode(net.double(), x), x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"until": -1.0}, "until is -1.0"),
        ({"alpha": 0.0}, "alpha is 0.0"),
        ({"method": "rk4"}, "method is 'rk4'; write"),
        ({"method": "exact", "dt": 0.1}, 'dt is a setting of method="euler"'),
        ({"start": "ones"}, "start is 'ones'"),
        ({"record": "everything"}, "record is 'everything'"),
        ({"record": ["nowhere"]}, "no vertex named 'nowhere'"),
        ({"times": 1}, "times is 1"),
        ({"times": torch.tensor([1.0, 0.5])}, "strictly ascending"),
        ({"times": torch.tensor([0.0, 99.0])}, "beyond until"),
        ({"output_force": "none"}, "output_force is 'none'"),
        ({"output_force": "identity"}, "needs one output that is a smooth function"),
        ({"max_steps": 0}, "max_steps is 0"),
        ({"method": Ode("euler")}, "solver is 'euler'"),
    ],
)
def test_a_bad_argument_is_named(problem, options, message):
    with pytest.raises(ValueError, match=message):
        ts.heat_flow(problem, **{"until": 1.0, **options})


def test_euler_above_the_bound_says_the_bound(problem):
    with pytest.raises(ValueError, match=r"2/\(αλ_max\) = ([\d.]+)") as caught:
        ts.heat_flow(problem, method="euler", dt=5.0)
    bound = float(str(caught.value).split("λ_max) = ")[1].split(" ")[0])
    top = ts.spectrum(problem, which="largest").values.max()
    assert 0.3 * 2 / float(top) < bound <= 2.01 / float(top)
    flow = ts.heat_flow(problem, method="euler", dt=0.9 * bound, until=5.0)
    assert bool((flow.energy[-1] < flow.energy[0]).all())


def test_a_start_with_nan_is_refused_by_name(problem):
    start = problem.start("zeros")
    bad = ts.Cochain({n: t * (torch.nan if n == "1" else 1) for n, t in start.items()})
    with pytest.raises(ValueError, match="start contains NaN or infinity at '1'"):
        ts.heat_flow(problem, bad)


class Square(torch.nn.Module):
    def forward(self, x):
        return x.pow(2)


def test_a_state_that_stops_being_finite_names_vertex_and_time():
    """z² held at 10⁴ from z = 0.1: the first step is stable there and lands where none is."""
    net = torch.nn.Sequential(torch.nn.Linear(1, 1), Square()).double()
    x = torch.ones(1, 1, dtype=torch.float64)
    problem = ts.hold(ts.encode(net, x), x).pin(ts.Pin("output", 1e4))
    start = problem.clamp({n: t + 0.1 for n, t in problem.start("zeros").items()})
    with pytest.raises(ts.ConvergenceError, match=r"non-finite: euler flow: 0 at t = \d"):
        ts.heat_flow(problem, start, method="euler", dt=0.5, until=100.0)
    result = ts.heat_flow(problem, start, method="euler", dt=0.5, until=100.0, throw=False)
    assert result.outcome is ts.Outcome.NONFINITE
    assert bool(result.stationarity.isnan().all())


def test_exact_says_which_edge_it_cannot_take():
    net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Sigmoid()).double()
    x = torch.randn(4, 2, dtype=torch.float64)
    with pytest.raises(ValueError, match="edges 1 are not piecewise linear"):
        ts.heat_flow(ts.hold(ts.encode(net, x), x), method="exact")
