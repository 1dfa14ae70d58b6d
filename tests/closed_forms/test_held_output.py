"""T5: the equilibrium with the output held, while no gate changes its mind; T4 by hand."""

import math

import pytest
import torch
from torch import Tensor

from tests.reference.dense import layers
from tests.reference.networks import linear_mlp, randn, relu_mlp
from torchsheaf import Cochain, Pin, Problem, encode, harmonic_extension, hold, stationarity

SOFT, HARD = 1.0, math.inf


def near_forward(net: torch.nn.Module, x: Tensor, size: float) -> tuple[Problem, Tensor]:
    """The input held, and targets close enough to the output that the pattern stays."""
    problem = hold(encode(net, x), x)
    with torch.no_grad():
        return problem, net(x) + size * randn(9, *net(x).shape)


def output_block(problem: Problem, at: Cochain) -> tuple[Tensor, Tensor]:
    """K = [L⁻¹]_out,out and the last rows of δ⁻¹, from the assembled matrices."""
    delta = problem.coboundary(at).to_dense()
    inverse = torch.linalg.inv(delta)
    n = problem.sheaf.vertices[problem.sheaf.outputs[0]].dim
    rows = inverse[:, -n:]
    return rows @ rows.mT, rows


@pytest.mark.parametrize("weight", [SOFT, HARD])
@pytest.mark.parametrize("make", [linear_mlp, relu_mlp])
@pytest.mark.parametrize("widths", [[2, 6, 1], [3, 5, 4, 2]])
def test_equilibrium_energy_and_residuals(weight: float, make, widths: list[int]) -> None:  # type: ignore[no-untyped-def]
    """E* = ½eᵀ(I+K)⁻¹e soft, ½eᵀK⁻¹e hard; edge residuals are −Jᵀ(I+K)⁻¹e, −JᵀK⁻¹e."""
    net, x = make(widths, 11), randn(12, 6, widths[0])
    problem, y = near_forward(net, x, 1e-3)
    forward = problem.start("forward")
    pinned = problem.pin(Pin("output", y, weight=weight))
    extension = harmonic_extension(pinned, tol=1e-13)
    if make is relu_mlp:
        pattern = problem.sheaf.pattern
        assert bool(pattern(extension.cochain).equal(pattern(forward)).all())
    k, rows = output_block(problem, forward)
    e = net(x).detach() - y
    s = k + torch.eye(k.shape[1]).double() if weight == SOFT else k
    lam = -torch.linalg.solve(s, e)
    energy = -0.5 * (e * lam).sum(1)
    assert torch.allclose(extension.energy, energy, rtol=1e-9, atol=0)
    edges = problem.edge_space.flatten(extension.residual)
    assert torch.allclose(edges, torch.einsum("bn,bnm->bm", lam, rows), rtol=0, atol=1e-12)


def test_residuals_are_the_backpropagated_error_layer_by_layer() -> None:
    """Block by block: λ at the output, Wᵀλ on the gate below it, R Wᵀλ on the edge below that."""
    net, x = relu_mlp([3, 5, 4, 2], 11), randn(12, 6, 3)
    problem, y = near_forward(net, x, 1e-3)
    weights = [torch.from_numpy(w) for w in layers(net)[0]]
    r = harmonic_extension(problem.pin(Pin("output", y, weight=1.0)), tol=1e-13).residual
    forward = problem.start("forward")
    lam = r["4"]
    assert torch.allclose(lam, -r["pin:4"], atol=1e-12)
    for gate, z, above in (("3", "2", weights[2]), ("1", "0", weights[1])):
        lam = lam @ above
        assert torch.allclose(r[gate], lam, rtol=0, atol=1e-12)
        lam = lam * (forward[z] >= 0)
        assert torch.allclose(r[z], lam, rtol=0, atol=1e-12)


def scalar_gate(x: float, y: float, slope: float = 1.0) -> Problem:
    """x → z = x → a = relu(z) → out = slope · a, the output held at y."""
    net = relu_mlp([1, 1, 1], 0, bias=False)
    with torch.no_grad():
        net[0].weight.fill_(1.0)
        net[2].weight.fill_(slope)
    given = torch.tensor([[x]], dtype=torch.float64)
    return hold(encode(net, given), given).pin(Pin("output", y))


def state(problem: Problem, z: float, a: float) -> Cochain:
    values = {
        "0": torch.tensor([[z]], dtype=torch.float64),
        "1": torch.tensor([[a]], dtype=torch.float64),
    }
    return problem.clamp(Cochain({**problem.start("forward"), **values}))


