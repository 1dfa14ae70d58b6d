"""Held networks of every kind reach stationarity, from any start, alone or in a batch."""

import itertools
import math
import random

import pytest
import torch
from torch import nn

import torchsheaf as ts
from tests.reference.held import MODELS, OVERLAPPING, PreActivation, falls, held_output, held_pools
from tests.reference.networks import fill, randn, relu_mlp
from torchsheaf.harmonic import extension
from torchsheaf.harmonic.solver import HarmonicSolver, Solution
from torchsheaf.outcome import Outcome


@pytest.mark.parametrize("name", MODELS)
def test_every_sample_arrives_and_the_energy_never_rises(name):
    found = ts.harmonic_extension(held_output(name))
    assert float(found.stationarity.max()) <= 1.1e-8
    trace = torch.tensor(found.energies)
    assert bool((trace.diff() <= 1e-12 * trace[0]).all())


def random_problem(seed: int) -> ts.Problem:
    """Widths, gates, free inputs, targets, hidden pins and their weights all drawn."""
    rng, source = random.Random(seed), torch.Generator().manual_seed(seed)
    widths = [rng.randint(1, 5), *(rng.randint(1, 10) for _ in range(rng.randint(1, 4))), 2]
    gates = (nn.ReLU(), nn.LeakyReLU(0.1), nn.Hardtanh())
    net = relu_mlp(widths, seed)
    for i in range(1, len(net), 2):
        net[i] = rng.choice(gates)
    x = torch.randn(20, widths[0], generator=source, dtype=torch.float64)
    y = 10 ** rng.uniform(-1, 2) * torch.randn(20, 2, generator=source, dtype=torch.float64)
    given = torch.rand(widths[0], generator=source) < rng.choice((0.5, 2.0))
    problem = ts.hold(ts.encode(net, x), x, where=given if bool(given.any()) else None)

    def weight() -> float:
        return rng.choice((math.inf, 10 ** rng.uniform(-2, 2)))

    problem = problem.pin(ts.Pin("output", y, weight=weight()))
    for vertex in rng.sample(list(problem.sheaf.edges)[:-1], rng.randint(0, 2)):
        index = rng.randrange(problem.sheaf.vertices[vertex].dim)
        pin = ts.Pin(vertex, rng.uniform(-2, 2), where=[index], weight=weight())
        problem = problem.pin(pin)
    return problem


@pytest.mark.parametrize("seed", range(30))
def test_random_held_networks_settle(seed: int) -> None:
    problem = random_problem(seed)
    found = ts.harmonic_extension(problem, solver="newton", start="forward", max_passes=5000)
    trace = torch.tensor(found.energies)
    assert bool((trace.diff() <= 1e-12 * trace[0]).all())


@pytest.mark.parametrize("seed", [3, 4])
@pytest.mark.parametrize("name", OVERLAPPING)
def test_overlapping_windows_settle_where_no_direction_descends(name: str, seed: int) -> None:
    """Ties of overlapping windows chain; a stationary point must be a local minimum there too."""
    problem = held_pools(name, seed)
    found = ts.harmonic_extension(problem)
    assert float(found.stationarity.max()) <= 1.1e-8
    trace = torch.tensor(found.energies)
    assert bool((trace.diff() <= 1e-12 * trace[0]).all())
    assert int(found.gates.sliding.sum()) > 0
    assert not bool(falls(problem, found.cochain, probes=20).any())


@pytest.mark.parametrize("weight", [math.inf, 3.0])
@pytest.mark.parametrize("name", ["stride 1", "two pools"])
def test_entries_of_overlapping_windows_can_be_pinned(name: str, weight: float) -> None:
    problem = held_pools(name, 5)
    vertex = "1" if name == "stride 1" else next(iter(problem.sheaf.edges))
    where = list(range(0, problem.sheaf.vertices[vertex].dim, 7))
    values = randn(8, 12, len(where))
    found = ts.harmonic_extension(problem.pin(ts.Pin(vertex, values, where=where, weight=weight)))
    assert float(found.stationarity.max()) <= 1.1e-8
    if weight == math.inf:
        assert torch.equal(found.cochain[vertex].flatten(1)[:, where], values)


@pytest.mark.parametrize("name", ["mlp", "pre-activation", "relu, then pool", "tanh"])
def test_hidden_pins_hard_and_soft_arrive_too(name):
    problem = held_output(name)
    vertices = list(problem.sheaf.edges)
    problem = problem.pin(
        ts.Pin(vertices[0], 0.5, where=[0, 3]), ts.Pin(vertices[1], 0.3, where=[1], weight=2.0)
    )
    found = ts.harmonic_extension(problem)
    assert float(found.stationarity.max()) <= 1.1e-8
    assert bool((found.cochain[vertices[0]].flatten(1)[:, [0, 3]] == 0.5).all())


