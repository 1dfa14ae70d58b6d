"""Inputs, holds and pins that do not fit: the argument, what came, what to write."""

import math
import re

import pytest
import torch
from torch import Tensor, nn

import torchsheaf as ts
from tests.reference.networks import fill, randn, relu_mlp, residual_block
from torchsheaf import (
    Cochain,
    Pin,
    Problem,
    encode,
    harmonic_extension,
    hold,
    nearest_consistent,
)
from torchsheaf.sheaf import Sheaf


@pytest.fixture(scope="module")
def sheaf() -> Sheaf:
    return encode(relu_mlp([3, 5, 2], 1), randn(1, 4, 3))


@pytest.fixture
def problem(sheaf: Sheaf) -> Problem:
    return hold(sheaf, randn(2, 4, 3))


ENTRANCES = ["encode", "hold", "forward"]


def enter(where: str, sheaf: Sheaf, x: Tensor) -> None:
    if where == "encode":
        encode(relu_mlp([3, 5, 2], 1), x)
    elif where == "hold":
        hold(sheaf, x)
    else:
        sheaf.forward(x)


@pytest.mark.parametrize("where", ENTRANCES)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nonfinite_input(sheaf: Sheaf, where: str, value: float) -> None:
    x = randn(3, 4, 3)
    x[2, 1] = value
    with pytest.raises(ValueError, match=r"input.*contains NaN or infinity"):
        enter(where, sheaf, x)


@pytest.mark.parametrize("where", ENTRANCES)
@pytest.mark.parametrize("shape", [(4, 2), (3,), (4, 3, 1), (0, 3), ()])
def test_wrong_shape(sheaf: Sheaf, where: str, shape: tuple[int, ...]) -> None:
    """The shape that came is in the message, and so is the one to write (encode cannot know it)."""
    # a model may take one number per sample, so encode cannot say that (3,) is wrong
    words = "batch axis" if (where, shape) == ("encode", (3,)) else re.escape(str(shape))
    with pytest.raises(ValueError, match=words) as caught:
        enter(where, sheaf, torch.ones(shape, dtype=torch.float64))
    if where != "encode" and shape != (0, 3):
        assert "(batch, 3)" in str(caught.value)


@pytest.mark.parametrize("where", ENTRANCES)
def test_float32_input_for_a_float64_network(sheaf: Sheaf, where: str) -> None:
    with pytest.raises(ValueError, match="float32") as caught:
        enter(where, sheaf, randn(3, 4, 3, dtype=torch.float32))
    assert "float64" in str(caught.value)
    assert ".to(torch.float64)" in str(caught.value)


def test_float64_input_for_a_float32_network() -> None:
    net = relu_mlp([3, 2], 1, dtype=torch.float32)
    with pytest.raises(ValueError, match=r"float64.*float32.*\.to\(torch\.float32\)"):
        encode(net, randn(3, 4, 3))


@pytest.mark.parametrize("where", ENTRANCES)
def test_integer_input_for_a_layer_that_needs_numbers(sheaf: Sheaf, where: str) -> None:
    with pytest.raises(ValueError, match="int64") as caught:
        enter(where, sheaf, torch.ones(4, 3, dtype=torch.int64))
    assert "float64" in str(caught.value)


@pytest.mark.parametrize("thing", ["x", 3.0, None, [[1.0, 2.0, 3.0]]])
@pytest.mark.parametrize("where", ENTRANCES)
def test_what_is_no_tensor(sheaf: Sheaf, where: str, thing: object) -> None:
    with pytest.raises((TypeError, ValueError), match=r"input|tensor"):
        enter(where, sheaf, thing)  # type: ignore[arg-type]