def test_a_sliding_equilibrium_by_hand() -> None:
    """x = 1, y = −6: at z = 0, a minimises ½a² + ½(y − a)², so a = −3; then c = 1 > 0 and
    c + a = −2 < 0 hold the gate on its kink, and E = ½(1 + 9 + 9)."""
    problem = scalar_gate(1.0, -6.0)
    c = state(problem, 0.0, -3.0)
    found = stationarity(problem, c)
    assert float(found.distance) == 0.0
    assert int(found.gates.sliding) == 1
    assert float(problem.energy(c)) == 9.5
    extension = harmonic_extension(problem, solver="block descent")
    assert float(extension.cochain["0"]) == 0.0
    assert float(extension.cochain["1"]) == pytest.approx(-3.0, abs=1e-8)
    assert int(extension.gates.sliding) == 1
    # one-sided derivatives of E in z at the kink: −c = −1 below, −c − a = 2 above
    h = 1e-6
    up = float(problem.energy(state(problem, h, -3.0)) - problem.energy(c)) / h
    down = float(problem.energy(state(problem, -h, -3.0)) - problem.energy(c)) / h
    assert (up, down) == (pytest.approx(2.0, abs=1e-5), pytest.approx(1.0, abs=1e-5))


def test_where_euler_chatters_is_not_stationary() -> None:
    """Just above the kink the gradient is c + a = −2, just below it is c = 1: neither is small."""
    problem = scalar_gate(1.0, -6.0)
    for z, gradient in ((1e-3, 2.0), (-1e-3, 1.0)):
        found = stationarity(problem, state(problem, z, -3.0))
        assert float(found.distance) == pytest.approx(gradient, abs=1e-2)
        assert int(found.gates.sliding) == 0


def test_a_downward_kink_is_not_stationary() -> None:
    """x = −1, y = 3, z = 0: dE/dz is 1 below and 1 − a < 0 above; the point is a local maximum
    in z, which a Clarke subdifferential [1 − a, 1] ∋ 0 would call stationary."""
    problem = scalar_gate(-1.0, 3.0)
    a = 1.5  # minimises ½a² + ½(3 − a)²
    c = state(problem, 0.0, a)
    found = stationarity(problem, c)
    assert float(found.distance) == pytest.approx(min(1.0, a - 1.0), abs=1e-12)
    assert int(found.gates.sliding) == 0
    for z in (-1e-3, 1e-3):
        assert float(problem.energy(state(problem, z, a))) < float(problem.energy(c))


def test_a_zero_pre_activation_without_a_jump_is_no_slide() -> None:
    """At z = 0 with a = 0 the energy has no kink: on, and stationary iff the gradient vanishes."""
    problem = scalar_gate(0.0, 0.0)
    found = stationarity(problem, state(problem, 0.0, 0.0))
    assert float(found.distance) == 0.0
    assert int(found.gates.sliding) == 0


class Folded(torch.nn.Module):
    """h − relu(h): the pre-activation stays a variable, and above 0 the output does not feel it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.nn.Linear(1, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.inner(x)
        return h - torch.relu(h)


def test_a_start_on_a_kink_takes_the_side_on_which_the_energy_falls() -> None:
    """Output held at −1, everything starts at 0. Of E = ½/K, K = 3 counts the edges other than
    that into h; below the kink h yields as well: K = 4, and each residual is ¼. Above it, the
    derivative by h is 0, which looks like rest."""
    net = Folded().double()
    with torch.no_grad():
        net.inner.weight.fill_(1.0)
        net.inner.bias.zero_()
    x = torch.zeros(1, 1, dtype=torch.float64)
    problem = hold(encode(net, x), x).pin(Pin("output", x - 1))
    count = len(problem.sheaf.edges)
    found = harmonic_extension(problem, solver="newton", start=problem.start("zeros"))
    assert float(found.energy) == pytest.approx(0.5 / count, rel=1e-10)
    assert float(found.cochain["inner"]) == pytest.approx(-1 / count, rel=1e-10)


@pytest.mark.parametrize("first", [torch.nn.ReLU, torch.nn.ReLU6])
def test_a_kink_that_is_flat_on_one_side_is_a_place_to_rest(first: type[torch.nn.Module]) -> None:
    """relu(relu(z)) at z < 0, asked for −1: the middle value x has D⁻ = 0 and D⁺ = ½ at x = 0."""
    net = torch.nn.Sequential(torch.nn.Linear(1, 1), first(), torch.nn.ReLU()).double()
    with torch.no_grad():
        net[0].weight.fill_(-1.0)
        net[0].bias.zero_()
    x = torch.tensor([[1.0], [2.0]], dtype=torch.float64)
    found = harmonic_extension(
        hold(encode(net, x), x).pin(Pin("2", -1.0, weight=1.0)), max_passes=20
    )
    assert bool((found.cochain["1"] == 0).all())
    assert found.energy.tolist() == [0.25, 0.25]
