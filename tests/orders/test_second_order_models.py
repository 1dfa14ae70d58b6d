"""The model behind a Newton step on smooth edges: right to third order, on either path."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import torchsheaf as ts
from tests.reference.frozen import frozen_at
from tests.reference.held import held_attention, held_output
from tests.reference.networks import fill, randn
from torchsheaf.harmonic.curvature import Curvature
from torchsheaf.harmonic.reduced_energy import forces

pytestmark = pytest.mark.usefixtures("no_grad")


class Asking(nn.Module):
    """Attention whose keys and values are the input itself, which does not move."""

    def __init__(self) -> None:
        super().__init__()
        self.ask, self.out = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.scaled_dot_product_attention(3 * self.ask(x), x, x))


def held_asking() -> ts.Problem:
    x = randn(5, 4, 6, 3)
    return ts.hold(ts.encode(fill(Asking(), 6), x), x).pin(ts.Pin("output", randn(7, 4, 6, 2)))


HELD = {
    "attention to the input": held_asking,
    "tanh": lambda: held_output("tanh").samples(torch.arange(4)),
    "attention": lambda: held_attention(0).samples(torch.arange(4)),
    # what is held inside leaves its row behind, and its maps still bend
    "attention, a place held": lambda: (
        held_attention(1).samples(torch.arange(4)).pin(ts.Pin("add", 0.5, where=[1, 9, 20]))
    ),
}


class Models:
    """E along a random step from a random cochain, and the two models of it."""

    def __init__(self, problem: ts.Problem) -> None:
        start = problem.start("random", torch.Generator().manual_seed(3))
        self.reduction, self.c, self.m, here, self.system = frozen_at(problem, start)
        self.here, self.network = here, problem.sheaf.network
        self.point = self.reduction.point(self.c)
        self.returned = here.on_values.clone()
        self.gradient = self.system.reverse(
            here.on_variables.clone(), self.returned, overwrite=True
        )
        self.u = randn(4, *self.c.shape)
        self.u = self.u / self.u.norm(dim=1, keepdim=True)

    def model(self, t: float, pull: Tensor) -> Tensor:
        """E + t g·u + ½ t² u·Hu, with the second derivatives of the edges weighted by `pull`."""
        curvature = Curvature(
            self.reduction.layout, self.network, self.system.maps, self.point, pull
        )
        assert curvature, "no edge is left out"
        product, _, _ = replace(self.system, curvature=curvature).product(self.u)
        g, second = (torch.linalg.vecdot(v, self.u) for v in (self.gradient, product))
        return self.here.energy + t * g + 0.5 * t * t * second

    def straight(self, t: float) -> Tensor:
        dc, _ = self.system.forward(self.u)
        c = self.c + t * dc
        return forces(self.reduction, c, self.reduction.incoming(c)).energy

    def curved(self, t: float) -> Tensor:
        move, slope = t * self.system.branch.scale * self.u, self.system.branch.slope
        return forces(
            self.reduction, *self.reduction.substituted(self.c, self.m, move, slope)
        ).energy

    def order(self, path: str, pull: Tensor) -> float:
        """p in |E − model| = O(tᵖ), over all samples together."""
        along = {"straight": self.straight, "curved": self.curved}[path]
        far, near = (float((along(t) - self.model(t, pull)).norm()) for t in (2e-3, 1e-3))
        return float(torch.tensor(far / near).log2())


@pytest.mark.parametrize("name", HELD)
def test_straight_steps_feel_their_own_edges_force(name):
    models = Models(HELD[name]())
    assert models.order("straight", models.here.on_values) == pytest.approx(3, abs=0.1)
    assert models.order("straight", models.returned) == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize("name", HELD)
def test_curved_steps_feel_the_pull_that_came_back_through_the_network(name):
    models = Models(HELD[name]())
    assert models.order("curved", models.returned) == pytest.approx(3, abs=0.1)
    assert models.order("curved", models.here.on_values) == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize("name", HELD)
def test_residuals_move_evenly_along_the_curve(name):
    models = Models(HELD[name]())
    slope = models.system.branch.slope
    move = 0.3 * models.system.branch.scale * models.u
    c, m = models.reduction.substituted(models.c, models.m, move, slope)
    torch.testing.assert_close(m, models.reduction.incoming(c))
    h = models.reduction.layout.heads
    change = c[:, :h] - models.c[:, :h] - slope * (m - models.m)[:, :h]
    torch.testing.assert_close(change, move[:, :h])


def test_with_affine_maps_the_curve_is_straight():
    models = Models(held_output("mlp").samples(torch.arange(4)))
    dc, dm = models.system.forward(models.u)
    move = 0.3 * models.system.branch.scale * models.u
    c, m = models.reduction.substituted(models.c, models.m, move, models.system.branch.slope)
    torch.testing.assert_close(c, models.c + 0.3 * dc)
    torch.testing.assert_close(m, models.m + 0.3 * dm)
