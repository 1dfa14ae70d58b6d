"""Pins beside real forward hooks, the command, the figures, the nearest consistent input."""

import json
import math

import pytest
import torch
from click.testing import CliRunner
from matplotlib.figure import Figure

import torchsheaf as ts
from tests.reference.networks import fill, randn, relu_mlp
from torchsheaf.cli import Exit, main
from torchsheaf.figures import nearest_figure, pin_figure


def hooked(net, module: str, index, value: float, x):
    """The output when a forward hook overwrites coordinates of a module's output."""

    def patch(_module, _inputs, output):
        output = output.clone()
        output[:, index] = value
        return output

    handle = net.get_submodule(module).register_forward_hook(patch)
    with torch.no_grad():
        out = net(x)
    handle.remove()
    return out


@pytest.fixture(scope="module")
def net():
    return relu_mlp([3, 6, 5, 2], 4)


@pytest.fixture(scope="module")
def x():
    return randn(1, 7, 3)


@pytest.fixture(scope="module")
def sheaf(net, x):
    return ts.encode(net, x)


@pytest.mark.parametrize("vertex", ["0", "1", "2", "3"])
def test_patching_is_what_a_forward_hook_does(net, sheaf, x, vertex):
    found = ts.counterfactual(sheaf, x, ts.Pin(vertex, 0.7, where=[1, 3]))
    torch.testing.assert_close(found.patched["4"], hooked(net, vertex, [1, 3], 0.7, x))
    for change in found.changes:
        if change.side == "upstream":
            assert float(change.patched.abs().max()) == 0


