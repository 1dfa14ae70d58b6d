"""What heat_flow refuses, and what the message says."""

import math

import pytest
import torch

import torchsheaf as ts
from torchsheaf.flow import Euler, Exact, Ode


@pytest.fixture(scope="module")
def problem():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1))
    x = torch.randn(4, 2, dtype=torch.float64)
    return ts.hold(ts.encode(net.double(), x), x)


def test_a_map_that_jumps_has_no_flow_in_closed_form():
    """The energy jumps with it: "exact" took it for continuous, and its energy rose."""
    net = torch.nn.Sequential(torch.nn.Linear(2, 5), torch.nn.Threshold(0.5, 0.0))
    x = torch.ones(3, 2, dtype=torch.float64)
    problem = ts.hold(ts.encode(net.double(), x), x)
    for method in ("exact", "ode"):
        with pytest.raises(ValueError, match="vertex '1' jumps at 0.5"):
            ts.heat_flow(problem, until=1.0, method=method)
    assert ts.heat_flow(problem, "forward", until=1.0).method == "euler"
    net[1] = torch.nn.Threshold(0.5, 0.5)
    level = ts.hold(ts.encode(net, x), x)
    assert ts.heat_flow(level, until=1.0).method == "exact"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"until": -1.0}, "until is -1.0"),
        ({"until": "5"}, "until is '5'; write a positive time, or None"),
        ({"until": math.nan}, "until is nan"),
        ({"alpha": 0.0}, "alpha is 0.0"),
        ({"alpha": "1"}, "alpha is '1'; write a positive rate"),
        ({"tol": "a"}, "tol is 'a'; write a number ≥ 0"),
        ({"tol": -1.0}, "tol is -1.0"),
        ({"tol": math.nan}, "tol is nan"),
        ({"method": "rk4"}, "method is 'rk4'; write"),
        ({"method": "exact", "dt": 0.1}, 'dt is a setting of method="euler"'),
        ({"method": Euler(), "dt": 0.1}, 'dt is a setting of method="euler"'),
        ({"method": "euler", "dt": "a"}, "dt is 'a'; write a positive step"),
        ({"start": "ones"}, "start is 'ones'"),
        ({"record": "everything"}, "record is 'everything'"),
        ({"record": ["nowhere"]}, "no vertex named 'nowhere'"),
        ({"record": None}, 'record is None; write "energy"'),
        ({"record": 5}, 'record is 5; write "energy"'),
        ({"times": 1}, "times is 1"),
        ({"times": 2.5}, "times is 2.5; write a whole number, 2 or more, or a tensor"),
        ({"times": [0.0, 0.5]}, r"times is \[0.0, 0.5\]; write a whole number"),
        ({"times": torch.tensor([1.0, 0.5])}, "strictly ascending"),
        ({"times": torch.tensor([0.0, 99.0])}, "beyond until"),
        ({"output_force": "none"}, "output_force is 'none'"),
        ({"output_force": "identity"}, "needs one output that is a smooth function"),
        ({"max_steps": 0}, "max_steps is 0"),
        ({"max_steps": 2.5}, "max_steps is 2.5; write a whole number"),
    ],
)
def test_a_bad_argument_is_named(problem, options, message):
    with pytest.raises(ValueError, match=message):
        ts.heat_flow(problem, **{"until": 1.0, **options})


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        (Ode, {"solver": "euler"}, "solver is 'euler'"),
        (Ode, {"rtol": -1.0}, "rtol is -1.0"),
        (Ode, {"atol": "a"}, "atol is 'a'"),
        (Ode, {"layer": 0.0}, "layer is 0.0"),
        (Exact, {"solver": "dense"}, "solver is 'dense'"),
        (Exact, {"max_events": 0}, "max_events is 0"),
        (Euler, {"dt": -0.1}, "dt is -0.1"),
    ],
)
def test_a_bad_setting_of_a_method_is_named_where_it_is_written(method, options, message):
    with pytest.raises(ValueError, match=message):
        method(**options)


def test_with_no_tolerance_no_sample_stops_before_the_end(problem):
    flow = ts.heat_flow(problem, "forward", 1.0, tol=0.0)
    assert bool(flow.stopped.isinf().all()) or float(flow.stationarity.max()) == 0.0


def test_what_is_no_problem_and_what_is_no_start_are_named(problem):
    with pytest.raises(TypeError, match=r"a Sheaf came for the problem; write hold\(sheaf, x\)"):
        ts.heat_flow(problem.sheaf)
    with pytest.raises(TypeError, match="a int came for the problem"):
        ts.heat_flow(3, tol=1e-3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match='start is a Tensor; write "forward", "zeros", "random"'):
        ts.heat_flow(problem, torch.zeros(4, 3))
    zeros = problem.start("zeros")
    with pytest.raises(ValueError, match="start has no value for vertex '0'"):
        ts.heat_flow(problem, ts.Cochain({"1": zeros["1"]}))
    with pytest.raises(ValueError, match=r"start\['0'\] has shape \(1, 3\); write \(4, 3\)"):
        ts.heat_flow(problem, zeros.samples(torch.tensor([0])))
    with pytest.raises(
        ValueError, match=r"start\['0'\] is torch\.float32; write \.to\(torch\.float64\)"
    ):
        ts.heat_flow(problem, ts.Cochain({n: t.float() for n, t in zeros.items()}))


