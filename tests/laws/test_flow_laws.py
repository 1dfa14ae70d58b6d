"""Laws of the heat flow: energy, rates, stopping, batches, records."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import torchsheaf as ts
from tests.reference.networks import fill, randn, relu_mlp
from torchsheaf.flow import Exact, Walls, euler_step
from torchsheaf.flow.euler import step_bound

PER_CASE = 8
"""Trajectories per generated network: 125 networks make 1,000 cases."""


def mlp(*dims, gate=torch.nn.ReLU):
    layers = []
    for i, (m, n) in enumerate(zip(dims[:-1], dims[1:], strict=True)):
        layers += [torch.nn.Linear(m, n, dtype=torch.float64)] + [gate()] * (i < len(dims) - 2)
    return torch.nn.Sequential(*layers)


NETS = [mlp(*widths) for widths in ((2, 3, 1), (2, 3, 3, 1), (3, 2, 2, 2, 2))]
SHEAVES = [ts.encode(net, torch.zeros(2, net[0].in_features).double()) for net in NETS]


def fractional_gap(net):
    """min of λ_min(δ(R)ᵀδ(R)) over the masks with entries 0, ½ and 1: up to 3⁶ matrices."""
    weights = [layer.weight.detach() for layer in net[::2]]
    widths = [len(w) for w in weights[:-1]]
    levels = torch.tensor(list(itertools.product((0.0, 0.5, 1.0), repeat=sum(widths)))).double()
    delta = torch.eye(2 * sum(widths) + len(weights[-1])).double().repeat(len(levels), 1, 1)
    at = 0
    for n, mask, after in zip(widths, levels.split(widths, 1), weights[1:], strict=True):
        z, a, below = slice(at, at + n), slice(at + n, at + 2 * n), at + 2 * n
        delta[:, a, z] = -torch.diag_embed(mask)
        delta[:, below : below + len(after), a] = -after
        at = below
    return float(torch.linalg.svdvals(delta)[:, -1].min()) ** 2


@given(
    which=st.integers(0, len(NETS) - 1),
    seed=st.integers(0, 2**31),
    scale=st.floats(0.2, 4),
    bias=st.floats(0, 2),
    spread=st.floats(0.1, 6),
    alpha=st.floats(0.2, 5),
)
@settings(max_examples=125, deadline=None)
def test_energy_falls_at_the_fractional_mask_rate(which, seed, scale, bias, spread, alpha):
    """E never rises and E(t) ≤ E(0) e^{−2αλ*t}, λ* over masks in [0, 1] (T3)."""
    net, generator = NETS[which], torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in net[::2]:
            layer.weight.copy_(scale * torch.randn(layer.weight.shape, generator=generator))
            layer.bias.copy_(bias * torch.randn(layer.bias.shape, generator=generator))
    x = torch.randn(PER_CASE, net[0].in_features, generator=generator, dtype=torch.float64)
    problem = ts.hold(SHEAVES[which], x)
    start = problem.start("random", generator)
    start = problem.clamp(spread * start)
    flow = ts.heat_flow(problem, start, until=8.0 / alpha, alpha=alpha, times=33)
    energy = flow.energy
    noise = 1e-13 * energy[0] + 1e-28
    assert bool((energy[1:] <= energy[:-1] + noise).all())
    rate = fractional_gap(net)
    bound = energy[0] * torch.exp(-2 * alpha * rate * flow.times)[:, None]
    assert bool((energy <= bound * (1 + 1e-9) + noise).all())


@pytest.fixture(scope="module")
def deep():
    torch.manual_seed(5)
    net = mlp(2, 5, 4, 1)
    x = torch.randn(12, 2, dtype=torch.float64)
    problem = ts.hold(ts.encode(net, x[:2]), x)
    return net, problem, problem.pin(ts.Pin("output", torch.randn(12, 1).double() * 2))


def test_inside_a_region_the_decay_follows_its_own_spectrum(deep):
    """Between switches −d log E/dt lies between 2λ_min and 2λ_max of the current pattern, and
    in the last region it tends to 2λ_min."""
    _, problem, _ = deep
    flow = ts.heat_flow(
        problem, until=None, times=torch.linspace(0, 3, 301), record="states", tol=1e-9,
        generator=torch.Generator().manual_seed(1),
    )  # fmt: skip
    checked = 0
    for k in range(0, 300, 10):
        c = ts.Cochain({n: t[k] for n, t in flow.states.items()})
        values = torch.linalg.eigvalsh(problem.laplacian(c).to_dense())
        inside = torch.ones(problem.batch, dtype=torch.bool)
        for event in flow.events:
            if float(flow.times[k]) < event.time < float(flow.times[k + 1]):
                inside[event.sample] = False
        bands = [flow.states_of_walls(s) for s in range(problem.batch)]
        for s, (starts, states) in enumerate(bands):
            here = states[int((starts <= float(flow.times[k])).sum()) - 1]
            inside[s] &= bool((here % 2 == 0).all())
        step = float(flow.times[k + 1] - flow.times[k])
        rate = -(torch.log(flow.energy[k + 1]) - torch.log(flow.energy[k])) / step
        assert bool((rate[inside] >= 2 * values[inside, 0] * (1 - 1e-9)).all())
        assert bool((rate[inside] <= 2 * values[inside, -1] * (1 + 1e-9)).all())
        checked += int(inside.sum())
    assert checked > 200
    late = ts.heat_flow(
        problem, flow.final, until=20.0, times=3, tol=1e-30, method="exact", throw=False
    )
    slowest = torch.linalg.eigvalsh(problem.laplacian(flow.final).to_dense())[:, 0]
    seen = torch.log(late.energy[0] / late.energy[1]) / 10
    torch.testing.assert_close(seen, 2 * slowest, rtol=0.05, atol=0)


@pytest.mark.parametrize("held", [False, True])
def test_spectral_and_krylov_agree(deep, held):
    problem = deep[2] if held else deep[1]
    flows = [
        ts.heat_flow(
            problem, until=15.0, method=Exact(solver), record="states", times=31,
            generator=torch.Generator().manual_seed(2),
        )
        for solver in ("spectral", "krylov")
    ]  # fmt: skip
    for name in flows[0].states:
        torch.testing.assert_close(flows[0].states[name], flows[1].states[name], rtol=0, atol=1e-11)
    torch.testing.assert_close(flows[0].events.time, flows[1].events.time, rtol=0, atol=1e-10)
    assert len(flows[0].events.slides) > 0


def test_a_batch_is_its_samples(deep):
    problem = deep[2]
    start = problem.start("random", torch.Generator().manual_seed(3))
    together = ts.heat_flow(problem, start, until=10.0)
    for s in (0, 7):
        index = torch.tensor([s])
        alone = ts.heat_flow(problem.samples(index), start.samples(index), until=10.0)
        torch.testing.assert_close(alone.energy[:, 0], together.energy[:, s], rtol=1e-9, atol=1e-12)
        assert len(alone.events) == len(together.events.of_sample(s))


def test_the_flow_ends_at_the_forward_pass_and_at_verified_stationary_points(deep):
    net, free, held = deep
    flow = ts.heat_flow(free, until=None)
    torch.testing.assert_close(flow.output, net(free.values["input"]).detach(), atol=1e-7, rtol=0)
    for problem in (free, held):
        flow = ts.heat_flow(problem, until=None, generator=torch.Generator().manual_seed(4))
        assert flow.outcome is ts.Outcome.SETTLED
        assert float(ts.stationarity(problem, flow.final).distance.max()) <= 1e-10
        assert bool(flow.stopped.isfinite().all())
        torch.testing.assert_close(flow.energy[-1], problem.energy(flow.final))


class TwoGates(nn.Module):
    """A value that ReLU and Hardtanh read, the second through a permutation and in part."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.out = nn.Linear(2, 4), nn.Linear(8, 2)

    def forward(self, x):
        h = self.first(x)
        clipped = torch.nn.functional.hardtanh(h.reshape(-1, 2, 2).transpose(1, 2))
        return self.out(torch.cat([torch.relu(h), clipped.flatten(1)], 1))