@pytest.mark.parametrize("name", ["mlp", "pre-activation", "pool, then relu"])
def test_a_sample_alone_and_in_a_batch_have_the_same_equilibrium(name):
    problem = held_output(name)
    together = ts.harmonic_extension(problem, start="forward")
    alone = ts.harmonic_extension(problem.samples(torch.tensor([4])), start="forward")
    torch.testing.assert_close(alone.energy, together.energy[4:5], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("start", ["zeros", "random", "forward", "auto"])
def test_every_start_arrives(start):
    found = ts.harmonic_extension(held_output("mlp"), start=start)
    assert float(found.stationarity.max()) <= 1.1e-8


def stress(name: str) -> ts.Problem:
    widths, scale, target = [3, 6, 6, 2], 1.0, 1.0
    if name == "narrow and deep":
        widths = [3, *[1] * 20, 2]
    if name == "wide":
        widths = [3, 120, 2]
    if name == "width 4, depth 40":
        widths = [3, *[4] * 40, 2]
    if name == "width 16, depth 50":
        widths = [3, *[16] * 50, 2]
    net = relu_mlp(widths, 2)
    x = randn(1, 10, 3)
    y = randn(2, 10, 2)
    if name == "zero input, zero bias":
        x = torch.zeros_like(x)
        with torch.no_grad():
            for layer in net[::2]:
                layer.bias.zero_()
    if name == "dead gates":
        with torch.no_grad():
            net[0].bias.fill_(-100)
    if name == "integer ties":
        with torch.no_grad():
            for p in net.parameters():
                p.copy_((3 * p).round())
        x, y = x.round(), y.round()
    if name == "target the forward pass":
        y = net(x).detach()
    if name == "double weights":
        scale = 2.0
    if name == "fourfold weights":
        widths, scale = [3, 16, 16, 16, 16, 2], 4.0
        net = relu_mlp(widths, 2)
    if name == "far targets":
        target = -100.0
    if name == "farther targets":
        target = 1000.0
    if name == "duplicates":
        x, y = x[:1].repeat(10, 1), y[:1].repeat(10, 1)
    with torch.no_grad():
        for layer in net[::2]:
            layer.weight *= scale
    return ts.hold(ts.encode(net, x), x).pin(ts.Pin("output", target * y))


CASES = (
    "narrow and deep", "wide", "zero input, zero bias", "dead gates", "integer ties",
    "target the forward pass", "double weights", "fourfold weights", "far targets",
    "farther targets", "duplicates", "width 4, depth 40", "width 16, depth 50",
)  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_stress(name):
    problem = stress(name)
    found = ts.harmonic_extension(problem)
    scale = max(1.0, float(found.energy.max()) ** 0.5)
    assert float(found.stationarity.max()) <= 1.1e-8 * scale
    if name == "target the forward pass":
        assert float(found.energy.max()) <= 1e-25


def test_float32_reaches_its_own_tolerance():
    net = relu_mlp([3, 8, 8, 2], 0, dtype=torch.float32)
    x, y = randn(1, 20, 3, dtype=torch.float32), randn(2, 20, 2, dtype=torch.float32)
    problem = ts.hold(ts.encode(net, x), x).pin(ts.Pin("output", y))
    found = ts.harmonic_extension(problem)
    assert found.cochain["0"].dtype == torch.float32
    assert float(found.stationarity.max()) <= 1e-4


def test_an_exact_model_is_solved_without_a_restart():
    """Without gates the model is exact: one gradient, at most rank + 1 steps of conjugate
    gradients at two sweeps each, one test of arrival, and M at the start."""
    net = fill(nn.Sequential(nn.Linear(3, 6), nn.Linear(6, 6), nn.Linear(6, 2)), 1)
    x, y = randn(1, 50, 3), randn(2, 50, 2)
    problem = ts.hold(ts.encode(net, x), x).pin(ts.Pin("output", y))
    assert ts.harmonic_extension(problem).passes <= 1 + 1 + 2 * 3 + 1


@pytest.mark.parametrize(("dtype", "tol"), [(torch.float32, 1e-9), (torch.float64, 1e-17)])
def test_a_tolerance_below_the_rounding_floor_is_noticed(dtype, tol):
    net = relu_mlp([3, 8, 8, 2], 0, dtype=dtype)
    x, y = randn(1, 20, 3, dtype=dtype), randn(2, 20, 2, dtype=dtype)
    problem = ts.hold(ts.encode(net, x), x).pin(ts.Pin("output", y))
    found = ts.harmonic_extension(problem, tol=tol, throw=False, solver="newton")
    assert found.outcome is Outcome.STALLED
    assert found.passes < 2000
    assert float(found.stationarity.max()) < 1e3 * torch.finfo(dtype).eps


def test_a_fixed_batch_size_is_respected():
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 5), nn.Linear(5, 2)

        def forward(self, x):
            return self.b(torch.relu(self.a(x)).reshape(4, 5))

    x, y = randn(1, 4, 3), randn(2, 4, 2)
    problem = ts.hold(ts.encode(fill(Fixed(), 0), x), x).pin(ts.Pin("output", y))
    found = ts.harmonic_extension(problem, starts=3)
    assert float(found.stationarity.max()) <= 1.1e-8


