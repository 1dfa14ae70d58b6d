"""The heat flow of networks with max-pools: shares within a layer, against tiny Euler steps."""

import pytest
import torch
from torch import nn

import torchsheaf as ts
from tests.reference.networks import fill, randn
from torchsheaf.flow import Ode
from torchsheaf.flow.ode import stacked_velocity
from torchsheaf.flow.regularised import Shared, regularised
from torchsheaf.network.differential import Selected

NETS = {
    "overlapping": lambda: nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.MaxPool2d(3, 2, 1)),
    "behind a gate": lambda: nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(2, 2)
    ),
}


def held(name: str, batch: int = 1) -> ts.Problem:
    model, x = fill(NETS[name](), 0), randn(1, batch, 1, 4, 4)
    return ts.hold(ts.encode(model, x), x)


@pytest.mark.parametrize("name", NETS)
def test_energies_are_those_of_tiny_euler_steps(name: str) -> None:
    problem = held(name)
    start = problem.start("random", torch.Generator().manual_seed(2))
    flow = ts.heat_flow(problem, start, until=0.5, times=3)
    assert flow.method == "ode"
    coarse, fine = (
        ts.heat_flow(problem, start, until=0.5, times=3, method="euler", dt=dt).energy
        for dt in (2e-3, 1e-3)
    )
    extrapolated = 2 * fine - coarse  # Euler is of first order
    torch.testing.assert_close(flow.energy, extrapolated, rtol=2e-4, atol=1e-4)


def test_a_thinner_layer_is_closer() -> None:
    problem = held("overlapping")
    start = problem.start("random", torch.Generator().manual_seed(2))

    def end(layer: float) -> float:
        method = Ode(rtol=1e-8, atol=1e-10, layer=layer)
        return float(ts.heat_flow(problem, start, until=0.5, times=2, method=method).energy[-1])

    best = end(1e-5)
    assert abs(end(1e-3) - best) < 0.2 * abs(end(1e-2) - best)


@pytest.mark.parametrize("layer", [1e-9, 0.3])
def test_shares_are_a_partition_with_an_adjoint(layer: float) -> None:
    problem = held("overlapping")
    c = problem.start("random", torch.Generator().manual_seed(3))
    plain = problem.coboundary(c)
    smooth = regularised(plain, layer, {})
    ((edge, operation, part),) = [
        (e, o, p) for e, m in smooth.maps.items() for o, p in m.parts.items()
        if isinstance(p, Shared)
    ]  # fmt: skip
    total = part.share.sum(-1)
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-14)
    z, g = randn(4, *part.z.shape), randn(5, *part.shape)
    left = (part.push({part.operand: z}) * g).sum()
    right = (z * part.pull(g)[part.operand]).sum()
    torch.testing.assert_close(left, right, rtol=1e-12, atol=0)
    before = plain.maps[edge].parts[operation]
    assert isinstance(before, Selected)
    alone = bool((part.share.amax(-1) == 1).all())
    assert alone == (layer < 1e-6)
    if alone:  # no entry is that near another one: the plain maps
        assert torch.equal(part.push({part.operand: z}), before.push({part.operand: z}))
        assert torch.equal(part.pull(g)[part.operand], before.pull(g)[part.operand])


def test_several_states_at_once_are_the_states_one_by_one() -> None:
    problem = held("behind a gate")
    n = problem.batch * problem.free.dim
    states = randn(6, n, 7).numpy()
    velocity = stacked_velocity(problem, 1e-3)
    together = velocity(0.0, states)
    for k in range(7):
        alone = velocity(0.0, states[:, k].copy())
        torch.testing.assert_close(
            torch.as_tensor(together[:, k]), torch.as_tensor(alone), rtol=0, atol=1e-13
        )


def test_slides_of_a_learnt_slope() -> None:
    """No exact flow reads a PReLU, so that "ode" has to pass its slides, as tiny Euler steps do."""
    model = nn.Sequential(nn.Linear(3, 6), nn.PReLU(), nn.Linear(6, 6), nn.PReLU(), nn.Linear(6, 1))
    x = randn(1, 2, 3)
    problem = ts.hold(ts.encode(fill(model, 1), x), x).pin(ts.Pin("output", 4.0))
    flow = ts.heat_flow(problem, "forward", until=20.0, times=3)
    assert flow.method == "ode"
    euler = ts.heat_flow(problem, "forward", until=20.0, times=3, method="euler", dt=0.01)
    torch.testing.assert_close(flow.energy, euler.energy, rtol=2e-2, atol=1e-3)
