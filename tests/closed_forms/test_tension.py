"""Tension correction: c_v = f_v(c_parents) + r̄_v, held coordinates as the problem holds them."""

import pytest
import torch

import torchsheaf as ts
from tests.reference.networks import randn, relu_mlp
from torchsheaf.diagnose import tension_correction


@pytest.fixture
def problem() -> ts.Problem:
    x = randn(1, 6, 3)
    return ts.hold(ts.encode(relu_mlp([3, 5, 2], 2), x), x)


def test_the_mean_residual_is_added_on_every_edge(problem: ts.Problem) -> None:
    stalks = problem.start("random", torch.Generator().manual_seed(3))
    found = tension_correction(problem, stalks, problem)
    net, x = problem.sheaf.network.model, problem.values["input"]
    with torch.no_grad():
        first, _, last = net  # type: ignore[misc]
        z = first(x) + (stalks["0"] - first(x)).mean(0)
        a = z.relu() + (stalks["1"] - stalks["0"].relu()).mean(0)
        expected = last(a) + (stalks["2"] - last(stalks["1"])).mean(0)
    torch.testing.assert_close(found.corrected, expected)
    assert torch.equal(found.plain, net(x).detach())  # type: ignore[misc]


@pytest.mark.parametrize("weight", [float("inf"), 2.0])
def test_zero_tension_gives_the_forward_pass_through_pins(
    problem: ts.Problem, weight: float
) -> None:
    pinned = problem.pin(ts.Pin("1", 0.5, where=[0, 3], weight=weight))
    found = tension_correction(problem, problem.start("forward"), pinned)
    assert torch.equal(found.plain, pinned.start("forward")["2"])
    assert torch.equal(found.shift, torch.zeros_like(found.plain))


def test_zero_tension_gives_the_forward_pass_from_a_free_input(problem: ts.Problem) -> None:
    free = ts.hold(problem.sheaf, problem.values["input"], where=[0])
    found = tension_correction(problem, problem.start("forward"), free)
    assert torch.equal(found.shift, torch.zeros_like(found.plain))


def test_what_a_pin_holds_takes_no_tension(problem: ts.Problem) -> None:
    stalks = problem.start("random", torch.Generator().manual_seed(3))
    found = tension_correction(problem, stalks, problem.pin(ts.Pin("2", 0.5, where=[1])))
    assert bool((found.corrected[:, 1] == 0.5).all())
    assert bool((found.shift[:, 0] != 0).all())