def test_walls_have_the_breakpoints_of_every_gate_that_reads_them():
    """Coordinates that are held are no walls; thresholds are unions, in the order of the vector."""
    x = randn(5, 3, 2)
    sheaf = ts.encode(fill(TwoGates(), 6), x)
    problem = ts.hold(sheaf, x).pin(ts.Pin("first", 0.5, where=[1]))
    walls = Walls.of(problem)
    assert walls.neurons.tolist() == [0, 2, 3]
    assert set(walls.vertices) == {"first"}
    start = problem.free.slices["first"].start
    assert walls.index.tolist() == [start, start + 1, start + 2]
    assert walls.thresholds.tolist() == [[-1.0, 0.0, 1.0]] * 3
    read = {tuple(r.wall.tolist()) for r in walls.readers}
    assert read == {(0, -1, 1, 2), (0, 1, -1, 2)}  # held: −1; the second transposed


def test_walls_of_different_gates_have_thresholds_of_their_own():
    x = randn(5, 3, 2)
    net = nn.Sequential(
        nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2), nn.Hardtanh(-2.0, 0.5), nn.Linear(2, 1)
    )
    walls = Walls.of(ts.hold(ts.encode(fill(net, 6), x), x))
    inf = torch.inf
    assert walls.thresholds.tolist() == [[0.0, inf]] * 3 + [[-2.0, 0.5]] * 2
    assert walls.vertices == ("0", "0", "0", "2", "2")
    assert walls.neurons.tolist() == [0, 1, 2, 0, 1]