def test_warm_starts_take_at_most_half_the_sweeps():
    net, x, y = relu_mlp([3, 10, 10, 10, 2], 4), randn(1, 60, 3), randn(2, 60, 2)
    problem = ts.hold(ts.encode(net, x), x).pin(ts.Pin("output", y))
    before = ts.harmonic_extension(problem).cochain
    with torch.no_grad():
        for i, p in enumerate(net.parameters()):
            p += 1e-3 * randn(10 + i, *p.shape)
    cold = ts.harmonic_extension(problem)
    warm = ts.harmonic_extension(problem, start=before)
    assert warm.passes <= cold.passes / 2


def test_sweeps_grow_at_most_linearly_with_depth():
    sweeps = []
    for layers in (2, 8):
        net = relu_mlp([4, *[10] * layers, 2], 1)
        x, y = randn(1, 40, 4), randn(2, 40, 2)
        problem = ts.hold(ts.encode(net, x), x).pin(ts.Pin("output", y))
        sweeps.append(ts.harmonic_extension(problem).passes)
    assert sweeps[1] <= 4 * sweeps[0]


def test_a_step_limit_says_what_was_reached():
    with pytest.raises(ts.ConvergenceError, match="newton left .*worst stationarity"):
        ts.harmonic_extension(held_output("mlp"), max_passes=4)


def test_no_number_of_starts_below_one():
    with pytest.raises(ValueError, match="starts is 0"):
        ts.harmonic_extension(held_output("mlp"), starts=0)


def test_conflicting_pins_are_both_named():
    problem = held_output("mlp")
    with pytest.raises(ValueError, match=r"(?s)where=\[1\].*conflicts.*where=\[0, 1\]"):
        problem.pin(ts.Pin("0", 1.0, where=[0, 1]), ts.Pin("0", 2.0, where=[1]))


def test_edge_weights_count_in_the_solver():
    net, x, y = relu_mlp([2, 5, 5, 1], 0), randn(1, 6, 2), randn(2, 6, 1)
    weights = {"0": 3.0, "1": 0.5, "2": 2.0, "4": 4.0}
    problem = ts.hold(ts.encode(net, x), x, weights=weights).pin(ts.Pin("output", y))
    found = ts.harmonic_extension(problem)
    assert float(found.stationarity.max()) <= 1.1e-8
    plain = ts.harmonic_extension(ts.hold(problem.sheaf, x).pin(ts.Pin("output", y)))
    assert not math.isclose(float(found.energy.sum()), float(plain.energy.sum()), rel_tol=1e-3)


def test_float32_takes_no_more_passes_than_float64() -> None:
    """Its tolerance is looser, and rounding of the energy hides no frozen model that is exact."""
    passes = {torch.float32: 0, torch.float64: 0}
    for seed, dtype in itertools.product(range(6), passes):
        net = relu_mlp([2, 16, 16, 1], seed, dtype=dtype)
        x, y = (randn(seed + n, 60, m, dtype=dtype) for n, m in ((100, 2), (200, 1)))
        problem = ts.hold(ts.encode(net, x), x).pin(ts.Pin("output", 2 * y))
        passes[dtype] += ts.harmonic_extension(problem).passes
    assert passes[torch.float32] <= passes[torch.float64]


class Claims(HarmonicSolver):
    """Moves nothing and says in turn what it is told to say, at five passes each."""

    name = "claims"

    def __init__(self, *outcomes: Outcome) -> None:
        self.outcomes, self.limits = iter(outcomes), []

    def refuses(self, problem):
        return None

    def solve(self, problem, start, tol, max_passes, tell=lambda share: None):
        self.limits.append(max_passes)
        settled = torch.ones(problem.batch, dtype=torch.bool)
        return Solution(start, settled, 5, next(self.outcomes))


def nearly_consistent() -> ts.Problem:
    """Held at its own output, up to one sample that is asked for another."""
    x = randn(2, 4, 3)
    forward = ts.hold(ts.encode(relu_mlp([3, 5, 2], 1), x), x)
    asked = forward.start("forward")["2"].clone()
    asked[2] += 1
    return forward.pin(ts.Pin("output", asked))


