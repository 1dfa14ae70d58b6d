"""The independent stationarity test, on points where the answer is known by hand."""

import pytest
import torch
from torch import Tensor, nn

import torchsheaf as ts
from torchsheaf.boundary.ties import Windows, divide, project_to_simplex
from torchsheaf.cochain import Cochain


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


def test_a_point_off_the_kink_is_judged_by_its_gradient():
    assert float(at(1.0, 1.0, 1.0, 1.0).distance) == 0
    # E = ½(z−1)² + ½(a−z)² + ½(1−a)²: at (2, 1) the z-derivative is 1 + 1, the a-derivative −1
    assert float(at(1.0, 2.0, 1.0, 1.0).distance) == pytest.approx(5**0.5)


class Maximum(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.max_pool1d(1.0 * x, 2)


def pooled(values: list[float], held: float) -> ts.boundary.Stationarity:
    x = torch.tensor([[[1.0, 1.0]]], dtype=torch.float64)
    sheaf = ts.encode(Maximum(), x)
    first, last = list(sheaf.edges)
    problem = ts.hold(sheaf, x).pin(ts.Pin(last, held))
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


def test_ties_of_pooling_windows_are_all_found():
    class Pool(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.max_pool2d(1.0 * x, 2)

    z = torch.tensor([[[[1.0, 1.0, 0.0, 2.0], [0.5, 1.0, 2.0, 2.0]]]], dtype=torch.float64)
    sheaf = ts.encode(Pool(), z)
    last = list(sheaf.network.nodes)[-1]
    values = {last.parents[0]: z}
    ((gate, operand),) = sheaf.network.gate_operands(last, values).values()
    windows = Windows.of(gate)
    assert windows is not None
    members, valid = windows.members(operand)
    assert valid.sum(0).flatten().tolist() == [3, 3]
    assert sorted(members[:, 0, 0, 0, 0].tolist()) == [0, 1, 5]