def test_an_euler_step_that_switches_no_gate_changes_the_energy_by_its_formula(deep):
    """E⁺ = E − αdt ‖g‖² + ½(αdt)² gᵀLg, a fall below 2/(αλ_max); through a wall E may rise."""
    problem, alpha, rises = deep[2], 2.0, 0
    walls = Walls.of(problem)
    c = problem.start("random", torch.Generator().manual_seed(11))
    step = alpha * step_bound(problem, c, walls, alpha) / 2
    for _ in range(200):
        g = problem.gradient(c)
        square, bend = g.square_norm(), g.dot(problem.laplacian(c).apply(g))
        energy, state = problem.energy(c), walls.state(problem.free.flatten(c))
        c = euler_step(problem, c, step / alpha, alpha)
        change = problem.energy(c) - energy
        inside = (walls.state(problem.free.flatten(c)) == state).all(1)
        wanted = -step * square + step**2 / 2 * bend
        torch.testing.assert_close(change[inside], wanted[inside], rtol=1e-9, atol=1e-13)
        assert bool((change[inside] <= 1e-14).all())
        rises += int((change[~inside] > 1e-6).sum())
    assert rises > 0


def test_euler_with_the_output_held_never_becomes_stationary(deep):
    """The run that must not stop: chatter keeps dist(0, ∂E) large."""
    flow = ts.heat_flow(deep[2], until=20.0, method="euler", dt=0.02, times=5)
    assert bool(flow.stopped.isinf().any())
    assert float(flow.stationarity.max()) > 1e-3


def test_held_coordinates_do_not_move_and_pins_of_all_kinds_hold(deep):
    _, free, _ = deep
    problem = free.pin(
        ts.Pin("1", 0.3, where=[0, 2]), ts.Pin("0", -0.2, where=[1]), ts.Pin("2", 1.0, weight=2.5)
    )
    generator = torch.Generator().manual_seed(8)
    flow = ts.heat_flow(problem, until=None, record="states", method="exact", generator=generator)
    assert bool((flow.states["1"][:, :, [0, 2]] == 0.3).all())
    assert bool((flow.states["0"][:, :, 1] == -0.2).all())
    assert float(flow.stationarity.max()) <= 1e-10
    wanted = ts.harmonic_extension(problem, start=flow.final)
    # The solver eliminates z exactly, so from a local minimum it may step to a lower one.
    assert bool((wanted.energy <= flow.energy[-1] + 1e-9).all())
    same = (wanted.energy - flow.energy[-1]).abs() < 1e-7
    assert int(same.sum()) >= 4