@pytest.mark.parametrize(
    ("method", "advice"),
    [
        ("exact", "raise max_steps"),
        (Exact(max_events=1), "write method=Exact(max_events=…) with more than 1"),
        ("euler", "method='exact' ends where Euler chatters"),
        ("ode", "raise max_steps"),
    ],
)
def test_the_step_limit_counts_what_it_limits_and_names_its_own_remedies(problem, method, advice):
    generator = torch.Generator().manual_seed(4)
    limit = 3 if isinstance(method, str) else 2
    start = problem.clamp(5 * problem.start("random", generator))
    with pytest.raises(ts.ConvergenceError, match=f"after {limit} steps") as caught:
        ts.heat_flow(problem, start, None, method, max_steps=3)
    assert caught.value.result.steps == limit
    assert advice in str(caught.value)
    assert "max_passes" not in str(caught.value)


def test_euler_names_exact_only_where_that_takes_the_problem():
    net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh())
    x = torch.ones(2, 2, dtype=torch.float64)
    problem = ts.hold(ts.encode(net.double(), x), x)
    with pytest.raises(ts.ConvergenceError, match="raise max_steps or loosen tol$"):
        ts.heat_flow(problem, "zeros", None, "euler", max_steps=3)


def test_numbers_may_be_tensors_without_axes(problem):
    start, two = problem.start("zeros"), torch.tensor(2.0)
    flow = ts.heat_flow(problem, start, two, alpha=two, tol=torch.tensor(1e-9), times=3)
    plain = ts.heat_flow(problem, start, 2.0, alpha=2.0, tol=1e-9, times=3)
    assert (type(flow.alpha), flow.times[-1]) == (float, 2.0)
    assert torch.equal(flow.energy, plain.energy)


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
    with pytest.raises(ValueError, match=r"start\['1'\] contains NaN or infinity"):
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


def test_exact_leaves_half_precision_to_the_methods_that_compute_in_float64():
    net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU()).bfloat16()
    x = torch.ones(2, 2, dtype=torch.bfloat16)
    problem = ts.hold(ts.encode(net, x), x)
    start = problem.clamp({n: torch.full((2, 3), -1.0).to(x) for n in problem.free.shapes})
    with torch.no_grad():
        net[0].bias.fill_(3.0)  # every gate opens on the way
    flow = ts.heat_flow(problem, start, until=5.0)
    assert flow.method == "ode"
    assert len(flow.events) >= 6
    assert flow.final["1"].dtype == torch.bfloat16
    with pytest.raises(ValueError, match="in the network's type, torch.bfloat16"):
        ts.heat_flow(problem, until=1.0, method="exact")


def test_exact_says_which_edge_it_cannot_take():
    net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Sigmoid()).double()
    x = torch.randn(4, 2, dtype=torch.float64)
    with pytest.raises(ValueError, match="edges 1 are not piecewise linear"):
        ts.heat_flow(ts.hold(ts.encode(net, x), x), method="exact")
    with pytest.raises(ValueError, match="edges 1 are not piecewise linear"):
        ts.heat_flow(ts.hold(ts.encode(net, x), x), method=Exact())


@pytest.mark.parametrize(("pooled", "other"), [(True, "euler"), (False, "exact")])
def test_ode_stopped_by_a_slide_names_a_method_that_takes_the_problem(pooled, other):
    torch.manual_seed(0)
    if pooled:
        last = [torch.nn.Unflatten(1, (1, 6)), torch.nn.MaxPool1d(2), torch.nn.Flatten()]
    else:
        last = [torch.nn.ReLU()]
    width = 3 if pooled else 6
    net = torch.nn.Sequential(torch.nn.Linear(2, 6), *last, torch.nn.Linear(width, 1)).double()
    x = torch.randn(40, 2, dtype=torch.float64)
    problem = ts.hold(ts.encode(net, x), x).pin(ts.Pin("output", 3.0))
    # without the layer in which gates turn over, SciPy's solvers stop at a slide
    with pytest.raises(ts.ConvergenceError, match=f"a slide does this: write method='{other}'"):
        ts.heat_flow(
            problem, until=20.0, method=Ode(layer=1e-300),
            generator=torch.Generator().manual_seed(0),
        )  # fmt: skip


@pytest.mark.parametrize("function", [torch.log, torch.sqrt, torch.rsqrt])
@pytest.mark.parametrize("method", ["auto", "euler"])
def test_a_start_outside_the_domain_of_an_operation(function, method):
    class Inside(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.last = torch.nn.Linear(3, 2)

        def forward(self, x):
            return self.last(function(x.square() + 0.5))

    x = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    problem = ts.hold(ts.encode(Inside().double(), x), x)
    generator = torch.Generator().manual_seed(0)
    wanted = f"start is .random.*{function.__name__}.*start=.forward"
    with pytest.raises(ValueError, match=wanted):
        ts.heat_flow(problem, method=method, generator=generator)
    assert ts.heat_flow(problem, start="forward", until=1.0).outcome.ok