@pytest.mark.parametrize("vertex", ["0", "1", "2", "3"])
def test_a_whole_layer_pinned_hard_has_the_downstream_effect_of_the_hook(net, sheaf, x, vertex):
    width = sheaf.vertices[vertex].dim
    found = ts.counterfactual(sheaf, x, ts.Pin(vertex, 0.7), tol=1e-11)
    expected = hooked(net, vertex, list(range(width)), 0.7, x)
    torch.testing.assert_close(found.pinned["4"], expected, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(found.effect[0], found.effect[1], atol=1e-9, rtol=1e-9)


def test_the_first_layer_agrees_coordinate_by_coordinate(net, sheaf, x):
    found = ts.counterfactual(sheaf, x, ts.Pin("0", 0.7, where=[2]), tol=1e-11)
    torch.testing.assert_close(found.pinned["4"], hooked(net, "0", [2], 0.7, x))


def test_a_deep_pin_moves_what_lies_upstream_and_has_a_price(sheaf, x):
    found = ts.counterfactual(sheaf, x, ts.Pin("2", 3.0, where=[2]))
    sides = {c.vertex: c for c in found.changes}
    assert [c.side for c in found.changes] == ["upstream"] * 3 + ["pinned"] + ["downstream"] * 2
    assert float(sides["1"].pinned.min()) > 0.01
    assert float(sides["input"].pinned.max()) == 0
    forward = found.forward["2"][:, 2]
    # one linear piece would give ½ (3 − z)²/(1 + …): never more than leaving all else as it was
    assert bool((found.price > 0).all())
    assert bool((found.price <= 0.5 * (3.0 - forward).square() + 1e-12).all())


def test_a_pin_at_the_forward_value_changes_nothing(sheaf, x):
    forward = sheaf.forward(x)
    found = ts.counterfactual(sheaf, x, ts.Pin("2", forward["2"][:, [1]], where=[1]))
    assert float(found.price.max()) <= 1e-16
    assert all(float(c.pinned.max()) <= 1e-7 for c in found.changes)


def test_no_pins_are_refused(sheaf, x):
    with pytest.raises(ValueError, match="`pins` is empty"):
        ts.counterfactual(sheaf, x, ())


def test_nearest_consistent_input_is_another_one_and_called_so(net, sheaf, x):
    wanted = 1 - net(x).argmax(1)
    found = ts.nearest_consistent(sheaf, x, wanted)
    with torch.no_grad():
        answers = net(found.changed).argmax(1)
    assert bool(found.reached.any())
    assert bool((answers[found.reached] == wanted[found.reached]).all())
    assert torch.equal(found.prediction[found.reached], wanted[found.reached])
    assert bool((found.distance[found.reached] > 0).all())


def test_nearest_consistent_input_is_that_of_the_first_pull_that_changes_the_answer(net, sheaf, x):
    """One sample at a time, weight by weight: where it stops, its price and its input."""
    wanted, weights = 1 - net(x).argmax(1), (0.1, 100.0, 0.003)
    batch = ts.nearest_consistent(sheaf, x, wanted, weights=weights)
    for i in range(len(x)):
        one, at = x[i : i + 1], float("inf")
        state = sheaf.forward(one)
        held = ts.hold(sheaf, one, where=[]).pin(ts.Pin("output", state["4"].flip(1)))
        for weight in weights:
            pulled = held.pin(ts.Pin("input", one, weight=weight))
            found = ts.harmonic_extension(pulled, start=state)
            state, at = found.cochain, weight
            if reached := bool(net(state["input"]).argmax(1) == wanted[i]):
                break
        assert (bool(batch.reached[i]), float(batch.weight[i])) == (reached, at)
        torch.testing.assert_close(batch.price[i : i + 1], found.energy, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(batch.changed[i : i + 1], state["input"], rtol=0, atol=1e-6)
    assert set(batch.weight.tolist()) == {0.1, 0.003}


def test_nearest_consistent_input_keeps_what_is_held(sheaf, x):
    found = ts.nearest_consistent(sheaf, x, 0, where=[0, 2], weights=(0.1, 0.01))
    assert torch.equal(found.changed[:, 1], x[:, 1])


def test_nearest_consistent_says_how_its_relaxations_ended(net, sheaf, x):
    wanted = 1 - net(x).argmax(1)
    assert ts.nearest_consistent(sheaf, x, wanted).outcome.ok
    assert ts.nearest_consistent(sheaf, x, net(x).argmax(1)).outcome is ts.Outcome.SETTLED
    mixed = torch.cat([x, 1e200 * x[:1]])  # energies of the last sample overflow
    wanted = 1 - net(mixed).argmax(1)
    found = ts.nearest_consistent(sheaf, mixed, wanted)
    assert found.outcome is ts.Outcome.NONFINITE
    assert bool(found.changed.isfinite().all())
    assert bool(found.price.isfinite().all())
    assert float(found.weight[-1]) == float("inf")


def test_nearest_consistent_is_the_same_sample_by_sample(sheaf, x):
    """Samples leave the batch as they arrive; nobody's answer depends on who is still there."""
    wanted = 1 - sheaf.forward(x)[sheaf.output()].argmax(1)
    found = ts.nearest_consistent(sheaf, x, wanted)
    assert len(found.weight.unique()) > 1, "all samples arrive at one weight: nothing to test"
    for i in range(len(x)):
        alone = ts.nearest_consistent(sheaf, x[i : i + 1], wanted[i : i + 1])
        assert bool(alone.reached[0] == found.reached[i])
        assert float(alone.weight[0]) == float(found.weight[i])
        torch.testing.assert_close(alone.changed[0], found.changed[i], atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(alone.price[0], found.price[i], atol=1e-8, rtol=1e-6)


def test_nearest_consistent_asks_which_output():
    class Heads(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = relu_mlp([3, 6, 2], 4), relu_mlp([3, 6, 3], 5)

        def forward(self, x):
            return self.a(x), self.b(x)

    x, model = randn(1, 7, 3), Heads()
    sheaf = ts.encode(model, x)
    with pytest.raises(ValueError, match=r"2 outputs; write output= one of: a\.2, b\.2"):
        ts.nearest_consistent(sheaf, x, 1)
    found = ts.nearest_consistent(sheaf, x, 2, output="b.2")
    assert bool((model(found.changed)[1].argmax(1)[found.reached] == 2).all())
    assert found.target.shape == (7, 3)


def test_figures_are_figures(sheaf, x):
    assert isinstance(pin_figure(ts.counterfactual(sheaf, x, ts.Pin("2", 1.0))), Figure)
    square = relu_mlp([36, 6, 2], 1)
    y = randn(3, 4, 36)
    found = ts.nearest_consistent(ts.encode(square, y), y, 1)
    figure = nearest_figure(found, count=2)
    assert len(figure.axes) == 6


def test_inputs_are_pictures_in_colour_or_none_as_everywhere(sheaf, x):
    net = fill(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 2)), 1)
    pictures = randn(5, 6, 3, 4, 4)
    found = ts.nearest_consistent(ts.encode(net, pictures), pictures, 1)
    moved = found.distance.masked_fill(~(found.reached & (found.distance > 0)), math.inf)
    first = int(moved.argmin())
    before, change, _ = (axes.images[0].get_array() for axes in nearest_figure(found, count=1).axes)
    assert before.shape == (4, 4, 3)
    expected = (found.changed - found.reference)[first].mean(0)
    torch.testing.assert_close(torch.as_tensor(change.data), expected)
    four = randn(3, 4, 4)  # numbers, no picture of 2 × 2
    found = ts.nearest_consistent(ts.encode(relu_mlp([4, 6, 2], 1), four), four, 1)
    with pytest.raises(ValueError, match="no picture"):
        nearest_figure(found)


def test_the_command_prints_what_the_function_returns():
    line = ["pin", "paraboloid", "--vertex", "hidden", "--index", "1", "--value", "0.5", "--json"]
    run = CliRunner().invoke(main, line)
    assert run.exit_code == 0, run.output
    told = json.loads(run.stdout)
    sides = {c["vertex"]: c for c in told["changes"]}
    assert sides["hidden"]["side"] == "pinned"
    assert told["largest difference at the output"] <= 1e-3
    assert told["stationarity"] <= 1e-3


def test_the_command_refuses_a_vertex_that_is_not_there():
    run = CliRunner().invoke(main, ["pin", "paraboloid", "--vertex", "nowhere", "--value", "1"])
    assert run.exit_code != 0
    assert "nowhere" in run.output


def test_the_report_shows_what_would_have_to_change_when_asked():
    from torchsheaf.report import report

    square, y = relu_mlp([36, 6, 2], 1), randn(3, 6, 36)
    page = report(square, y, nearest=1)
    assert "What would have to change" in page
    assert "Red must rise" in page
    assert "What would have to change" not in report(square, y)


def test_pin_refuses_what_it_cannot_do_before_it_solves(tmp_path) -> None:
    line = ["pin", "paraboloid", "--vertex", "hidden", "--index", "1", "--value", "0.5"]
    for more, code, message in (
        (["--vertex", "output"], Exit.USAGE, "one --vertex at a time"),
        (["--figure", str(tmp_path / "a.xyz")], Exit.USAGE, "ends in .png or .svg"),
        (["--figure", str(tmp_path / "none" / "a.svg")], Exit.CANNOT_WRITE, "does not exist"),
    ):
        run = CliRunner().invoke(main, line + more)
        assert run.exit_code == code, run.output
        assert message in " ".join(run.output.split())
        assert "price" not in run.output


def test_pin_gives_up_when_told_to() -> None:
    line = ["pin", "digits-mlp", "--vertex", "hidden2", "--index", "3", "--value", "2"]
    run = CliRunner().invoke(main, [*line, "--max-passes", "2"])
    assert run.exit_code == Exit.NOT_CONVERGED
    assert "samples above tol" in run.output
    loose = CliRunner().invoke(main, [*line, "--tol", "0.1", "--json"])
    tight = CliRunner().invoke(main, [*line, "--json"])
    assert json.loads(loose.stdout)["sweeps"] < json.loads(tight.stdout)["sweeps"]


class Cast(torch.nn.Module):
    """Some values in float32 inside a float64 model, as norms of language models have them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = torch.nn.Linear(3, 5), torch.nn.Linear(5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.tanh(self.first(x).float()).double())


def test_a_cast_inside_the_model(x) -> None:
    """Tolerances go by the coarsest value; a pin there is of its type; the error names it."""
    sheaf = ts.encode(fill(Cast(), 2), x)
    assert sheaf.network.nodes[1].dtype == torch.float32
    found = ts.counterfactual(sheaf, x, ts.Pin("output", 0.3, where=0))
    assert found.extension.outcome.ok
    patched = ts.counterfactual(sheaf, x, ts.Pin("tanh", 0.25, where=[1, 3])).patched
    assert torch.equal(patched["tanh"][:, [1, 3]], torch.full((7, 2), 0.25))
    with pytest.raises(ts.ConvergenceError, match="'tanh' is computed in torch.float32"):
        ts.counterfactual(sheaf, x, ts.Pin("output", 0.3, where=0), tol=1e-14)
    flow = ts.heat_flow(ts.hold(sheaf, x), until=None, start="forward")
    assert flow.outcome.ok


def test_a_cast_folded_into_a_map(x) -> None:
    """As in an RMS-norm that is computed in float32: its value is float64 again."""

    class Inside(Cast):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(torch.tanh(self.first(x)).float().double())

    sheaf = ts.encode(fill(Inside(), 2), x)
    assert all(n.dtype == torch.float64 for n in sheaf.network.nodes)
    assert ts.hold(sheaf, x).coarsest == ("last", torch.float32)
    assert ts.counterfactual(sheaf, x, ts.Pin("output", 0.3, where=0)).extension.outcome.ok


def test_a_map_that_jumps_is_named(x) -> None:
    layers = torch.nn.Linear(3, 5), torch.nn.Threshold(0.1, -0.5), torch.nn.Linear(5, 2)
    sheaf = ts.encode(fill(torch.nn.Sequential(*layers), 2), x)
    with pytest.raises(ts.ConvergenceError, match="vertex '1' jumps at 0.1"):
        ts.counterfactual(sheaf, x, ts.Pin("output", 3.0))
