"""The independent stationarity test, on points where the answer is known by hand."""

import pytest
import torch
from torch import Tensor, nn

import torchsheaf as ts
from tests.reference.networks import randn
from torchsheaf.boundary.ties import Maxima, project_to_simplex
from torchsheaf.boundary.windows import Windows
from torchsheaf.cochain import Cochain
from torchsheaf.network import Gate


def one_gate(weight: float = 1.0) -> nn.Sequential:
    """x → z = x → a = relu(z) → y = w a, all scalars."""
    net = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1)).double()
    with torch.no_grad():
        net[0].weight.fill_(1)
        net[2].weight.fill_(weight)
        net[0].bias.zero_()
        net[2].bias.zero_()
    return net


def at(x: float, z: float, a: float, y: float) -> ts.boundary.Stationarity:
    sample = torch.tensor([[x]], dtype=torch.float64)
    problem = ts.hold(ts.encode(one_gate(), sample), sample).pin(ts.Pin("output", y))
    values = {"input": x, "0": z, "1": a, "2": y}
    c = Cochain({n: torch.tensor([[v]], dtype=torch.float64) for n, v in values.items()})
    return ts.stationarity(problem, c)


def test_a_sliding_gate_is_stationary():
    # c = 1, y = −6: a = y/2 = −3 settles E in a; z = 0 lies between both pulls (1 > 0 > 1 − 3)
    found = at(1.0, 0.0, -3.0, -6.0)
    assert float(found.distance) == 0
    assert int(found.gates.sliding) == 1


def test_a_downward_kink_is_not_stationary_although_clarke_would_say_so():
    # c = −1, a = 1: D⁻ = z − c = 1 > 0 and D⁺ = 1 − (a − 0) = … both sides must be looked at
    found = at(-1.0, 0.0, 3.0, 6.0)
    # D⁻ = 0 + 1 = 1, D⁺ = 1 − 3 = −2: Clarke's hull [−2, 1] contains 0, yet E falls both ways
    assert float(found.distance) == pytest.approx(1.0)
    assert int(found.gates.sliding) == 0


def test_a_kink_that_is_left_to_one_side_does_not_slide():
    # a = −0.5 at rest between 0 and y: D⁺ = D⁻ + 0.5, of one sign where |z − c| = 1
    for x, distance in ((1.0, 0.5), (-1.0, 1.0)):
        found = at(x, 0.0, -0.5, -1.0)
        assert float(found.distance) == pytest.approx(distance)
        assert int(found.gates.sliding) == 0


def test_a_point_off_the_kink_is_judged_by_its_gradient():
    assert float(at(1.0, 1.0, 1.0, 1.0).distance) == 0
    # E = ½(z−1)² + ½(a−z)² + ½(1−a)²: at (2, 1) the z-derivative is 1 + 1, the a-derivative −1
    assert float(at(1.0, 2.0, 1.0, 1.0).distance) == pytest.approx(5**0.5)


@pytest.mark.parametrize(
    ("alpha", "x", "a", "distance", "sliding"),
    [
        (2.0, -3.0, 2.0, 0.0, 1),  # F⁻ = c + αa = 1 > 0 > F⁺ = c + a = −1
        (2.0, -1.0, 2.0, 1.0, 0),  # 3 and 1: it rises
        (2.0, -5.0, 2.0, 1.0, 0),  # −1 and −3: it falls
        (0.5, -1.5, 2.0, 0.5, 0),  # −0.5 and 0.5: a downward kink
        (1.0, -2.0, 2.0, 0.0, 0),  # no kink: a critical point of a smooth function
    ],
)
def test_a_smooth_activation_slides_on_its_kink(
    alpha: float, x: float, a: float, distance: float, sliding: int
) -> None:
    net = one_gate()
    net[1] = nn.ELU(alpha)
    sample = torch.tensor([[x]], dtype=torch.float64)
    problem = ts.hold(ts.encode(net, sample), sample).pin(ts.Pin("output", 2 * a))
    values = {"input": x, "0": 0.0, "1": a, "2": 2 * a}
    c = Cochain({n: torch.tensor([[v]], dtype=torch.float64) for n, v in values.items()})
    found = ts.stationarity(problem, c)
    assert float(found.distance) == pytest.approx(distance, abs=1e-15)
    assert int(found.gates.sliding) == sliding
    if sliding:
        near = Cochain(dict(c) | {"0": torch.full_like(sample, 0.3)})
        solved = ts.harmonic_extension(problem, start=near)
        assert float(solved.cochain["0"]) == 0
        assert float(solved.energy) == pytest.approx(8.5)


