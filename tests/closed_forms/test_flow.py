"""The exact flow against solutions derived by hand (docs/flow.md, "Solutions by hand")."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import brentq

import torchsheaf as ts

LN2 = math.log(2)


def linear(weight, bias):
    weight = torch.tensor(weight, dtype=torch.float64)
    layer = torch.nn.Linear(weight.shape[1], weight.shape[0], dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(torch.tensor(bias, dtype=torch.float64))
    return layer


def gates_alone(force, post):
    """ż_j = −(z_j − c_j) − 1[z_j ≥ 0](z_j − a_j): x = 0 and a are held, c_j is the bias."""
    k = len(force)
    net = torch.nn.Sequential(linear([[0.0]] * k, force), torch.nn.ReLU())
    x = torch.zeros(1, 1, dtype=torch.float64)
    held = torch.tensor([post], dtype=torch.float64)
    return ts.hold(ts.encode(net, x), x).pin(ts.Pin("1", held))


def run(problem, start, times, **options):
    given = {n: torch.tensor([v], dtype=torch.float64) for n, v in start.items()}
    first = problem.clamp(ts.Cochain({**problem.start("zeros"), **given}))
    grid = torch.as_tensor(times, dtype=torch.float64)
    return ts.heat_flow(
        problem, first, until=float(grid[-1]), method="exact", times=grid, record="states",
        tol=1e-14, **options,
    )  # fmt: skip


def said(flow):
    return [(e.time, e.vertex, e.neuron, e.before, e.after) for e in flow.events]


TIMES = np.linspace(0, 3, 61)


def test_a_crossing_upwards():
    """c = a = 1 from −1: z = 1 − 2e^{−t} until ln 2, then 1 − e^{−2(t − ln 2)}."""
    flow = run(gates_alone([1.0], [1.0]), {"0": [-1.0]}, TIMES)
    wanted = np.where(TIMES < LN2, 1 - 2 * np.exp(-TIMES), 1 - np.exp(-2 * (TIMES - LN2)))
    np.testing.assert_allclose(flow.states["0"][:, 0, 0], wanted, atol=1e-14)
    (event,) = said(flow)
    assert event == (pytest.approx(LN2, abs=1e-15), "0", 0, "off", "on")


def test_a_slide_that_lasts():
    """c = 1, a = −2: z reaches 0 at ln 2, where both sides push it back: it stays."""
    flow = run(gates_alone([1.0], [-2.0]), {"0": [-1.0]}, TIMES)
    wanted = np.where(TIMES < LN2, 1 - 2 * np.exp(-TIMES), 0.0)
    np.testing.assert_allclose(flow.states["0"][:, 0, 0], wanted, atol=1e-14)
    assert said(flow) == [(pytest.approx(LN2, abs=1e-15), "0", 0, "off", "sliding")]
    assert float(flow.final["0"]) == 0.0
    assert float(flow.energy[-1]) == pytest.approx(0.5 * (1 + 4), abs=1e-14)
    assert float(flow.stationarity) == 0.0


@pytest.mark.parametrize(
    ("force", "post", "state", "law"),
    [
        (1.0, 1.0, 2, lambda t: 1 - np.exp(-2 * t)),
        (-1.0, -1.0, 0, lambda t: -(1 - np.exp(-t))),
        (1.0, -2.0, 1, lambda t: 0 * t),
        (-1.0, 3.0, 2, lambda t: 1 - np.exp(-2 * t)),  # repelling: z = 0 counts as active
    ],
)
def test_a_start_exactly_on_a_wall(force, post, state, law):
    flow = run(gates_alone([force], [post]), {"0": [0.0]}, TIMES)
    np.testing.assert_allclose(flow.states["0"][:, 0, 0], law(TIMES), atol=1e-14)
    assert flow.start_states.tolist() == [[state]]
    assert len(flow.events) == 0


def test_two_walls_met_at_the_same_time():
    """z_1 = 1 − 2e^{−t} and z_2 = 2 − 4e^{−t} meet 0 at ln 2; the first slides, the second not."""
    flow = run(gates_alone([1.0, 2.0], [-2.0, 2.0]), {"0": [-1.0, -2.0]}, TIMES)
    late = np.maximum(TIMES - LN2, 0)
    first = np.minimum(1 - 2 * np.exp(-TIMES), 0)
    second = np.where(TIMES < LN2, 2 - 4 * np.exp(-TIMES), 2 - 2 * np.exp(-2 * late))
    np.testing.assert_allclose(flow.states["0"][:, 0, 0], first, atol=1e-14)
    np.testing.assert_allclose(flow.states["0"][:, 0, 1], second, atol=1e-14)
    events = {e[2]: e for e in said(flow)}
    assert len(flow.events) == 2
    assert events[0][0] == pytest.approx(LN2, abs=1e-15)
    assert events[1][0] == pytest.approx(LN2, abs=1e-15)
    starts, states = flow.states_of_walls()  # one band before, one after: none of no width
    assert starts.tolist() == [0.0, pytest.approx(LN2, abs=1e-15)]
    assert states.tolist() == [[0, 0], [1, 2]]
    assert (events[0][3:], events[1][3:]) == (("off", "sliding"), ("off", "on"))


@pytest.mark.parametrize("solver", ["spectral", "krylov"])
def test_a_slide_that_ends(solver):
    """x = 0, c = 1, W_2 = 1, y = 2 held, from z = 0, a = −2.

    While z = 0: a = 1 − 3e^{−2t}, until c + a = 0 at T = ½ ln(3/2). Then with τ = t − T
    z = 4/3 − 2e^{−τ} + ⅔e^{−3τ}, a = 5/3 − 2e^{−τ} − ⅔e^{−3τ}: z leaves with velocity 0.
    """
    net = torch.nn.Sequential(linear([[0.0]], [1.0]), torch.nn.ReLU(), linear([[1.0]], [0.0]))
    x = torch.zeros(1, 1, dtype=torch.float64)
    problem = ts.hold(ts.encode(net, x), x).pin(ts.Pin("output", 2.0))
    first = problem.clamp(
        ts.Cochain({n: torch.full((1, 1), v).double() for n, v in
                    {"input": 0.0, "0": 0.0, "1": -2.0, "2": 2.0}.items()})
    )  # fmt: skip
    flow = ts.heat_flow(
        problem, first, until=3.0, method=ts.flow.Exact(solver), times=torch.tensor(TIMES),
        record="states",
    )  # fmt: skip
    end = 0.5 * math.log(1.5)
    tau = np.maximum(TIMES - end, 0)
    z = np.where(TIMES < end, 0.0, 4 / 3 - 2 * np.exp(-tau) + 2 / 3 * np.exp(-3 * tau))
    a = np.where(
        TIMES < end, 1 - 3 * np.exp(-2 * TIMES), 5 / 3 - 2 * np.exp(-tau) - 2 / 3 * np.exp(-3 * tau)
    )
    np.testing.assert_allclose(flow.states["0"][:, 0, 0], z, atol=1e-13)
    np.testing.assert_allclose(flow.states["1"][:, 0, 0], a, atol=1e-13)
    assert flow.start_states.tolist() == [[1]]
    assert said(flow) == [(pytest.approx(end, abs=1e-14), "0", 0, "sliding", "on")]


def dipping(p):
    """Linear(1,1), Linear(1,1), ReLU with x = a = 1 held, weights 1: while on,
    z_2 = 1 + p s + 4s³ and z_1 = 1 + p s − 4s³ with s = e^{−t}; p = −3 touches 0 at ln 2."""
    net = torch.nn.Sequential(linear([[1.0]], [0.0]), linear([[1.0]], [0.0]), torch.nn.ReLU())
    x = torch.ones(1, 1, dtype=torch.float64)
    problem = ts.hold(ts.encode(net, x), x).pin(ts.Pin("2", 1.0))
    return problem, {"0": [1 + p - 4.0], "1": [1 + p + 4.0]}


def off_region(z, t):
    """z_1, z_2 after a time t in the off region: ż = −[[2, −1], [−1, 1]] z + (1, 0)."""
    matrix = np.array([[2.0, -1.0], [-1.0, 1.0]])
    values, q = np.linalg.eigh(matrix)
    rest = np.linalg.solve(matrix, [1.0, 0.0])
    return rest + q @ (np.exp(-values * t) * (q.T @ (z - rest)))


@pytest.mark.parametrize("p", [-3.1, -3.001, -3.000001])
def test_a_double_crossing(p):
    """A dip below the wall and back, down to a millionth of a unit deep: both crossings count."""
    problem, start = dipping(p)
    flow = run(problem, start, TIMES)
    s = brentq(lambda s: 1 + p * s + 4 * s**3, math.sqrt(-p / 12), 1, xtol=1e-16)
    down = -math.log(s)
    entry = np.array([1 + p * s - 4 * s**3, 0.0])
    # Just below the wall z_2 still falls, so its return lies beyond the minimum.
    bottom = brentq(lambda t: np.diff(off_region(entry, t))[0], 1e-9, 2, xtol=1e-16)
    up = down + brentq(lambda t: off_region(entry, t)[1], bottom, 5, xtol=1e-16)
    assert [e[3:] for e in said(flow)] == [("on", "off"), ("off", "on")]
    tolerance = 1e-14 / math.sqrt(-p - 3)  # the root's own condition: it is nearly double
    assert said(flow)[0][0] == pytest.approx(down, abs=tolerance)
    assert said(flow)[1][0] == pytest.approx(up, abs=max(tolerance, 1e-11))


def test_a_tangency():
    """p = −3: the wall is touched at ln 2 and not crossed; the formula holds throughout."""
    problem, start = dipping(-3.0)
    flow = run(problem, start, TIMES)
    s = np.exp(-TIMES)
    np.testing.assert_allclose(flow.states["1"][:, 0, 0], 1 - 3 * s + 4 * s**3, atol=1e-13)
    np.testing.assert_allclose(flow.states["0"][:, 0, 0], 1 - 3 * s - 4 * s**3, atol=1e-13)
    assert len(flow.events) == 0


def test_alpha_is_a_unit_of_time():
    slow = run(gates_alone([1.0], [-2.0]), {"0": [-1.0]}, TIMES)
    fast = run(gates_alone([1.0], [-2.0]), {"0": [-1.0]}, TIMES / 4, alpha=4.0)
    np.testing.assert_allclose(slow.states["0"], fast.states["0"], atol=1e-14)
    assert float(fast.events.time[0]) == pytest.approx(LN2 / 4, abs=1e-15)


def test_edge_weights_and_soft_pins_enter_the_force():
    """w = 2 on the affine edge, γ = 3 towards 5, gate off: z → (2c + 3·5)/5 at rate 5."""
    net = torch.nn.Sequential(linear([[0.0]], [-6.0]), torch.nn.ReLU())
    x = torch.zeros(1, 1, dtype=torch.float64)
    problem = ts.hold(ts.encode(net, x), x, weights={"0": 2.0}).pin(
        ts.Pin("0", -5.0, weight=3.0), ts.Pin("1", 0.0)
    )
    flow = run(problem, {"0": [-1.0]}, TIMES)
    rest = (2 * -6.0 + 3 * -5.0) / 5
    np.testing.assert_allclose(
        flow.states["0"][:, 0, 0], rest + (-1 - rest) * np.exp(-5 * TIMES), atol=1e-13
    )


def test_switches_of_a_batch_are_told_in_order_of_time():
    """z = 1 − 5e^{−t} and z = 1 − 2e^{−t}, of two samples: the second one passes its wall first."""
    net, x = (
        torch.nn.Sequential(linear([[0.0]], [1.0]), torch.nn.ReLU()),
        torch.zeros(2, 1).double(),
    )
    problem = ts.hold(ts.encode(net, x), x).pin(ts.Pin("1", 2.0))
    first = problem.clamp({**problem.start("zeros"), "0": torch.tensor([[-4.0], [-1.0]]).double()})
    events = ts.heat_flow(problem, first, until=3.0, method="exact").events
    assert [e.sample for e in events] == [1, 0]
    assert events.time.tolist() == pytest.approx([LN2, math.log(5)], abs=1e-14)


def test_a_network_without_gates_is_one_region_and_has_no_wall() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1)).double()
    x = torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    problem = ts.hold(ts.encode(net, x), x)
    flow = ts.heat_flow(problem, start="zeros", until=2.0, method="exact")
    at = problem.start("zeros")
    laplacian = problem.laplacian(at).to_dense()
    space = problem.free
    rest = space.flatten(problem.start("forward"))
    start = space.flatten(at)
    expected = rest + (torch.matrix_exp(-2.0 * laplacian) @ (start - rest)[..., None])[..., 0]
    assert torch.allclose(space.flatten(flow.final), expected, rtol=0, atol=1e-10)
    assert not flow.events


def test_gates_that_read_the_input_alone_are_no_walls() -> None:
    """x is held, so δ = [[1, 0], [−W, 1]] throughout and c(t) − f = exp(−δᵀδ t) (c(0) − f)."""
    net = torch.nn.Sequential(torch.nn.ReLU(), linear([[1.0, -2.0]], [0.5]))
    x = torch.tensor([[3.0, -1.0]], dtype=torch.float64)
    flow = run(ts.hold(ts.encode(net, x), x), {"0": [3.0, 0.0], "1": [4.5]}, [0.0, 1.0, 2.0])
    delta = torch.tensor([[1.0, 0, 0], [0, 1, 0], [-1, 2, 1]], dtype=torch.float64)
    moved = torch.matrix_exp(-2 * delta.mT @ delta) @ torch.tensor([0.0, 0, 1]).double()
    expected = torch.tensor([3.0, 0, 3.5]).double() + moved
    assert torch.allclose(flow.problem.free.flatten(flow.final)[0], expected, rtol=0, atol=1e-12)
    assert not flow.events


@pytest.mark.parametrize("shape", [(2,), ()])
@pytest.mark.parametrize("method", ["exact", "euler", "ode"])
def test_a_gate_of_the_held_input_alone_has_no_wall(method, shape):
    """c(t) = ReLU(x) + (c(0) − ReLU(x)) e^{−t}: nothing free is ever read by a gate."""
    x = torch.linspace(-1, 1, 5).double().reshape(5, *[1] * len(shape)).expand(5, *shape)
    problem = ts.hold(ts.encode(torch.nn.ReLU(), x), x)
    start = problem.start("random", torch.Generator().manual_seed(1))
    dt = 1e-3 if method == "euler" else None
    flow = ts.heat_flow(problem, start, 1.5, method, dt=dt, times=4, record="states")
    (name,) = problem.sheaf.outputs
    decay = torch.exp(-flow.times).reshape(4, *[1] * (1 + len(shape)))
    wanted = x.relu() + (start[name] - x.relu()) * decay
    assert torch.allclose(flow.states[name], wanted, atol=1e-3 if method == "euler" else 1e-8)
    assert len(flow.events) == 0


def test_euler_ends_at_the_last_time_and_records_between_its_steps_on_the_chord():
    """One Linear edge at rest but its output: c(t) = c* + (c(0) − c*)(1 − dt)^k at t = k dt."""
    net, x = torch.nn.Linear(1, 1).double(), torch.ones(1, 1).double()
    problem = ts.hold(ts.encode(net, x), x)
    goal = net(x).detach()
    start = problem.clamp({n: t + 1 for n, t in problem.start("forward").items()})
    times = torch.tensor([0.0, 0.05, 0.1, 0.25, 0.7]).double()
    flow = ts.heat_flow(problem, start, 0.7, "euler", dt=0.1, times=times, record="states")
    (name,) = problem.sheaf.outputs
    left = (flow.states[name] - goal).flatten()
    between = (0.9**2 + 0.9**3) / 2
    wanted = torch.tensor([1, 0.95, 0.9, between, 0.9**7]).double()
    assert torch.allclose(left, wanted, atol=1e-12)
    short = ts.heat_flow(problem, start, 0.25, "euler", dt=0.1, times=2)
    assert torch.allclose(short.output - goal, torch.tensor(0.9**2 * 0.95).double(), atol=1e-12)
    assert short.steps == 3
    assert torch.allclose(short.energy[-1], problem.energy(short.final))


@pytest.mark.parametrize("method", ["exact", "euler", "ode"])
def test_one_weighted_edge_and_the_time_at_which_it_stops(method):
    """ċ = −αw(c − c*): E = ½ w e^{−2αwt} from a distance of 1, and |∇E| = w e^{−αwt} ≤ tol."""
    alpha, w, tol = 2.0, 3.0, 1e-6
    net, x = torch.nn.Linear(1, 1).double(), torch.ones(2, 1).double()
    sheaf = ts.encode(net, x)
    (name,) = sheaf.edges
    problem = ts.hold(sheaf, x, weights={name: w})
    away = torch.tensor([[1.0], [0.0]]).double()
    start = problem.clamp({n: t + away for n, t in problem.start("forward").items()})
    dt = 0.01 if method == "euler" else None
    flow = ts.heat_flow(problem, start, None, method, alpha=alpha, tol=tol, dt=dt, times=400)
    arrival = math.log(w / tol) / (alpha * w)
    if method == "exact":  # a little below the tolerance, so that rounding leaves it met
        wanted = [math.log(w / (0.99 * tol)) / (alpha * w), 0.0]
        np.testing.assert_allclose(flow.stopped, wanted, rtol=1e-9)
    elif method == "euler":  # looked at every 100 steps, of which 242 are needed
        assert flow.stopped.tolist() == [3.0, 0.0]
    else:  # all samples at once, looked at every 10 steps
        assert arrival < float(flow.stopped[0]) == float(flow.stopped[1]) < 2 * arrival
    end = float(flow.stopped.max())
    assert float(flow.times[1]) == pytest.approx(1e-2 / alpha)
    assert float(flow.times[-2]) <= end < float(flow.times[-1])  # one time beyond the last stop
    times, steps = flow.times.numpy(), np.arange(1000)
    left = np.exp(-alpha * w * times)
    if dt is not None:  # on the chords between (1 − αw dt)^k
        left = np.interp(times, steps * dt, (1 - alpha * w * dt) ** steps)
    law = 0.5 * w * left**2
    moving, near = flow.times < end, 1e-6 if method == "ode" else 1e-13
    for energy in (flow.energy, flow.edge_energy[name]):
        np.testing.assert_allclose(energy[moving, 0], law[moving], rtol=1e-9, atol=near)
        assert float(energy[:, 1].max()) <= 1e-13


def test_switches_print_as_one_line():
    flow = run(gates_alone([1.0], [1.0]), {"0": [-1.0]}, TIMES)
    assert repr(flow.events) == "Events(1 switches between t = 0.6931 and 0.6931)"
    still = run(gates_alone([1.0], [1.0]), {"0": [1.0]}, TIMES)
    assert repr(still.events) == "Events(none)"