def test_records_hold_what_was_asked_for(deep):
    problem = deep[1]
    some = ts.heat_flow(problem, until=1.0, times=5, record={"1": [0, 3], "output": None})
    assert {n: tuple(t.shape) for n, t in some.states.items()} == {"1": (5, 12, 2), "4": (5, 12, 1)}
    assert ts.heat_flow(problem, until=1.0, times=5).states == {}
    total = torch.stack(list(some.edge_energy.values())).sum(0)
    torch.testing.assert_close(total, some.energy)


def test_events_replay_to_the_final_pattern(deep):
    flow = ts.heat_flow(deep[2], until=None, generator=torch.Generator().manual_seed(6))
    gates = ts.stationarity(deep[2], flow.final).gates
    sliding = gates.sliding
    for s in range(12):
        starts, states = flow.states_of_walls(s)
        assert bool((starts[1:] > starts[:-1]).all())
        assert int((states[-1] % 2 == 1).sum()) == int(sliding[s])


def test_leaky_hardtanh_and_relu6_flow_to_stationary_points():
    torch.manual_seed(9)
    x = torch.randn(6, 2, dtype=torch.float64)
    for gate in (lambda: torch.nn.LeakyReLU(0.2), torch.nn.Hardtanh, torch.nn.ReLU6):
        net = mlp(2, 5, 1, gate=gate)
        problem = ts.hold(ts.encode(net, x), x).pin(
            ts.Pin("output", 3 * torch.randn(6, 1).double())
        )
        flow = ts.heat_flow(problem, problem.clamp(4 * problem.start("random")), until=None)
        assert flow.outcome is ts.Outcome.SETTLED
        assert bool((flow.energy[1:] <= flow.energy[:-1] + 1e-12).all())
        assert float(ts.stationarity(problem, flow.final).distance.max()) <= 1e-10


def test_the_single_euler_step_is_the_formula_of_the_paper():
    """z += αdt[−(z − Wx − b) − R(z − a)], a += αdt[−(a − Rz) − W₂ᵀ(W₂a + b₂ − z₂)]."""
    torch.manual_seed(2)
    net = mlp(2, 4, 1)
    x = torch.randn(3, 2, dtype=torch.float64)
    problem = ts.hold(ts.encode(net, x), x)
    c = problem.start("random")
    new = euler_step(problem, c, 0.01, 2.0)
    w1, b1, w2, b2 = (p.detach() for p in net.parameters())
    z, a, out = c["0"], c["1"], c["2"]
    on = (z >= 0).double()
    miss = a @ w2.T + b2 - out
    torch.testing.assert_close(new["0"], z + 0.02 * (x @ w1.T + b1 - z - on * (z - a)))
    torch.testing.assert_close(new["1"], a + 0.02 * (on * z - a - miss @ w2))
    torch.testing.assert_close(new["2"], out + 0.02 * miss)


def test_a_tight_step_limit_is_reported_and_float32_flows():
    torch.manual_seed(3)
    net = mlp(2, 4, 1)
    x = torch.randn(3, 2, dtype=torch.float64)
    problem = ts.hold(ts.encode(net, x), x)
    start = problem.clamp(5 * problem.start("random"))
    with pytest.raises(ts.ConvergenceError, match="step limit"):
        ts.heat_flow(problem, start, until=None, max_steps=1)
    for method in ("exact", "euler", "ode"):  # `until` came first, as was asked
        assert ts.heat_flow(problem, start, 0.1, method).outcome is ts.Outcome.COMPLETED
    single = net.float()
    small = ts.hold(ts.encode(single, x.float()), x.float())
    flow = ts.heat_flow(small, until=None)
    assert flow.energy.dtype == torch.float32
    np.testing.assert_allclose(flow.output, single(x.float()).detach(), atol=1e-3)
    assert math.isfinite(float(flow.stopped.max()))


@pytest.mark.parametrize("method", ["exact", "euler", "ode"])
def test_times_are_float64_whatever_the_network_is(method):
    x = randn(1, 2, 2, dtype=torch.float32)
    problem = ts.hold(ts.encode(relu_mlp([2, 3, 1], 1, dtype=torch.float32), x), x)
    flow = ts.heat_flow(problem, "zeros", None, method)
    assert bool(flow.stopped.isfinite().all())
    assert {t.dtype for t in (flow.times, flow.stopped, flow.events.time)} == {torch.float64}