class Maximum(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.max_pool1d(1.0 * x, 2)


def pooled(values: list[float], held: float, *pins: tuple[int, float]) -> ts.boundary.Stationarity:
    x = torch.tensor([[[1.0, 1.0]]], dtype=torch.float64)
    sheaf = ts.encode(Maximum(), x)
    first, last = list(sheaf.edges)
    problem = ts.hold(sheaf, x).pin(ts.Pin(last, held))
    problem = problem.pin(*(ts.Pin(first, value, where=[i]) for i, value in pins))
    c = {"input": x, first: torch.tensor([[values]], dtype=torch.float64)}
    c[last] = torch.tensor([[[held]]], dtype=torch.float64)
    return ts.stationarity(problem, Cochain(c))


def test_a_tie_that_shares_the_pull_is_stationary():
    # two inputs at m pulled to 1 each, maximum pulled to 0.4: 2(m − 1) + (m − 0.4) = 0, m = 0.8
    found = pooled([0.8, 0.8], 0.4)
    assert float(found.distance) <= 1e-15
    assert int(found.gates.sliding) == 1


def test_a_tie_pulled_up_is_not_stationary():
    # maximum pulled to 1.6: at the tie (1, 1) each input would rather rise alone
    assert float(pooled([1.0, 1.0], 1.6).distance) == pytest.approx(0.6)
    assert float(pooled([1.3, 1.0], 1.6).distance) <= 1e-15


def test_a_tie_at_the_wrong_level_is_not_stationary():
    # λ = (0.25, 0.25) of the pull 0.5 against own derivatives −0.1: 0.15 left on each
    assert float(pooled([0.9, 0.9], 0.4).distance) == pytest.approx(0.15 * 2**0.5)


def test_a_held_entry_takes_what_the_free_one_does_not_want():
    # at m ≤ 0.7 the free entry takes the whole pull m − 0.4; at 0.8 the half that it needs
    for m, distance in ((0.5, 0.4), (0.65, 0.1), (0.8, 0.0), (0.95, 0.0)):
        found = pooled([m, m], 0.4, (0, m))
        assert float(found.distance) == pytest.approx(distance, abs=1e-12), m


class Relabelled(nn.Module):
    """The gate reads its pre-activation transposed and flattened."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(1, 4, bias=False)
        self.out = nn.Linear(4, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.inner(x).reshape(-1, 2, 2).transpose(1, 2).flatten(1)
        return self.out(torch.relu(h))


def test_a_gate_behind_a_relabelling_is_seen_sliding():
    net = Relabelled().double()
    with torch.no_grad():
        net.inner.weight.fill_(1)
        net.out.weight.fill_(1)
    x = torch.ones(1, 1, dtype=torch.float64)
    problem = ts.hold(ts.encode(net, x), x).pin(ts.Pin("output", -40.0))
    found = ts.harmonic_extension(problem)
    assert float(found.stationarity.max()) <= 1e-8
    assert int(found.gates.sliding) == 4


def test_division_is_the_projection_onto_the_simplex():
    own = torch.tensor([[-1.0, -1.0, 2.0], [-3.0, 0.5, -1.0]], dtype=torch.float64)
    valid = torch.tensor([[True, True, True], [True, True, False]])
    force = torch.tensor([1.0, 2.0], dtype=torch.float64)
    share = project_to_simplex(-own, valid, force)
    assert bool((share >= 0).all())
    torch.testing.assert_close(share.sum(1), force)
    torch.testing.assert_close(share[0], torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64))
    torch.testing.assert_close(share[1], torch.tensor([2.0, 0.0, 0.0], dtype=torch.float64))


class TwoMaxima(nn.Module):
    """h = x, and two maxima of the same two entries."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = 1.0 * x
        return h.amax(1, keepdim=True), h.amax(1, keepdim=True)


def two_maxima(own: list[float], down: float, up: float) -> tuple[ts.Problem, Cochain]:
    """h = (0, 0) with own derivatives −x, one maximum pulled down and the other up."""
    x = -torch.tensor([own], dtype=torch.float64)
    sheaf = ts.encode(TwoMaxima(), x)
    h, first, second = list(sheaf.edges)
    problem = ts.hold(sheaf, x).pin(ts.Pin(first, -down), ts.Pin(second, up))
    zero = torch.zeros(1, 2, dtype=torch.float64)
    held = {first: torch.full_like(zero[:, :1], -down), second: torch.full_like(zero[:, :1], up)}
    return problem, Cochain({"input": x, h: zero, **held})


def test_a_tie_from_which_one_choice_descends_is_not_stationary():
    # 2 against 3: were entry 0 to take the upward pull, (1, 1) of the downward one would settle
    # all of it; yet entry 1 rises by itself: −1 + 2 − 3 = −2
    problem, c = two_maxima([2.0, -1.0], 2.0, 3.0)
    assert float(ts.stationarity(problem, c).distance) >= 2
    found = ts.harmonic_extension(problem, start=c)
    assert float(found.energy) < float(problem.energy(c)) - 0.5
    assert float(found.stationarity) <= 1e-8


def test_a_tie_from_which_no_choice_descends_is_stationary():
    # 3 against 2: the kink is upward on the whole, and each choice has a division: (2.3, 0.7)
    # where entry 0 takes the upward pull, (0.3, 2.7) where entry 1 does
    problem, c = two_maxima([-0.3, -0.7], 3.0, 2.0)
    assert float(ts.stationarity(problem, c).distance) <= 1e-14
    assert float(ts.harmonic_extension(problem, start=c).energy) == float(problem.energy(c))


class Repeated(nn.Module):
    """A maximum in which every entry stands twice, beside the maximum and the minimum."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = 2.0 * x
        twice = h.unsqueeze(1).expand(-1, 2, 4).reshape(-1, 8)
        return twice.amax(1, keepdim=True), h.amax(1, keepdim=True), h.amin(1, keepdim=True)


def test_entries_that_stand_twice_in_a_window_tie_with_themselves():
    x = randn(3, 5, 4)
    sheaf = ts.encode(Repeated(), x)
    first, *outputs = list(sheaf.edges)
    pins = [ts.Pin(v, value) for v, value in zip(outputs, (-1.0, 2.0, 1.0), strict=True)]
    problem = ts.hold(sheaf, x).pin(*pins)
    start = problem.start("forward")
    start = Cochain({n: torch.zeros_like(v) if n == first else v for n, v in start.items()})
    assert float(ts.stationarity(problem, start).distance.min()) > 0.1
    found = ts.harmonic_extension(problem, start=start)
    assert float(found.stationarity.max()) <= 1e-8


POOLS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "1d": (nn.MaxPool1d(3, 2, 1), (2, 9)),
    "2d": (nn.MaxPool2d((2, 3), (1, 2), (0, 1)), (2, 5, 6)),
    "dilated": (nn.MaxPool2d(2, 1, 0, 3), (1, 6, 7)),
    "ceil": (nn.MaxPool2d(3, 2, ceil_mode=True), (2, 6, 6)),
    "3d": (nn.MaxPool3d(2, 1), (2, 3, 4, 3)),
    "adaptive": (nn.AdaptiveMaxPool2d((3, 2)), (2, 7, 5)),
}


class Pooled(nn.Module):
    def __init__(self, pool: nn.Module) -> None:
        super().__init__()
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(1.0 * x)


def operand_of(pool: nn.Module, z: Tensor) -> tuple[Gate, Tensor]:
    sheaf = ts.encode(Pooled(pool), z)
    node = list(sheaf.network.nodes)[-1]
    return next(iter(sheaf.network.gate_operands(node, {node.parents[0]: z}).values()))


@pytest.mark.parametrize("name", POOLS)
def test_windows_read_what_the_pool_reads(name: str) -> None:
    pool, shape = POOLS[name]
    z = randn(1, 4, *shape)
    gate, operand = operand_of(pool, z)
    windows = Windows.of(gate, operand)
    assert windows is not None
    seen = operand.flatten(1)[:, windows.inside].masked_fill(~windows.valid, -torch.inf)
    assert torch.equal(seen.amax(-1), pool(z).flatten(1))
    # every entry counts: raised above all others it is the maximum of each window that reads it
    for entry in range(operand[0].numel()):
        raised = operand.flatten(1).clone()
        raised[:, entry] = 100
        hit = (pool(raised.reshape(operand.shape)) == 100).flatten(1)
        assert torch.equal(hit[0], ((windows.inside == entry) & windows.valid).any(-1))
    chosen = windows.chosen(gate.select(operand))
    assert torch.equal(chosen, windows.tied(operand))
    assert torch.equal(windows.selection(chosen.int().argmax(-1), gate.select(operand)),
                       gate.select(operand))  # fmt: skip


def test_ties_of_pooling_windows_are_all_found():
    z = torch.tensor([[[[1.0, 1.0, 0.0, 2.0], [0.5, 1.0, 2.0, 2.0]]]], dtype=torch.float64)
    for pool, wanted in ((nn.MaxPool2d(2), [3, 3]), (nn.MaxPool2d(2, 1), [3, 1, 3])):
        gate, operand = operand_of(pool, z)
        windows = Windows.of(gate, operand)
        assert windows is not None
        assert windows.tied(operand).sum(-1).flatten().tolist() == wanted


@pytest.mark.parametrize("seed", range(5))
def test_pulls_of_overlapping_windows_are_divided_at_least_norm(seed: int) -> None:
    """The optimality conditions: who has a share moves with the fastest of its window."""
    source = torch.Generator().manual_seed(seed)
    inside = torch.stack([torch.randperm(12, generator=source)[:4] for _ in range(8)])
    tied = torch.rand(3, 8, 4, generator=source) < 0.8
    sign = torch.where(torch.rand(8, 1, generator=source) < 0.3, -1.0, 1.0).double()
    pull, own = randn(seed, 3, 8).abs(), randn(seed + 50, 3, 12)
    every = torch.ones_like(inside, dtype=torch.bool)
    maxima = Maxima(inside, every, sign, tied, tied, pull, inside)
    which = tied.any(-1, keepdim=True)
    share = maxima.divide(own, torch.zeros_like(own, dtype=torch.bool), which)
    assert bool((share >= 0).all())
    assert not bool(share[~tied].any())
    torch.testing.assert_close(share.sum(-1), pull * which[..., 0])
    velocity = maxima.gather(-(own + maxima.scatter(own, share)))
    fastest = velocity.masked_fill(~tied, -torch.inf).amax(-1, keepdim=True)
    assert float(torch.where(share > 1e-9, fastest - velocity, 0).max()) <= 1e-9