def test_a_solver_is_not_believed_when_one_sample_did_not_arrive(monkeypatch):
    monkeypatch.setattr(extension, "SOLVERS", (Claims(Outcome.SETTLED, Outcome.SETTLED),))
    problem = nearly_consistent()
    found = ts.harmonic_extension(problem, start="forward", throw=False)
    assert found.outcome is Outcome.STALLED
    assert (found.stationarity > 0).tolist() == [False, False, True, False]
    with pytest.raises(ts.ConvergenceError, match="claims left 1 of 4 samples above tol"):
        ts.harmonic_extension(problem, start="forward")


def test_the_passes_of_a_second_try_are_counted_with_the_first(monkeypatch):
    solver = Claims(Outcome.STALLED, Outcome.SETTLED)
    monkeypatch.setattr(extension, "SOLVERS", (solver,))
    found = ts.harmonic_extension(nearly_consistent(), start="forward", max_passes=3000)
    first, second = solver.limits
    assert first == 3000
    between = first - 5 - second
    assert 0 < between <= extension.FALL_BACK
    assert found.passes == 5 + between + 5
    assert float(found.stationarity.max()) <= 1e-8  # by block descent


class Bounded(nn.Module):
    """A clamp between two linear maps."""

    def __init__(self, low: float | None, high: float | None) -> None:
        super().__init__()
        self.first, self.last, self.bounds = nn.Linear(3, 5), nn.Linear(5, 2), (low, high)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.clamp(self.first(x), *self.bounds))


@pytest.mark.parametrize(
    ("bounds", "same"),
    [
        ((0.0, math.inf), (0.0, None)),
        ((-math.inf, 1.0), (None, 1.0)),
        ((-math.inf, math.inf), (-1e30, None)),  # no bound at all
        ((0.5, -0.5), (-0.5, -0.5)),  # crossed bounds leave the upper one
    ],
)
def test_a_bound_at_infinity_is_none(bounds, same):
    x, y = randn(1, 12, 3), randn(2, 12, 2)
    rest, on_the_way = [], []
    for pair in (bounds, same):
        problem = ts.hold(ts.encode(fill(Bounded(*pair), 3), x), x).pin(ts.Pin("output", y))
        rest.append(ts.harmonic_extension(problem, start="forward").energy)
        on_the_way.append(ts.heat_flow(problem, start="forward", until=1.0).energy[-1])
    torch.testing.assert_close(*rest, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(*on_the_way, atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("widths", [[3, 12, 12, 2], [3, 8, 8, 8, 2]])
@pytest.mark.parametrize("tol", [1e-1, 1e-2, 1e-3, 1e-4])
def test_a_loose_tolerance_is_kept_too(widths: list[int], tol: float) -> None:
    x, y = randn(3, 40, 3), 3 * randn(4, 40, 2)
    problem = ts.hold(ts.encode(relu_mlp(widths, len(widths) - 3), x), x).pin(ts.Pin("output", y))
    found = ts.harmonic_extension(problem, solver="newton", tol=tol)
    assert float(found.stationarity.max()) <= tol


def test_samples_that_cannot_arrive_are_not_called_settled() -> None:
    x, y = randn(3, 40, 3), 3 * randn(4, 40, 2)
    problem = ts.hold(ts.encode(relu_mlp([3, 12, 12, 2], 1), x), x).pin(ts.Pin("output", y))
    found = ts.harmonic_extension(problem, solver="newton", tol=1e-30, throw=False)
    assert found.outcome is Outcome.STALLED
    assert not bool(found.settled.any())


@pytest.mark.parametrize("name", ["tanh", "prelu", "pre-activation", "relu, then pool"])
def test_nor_do_they_use_up_all_passes(name: str) -> None:
    found = ts.harmonic_extension(held_output(name), tol=1e-30, throw=False, max_passes=2000)
    assert found.outcome is Outcome.STALLED
    assert not bool(found.settled.any())


def test_a_sample_is_settled_when_its_last_step_changed_no_gate() -> None:
    """A loose tolerance may end a run right behind a kink, a tight one does not."""
    x, y = randn(3, 20, 3), 3 * randn(4, 20, 2)
    problem = ts.hold(ts.encode(fill(PreActivation(), 2), x), x).pin(ts.Pin("output", y))
    loose, tight = (ts.harmonic_extension(problem, solver="newton", tol=t) for t in (1e-1, 1e-8))
    assert loose.outcome is tight.outcome is Outcome.SETTLED
    assert not bool(loose.settled.all())
    assert bool(tight.settled.all())