def test_the_number_of_inputs(sheaf: Sheaf) -> None:
    x = randn(3, 4, 3)
    with pytest.raises(ValueError, match=r"2 input\(s\) came; this network has 1: input"):
        hold(sheaf, (x, x))
    with pytest.raises(ValueError, match=r"no input named 'picture'; write one of"):
        hold(sheaf, {"picture": x})
    with pytest.raises(ValueError, match=r"'1'|input"):
        hold(sheaf, {"1": randn(3, 4, 5)})
    with pytest.raises(ValueError, match=r"0 input|input"):
        hold(sheaf, {})
    with pytest.raises(ValueError, match=r"no input came; pass a tensor \(batch, \*shape\)"):
        encode(relu_mlp([3, 2], 1), ())


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(2, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.relu(self.a(x) + self.b(y))


def test_two_inputs_need_one_batch() -> None:
    model = fill(Two(), 5)
    sheaf = encode(model, (randn(6, 3, 2), randn(7, 3, 4)))
    with pytest.raises(ValueError, match=r"batch sizes must be equal"):
        hold(sheaf, (randn(6, 3, 2), randn(7, 2, 4)))
    with pytest.raises(ValueError, match="input.y"):
        hold(sheaf, {"input.x": randn(6, 3, 2)})
    with pytest.raises(ValueError, match=r"batch"):
        encode(model, (randn(6, 3, 2), randn(7, 2, 4)))
    both = hold(sheaf, {"input.y": randn(7, 5, 4), "input.x": randn(6, 5, 2)})
    expected = model(randn(6, 5, 2), randn(7, 5, 4)).detach()
    assert torch.equal(harmonic_extension(both).output, expected)


def test_unknown_names(sheaf: Sheaf, problem: Problem) -> None:
    with pytest.raises(ValueError, match=r"no vertex named 'net\.3'; write one of: input, 0, 1, 2"):
        problem.pin(Pin("net.3", 0.0))
    with pytest.raises(ValueError, match=r"no edge named 'net\.3'; write one of: 0, 1, 2"):
        hold(sheaf, randn(1, 2, 3), weights={"net.3": 2.0})
    with pytest.raises(KeyError, match=r"no cell named 'net\.3'.*input, 0, 1, 2"):
        problem.start("zeros")["net.3"]


@pytest.mark.parametrize("weight", [0, -1.0, float("nan"), "heavy", None])
def test_bad_pin_weights(weight: object) -> None:
    with pytest.raises(ValueError, match=r"pin on '0': weight is .*positive"):
        Pin("0", 0.0, weight=weight)  # type: ignore[arg-type]


@pytest.mark.parametrize("weight", [0.0, -2.0, math.inf, math.nan])
def test_bad_edge_weights(sheaf: Sheaf, weight: float) -> None:
    with pytest.raises(ValueError, match=r"weight of edge '0' is .*positive finite"):
        hold(sheaf, randn(1, 2, 3), weights={"0": weight})


@pytest.mark.parametrize(
    ("pin", "words"),
    [
        (Pin("0", 0.0, where=5), r"coordinate \[5\] is out of range; the stalk has 5"),
        (Pin("0", 0.0, where=[0, -6]), r"out of range"),
        (Pin("0", 0.0, where=[1, 1]), r"names a coordinate twice"),
        (Pin("0", 0.0, where=[-1, 4]), r"names a coordinate twice"),
        (Pin("0", 0.0, where=[]), r"chooses no coordinate"),
        (Pin("0", 0.0, where=torch.zeros(5, dtype=torch.bool)), r"chooses no coordinate"),
        (Pin("0", 0.0, where=torch.ones(4, dtype=torch.bool)), r"mask has shape \(4,\).*\(5,\)"),
        (Pin("0", torch.ones(3)), r"value has shape \(3,\); write a scalar, \(5,\) or \(4, 5\)"),
        (Pin("0", torch.ones(4, 2), where=[0, 1, 2]), r"shape \(4, 2\); write a scalar, \(3,\)"),
        (Pin("0", float("nan")), r"value contains NaN or infinity"),
        (Pin("0", torch.tensor([1.0, math.inf]), where=[0, 1]), r"contains NaN or infinity"),
        (Pin("0", "high"), r"value"),  # type: ignore[arg-type]
        (Pin("0", 0.0, where=1.5), r"where"),  # type: ignore[arg-type]
        (Pin("0", 0.0, where="all"), r"where"),  # type: ignore[arg-type]
    ],
)
def test_bad_pins(problem: Problem, pin: Pin, words: str) -> None:
    with pytest.raises((ValueError, TypeError), match=words) as caught:
        problem.pin(pin)
    assert "pin on '0'" in str(caught.value)


def test_conflicting_pins_name_both(problem: Problem) -> None:
    first, second = Pin("0", 0.25, where=[0]), Pin("0", 0.5, where=[1, 2])
    third = Pin("0", 0.75, where=[2, 3])
    with pytest.raises(ValueError, match="conflict") as caught:
        problem.pin(first, second, third)
    says = str(caught.value)
    assert "0.75" in says, "the new pin is not named"
    assert "0.5" in says, "the pin it conflicts with is not named"
    assert "0.25" not in says, "a pin without part in the conflict is named"
    assert "[2]" in says


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_soft_and_a_hard_pin_on_one_coordinate_conflict(
    problem: Problem, order: tuple[int, int]
) -> None:
    pins = [Pin("0", 0.25, where=[1]), Pin("0", 0.75, weight=2.0)]
    with pytest.raises(ValueError, match="conflict") as caught:
        problem.pin(*(pins[i] for i in order))
    assert "0.25" in str(caught.value)
    assert "0.75" in str(caught.value)


def test_the_input_is_held_already(problem: Problem) -> None:
    with pytest.raises(ValueError, match="input hold"):
        problem.pin(Pin("input", 0.0, where=[0]))


def test_partial_input_holds(sheaf: Sheaf) -> None:
    with pytest.raises(ValueError, match="out of range"):
        hold(sheaf, randn(1, 2, 3), where=[3])
    two = encode(fill(Two(), 5), (randn(6, 3, 2), randn(7, 3, 4)))
    values = (randn(6, 3, 2), randn(7, 3, 4))
    with pytest.raises(ValueError, match=r"a dict by input here; the inputs are input\.\w+, "):
        hold(two, values, where=[0])
    with pytest.raises(ValueError, match="no input named 'z'; write one of"):
        hold(two, values, where={"z": [0]})
    for mask in (torch.zeros(4, 3, dtype=torch.bool), torch.ones(4, 3, dtype=torch.bool)):
        with pytest.raises(ValueError, match=r"the mask has shape \(4, 3\); the stalk's is \(3,\)"):
            hold(sheaf, randn(1, 2, 3), where=mask)
    missing = torch.tensor([[1.0, math.nan, 2.0]], dtype=torch.float64)
    with pytest.raises(ValueError, match="NaN or infinity where it is held"):
        hold(sheaf, missing, where=[0, 1])


def test_starts(problem: Problem) -> None:
    with pytest.raises(ValueError, match=r'start is \'warm\'; write "forward", "zeros", "random"'):
        problem.start("warm")
    pinned = problem.pin(Pin("output", 0.0))
    start = pinned.start("forward")
    bad = Cochain({**start, "0": start["0"] * float("nan")})
    with pytest.raises(ValueError, match=r"start.*'0'.*NaN"):
        harmonic_extension(pinned, start=bad)
    short = Cochain({n: t for n, t in start.items() if n != "0"})
    with pytest.raises(ValueError, match=r"start.*'0'"):
        harmonic_extension(pinned, start=short)
    small = Cochain({n: t[:2] for n, t in start.items()})
    with pytest.raises(ValueError, match=r"start.*'0'.*\(2, 5\).*\(4, 5\)"):
        harmonic_extension(pinned, start=small)


@pytest.mark.parametrize("tol", [0.0, -1.0, float("nan")])
def test_tolerances_are_positive(problem: Problem, tol: float) -> None:
    with pytest.raises(ValueError, match="tol is"):
        harmonic_extension(problem.pin(Pin("output", 0.0)), tol=tol)


def test_solvers(problem: Problem) -> None:
    with pytest.raises(ValueError, match=r"solver is 'magic'; write \"auto\" or one of"):
        harmonic_extension(problem, solver="magic")
    with pytest.raises(ValueError, match="does not take this problem"):
        harmonic_extension(problem.pin(Pin("output", 0.0)), solver="substitution")
    x = randn(8, 2, 3)
    with pytest.raises(ValueError, match=r"block descent.*aten\.\w+|path"):
        harmonic_extension(
            hold(encode(residual_block(8), x), x).pin(Pin("output", 0.0)), solver="block descent"
        )


def test_different_cochains_do_not_add(problem: Problem) -> None:
    whole = problem.start("zeros")
    with pytest.raises(ValueError, match="different cells.*'0'"):
        _ = whole + whole.select(["1", "2", "input"])


def test_what_is_not_a_pin_or_a_start(problem: Problem) -> None:
    pin = Pin("output", 1.0)
    with pytest.raises(TypeError, match=r"a list came for a pin; write \.pin\("):
        problem.pin([pin])  # type: ignore[arg-type]
    held = problem.pin(pin)
    with pytest.raises(
        TypeError, match='start is a dict; write "forward", "zeros", "random" or a Cochain'
    ):
        harmonic_extension(held, start={"input": randn(1, 2)})  # type: ignore[arg-type]
    single = Cochain({n: t.float() for n, t in held.start("forward").items()})
    with pytest.raises(
        ValueError, match=r"start.* is torch\.float32; write \.to\(torch\.float64\)"
    ):
        harmonic_extension(held, start=single)
    with pytest.raises(ValueError, match=r"starts is 2\.5; write a whole number"):
        harmonic_extension(held, starts=2.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_passes is 0; write a whole number"):
        harmonic_extension(held, max_passes=0)


def test_messages_do_not_print_whole_tensors(problem: Problem) -> None:
    with pytest.raises(ValueError, match=r"<float64 of shape \(4, 5\)>") as caught:
        problem.pin(Pin("0", randn(1, 4, 5)), Pin("0", randn(2, 4, 5)))
    assert len(str(caught.value)) < 300
    found = harmonic_extension(problem.pin(Pin("0", randn(1, 4, 5))))
    assert len(repr(found)) < 200
    assert len(repr(found.problem)) < 200


@pytest.mark.parametrize("weights", [[1.0], {"0": "a"}, {"0": True}, {"0": -1.0}])
def test_edge_weights_that_are_none(sheaf: Sheaf, weights) -> None:
    with pytest.raises((TypeError, ValueError), match="write a"):
        hold(sheaf, randn(2, 4, 3), weights=weights)


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 4, dtype=torch.float64)
        self.head = nn.Linear(4, 2, dtype=torch.float64)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(torch.relu(self.table(ids).mean(1)))


def test_integer_inputs_are_held_whole() -> None:
    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
    tokens = encode(Tokens(), ids)
    with pytest.raises(ValueError, match="holds integers: no coordinate of it can be free"):
        hold(tokens, ids, where=[0])
    with pytest.raises(ValueError, match="'input' holds integers"):
        hold(tokens, ids).pin(Pin("input", 2.0, where=[1]))
    with pytest.raises(ValueError, match="this input takes integers"):
        hold(tokens, ids.double())
    with pytest.raises(ValueError, match="holds integers"):
        nearest_consistent(tokens, ids, 1)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [(2, "the classes are 0 … 1"), (-1, "the classes are"), (1.0, "whole numbers"),
     (torch.zeros(3, dtype=torch.long), "wanted has shape")],
)  # fmt: skip
def test_classes_that_there_are_not(sheaf: Sheaf, wanted, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        nearest_consistent(sheaf, randn(1, 4, 3), wanted)


def test_the_output_of_a_model_with_several() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 2), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.a(x), self.b(x)

    x = randn(1, 4, 3).float()
    held = hold(encode(Pair(), x), x)
    with pytest.raises(ValueError, match="this model has 2 outputs; write one of: a, b"):
        held.pin(Pin("output", 1.0))
    for read, words in (
        (lambda: ts.harmonic_extension(held).output, r"\.cochain\['a'\], \.cochain\['b'\]"),
        (lambda: ts.heat_flow(held, "forward", 1.0).output, r"\.final\['a'\], \.final\['b'\]"),
        (lambda: ts.counterfactual(held.sheaf, x, Pin("a", 0.0)).effect, r"\.pinned\['a'\]"),
    ):
        with pytest.raises(ValueError, match=f"this model has 2 outputs; write one of: {words}"):
            read()
