"""Questions about a held problem that cannot be asked: the argument, what came, what to write."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import torchsheaf as ts
from tests.reference.networks import randn, relu_mlp
from torchsheaf.diagnose import prediction
from torchsheaf.flow.exact import Exact
from torchsheaf.train.edge import EdgeRule
from torchsheaf.train.equilibrium import EquilibriumRule


@pytest.fixture
def problem() -> ts.Problem:
    x = randn(2, 4, 3)
    return ts.hold(ts.encode(relu_mlp([3, 5, 2], 1), x), x)


ASKED: dict[str, Callable[[Any], object]] = {
    "harmonic_extension": ts.harmonic_extension,
    "heat_flow": ts.heat_flow,
    "spectrum": ts.spectrum,
    "spectra": ts.spectra,
    "stationarity": lambda p: ts.stationarity(p, {}),  # type: ignore[arg-type]
    "discord": lambda p: ts.discord(p, ts.Cochain({})),
    "Familiarity": ts.Familiarity.of,
    "pathologies": ts.pathologies,
}


@pytest.mark.parametrize("name", ASKED)
def test_a_sheaf_is_no_problem(problem: ts.Problem, name: str) -> None:
    with pytest.raises(TypeError, match=r"Sheaf.*write hold\(sheaf, x\)|got Sheaf"):
        ASKED[name](problem.sheaf)


@pytest.mark.parametrize("zero", [3, 0])
@pytest.mark.parametrize("name", ["spectrum", "start", "agreement", "flow", "extension"])
def test_a_seed_is_no_generator(problem: ts.Problem, name: str, zero: int) -> None:
    forward = ts.harmonic_extension(problem)
    ask: dict[str, Callable[[Any], object]] = {
        "spectrum": lambda g: ts.spectrum(problem, generator=g),
        "start": lambda g: problem.start("random", generator=g),
        "agreement": lambda g: ts.agreement(forward, forward.output, generator=g),
        "flow": lambda g: ts.heat_flow(problem, generator=g),
        "extension": lambda g: ts.harmonic_extension(problem, generator=g),
    }
    words = rf"generator is {zero}; write torch\.Generator\(\)\.manual_seed\({zero}\)"
    with pytest.raises(TypeError, match=words):
        ask[name](zero)


@pytest.mark.parametrize("where", ["a", 1.5, object(), {"input": "a"}, [0.5], [[0], [1, 2]]])
def test_choices_of_coordinates_that_are_none(problem: ts.Problem, where: Any) -> None:
    with pytest.raises(TypeError, match=r"'input': `where` is .*; write coordinates \(integers\)"):
        ts.hold(problem.sheaf, randn(2, 4, 3), where=where)
    if not isinstance(where, dict):
        with pytest.raises(TypeError, match=r"'0': `where` is .*; write coordinates \(integers\)"):
            problem.pin(ts.Pin("0", 0.0, where=where))


MASK = [True, False, True]
SAME = [
    [MASK] * 4,
    np.array([MASK] * 4),
    MASK,
    tuple(MASK),
    torch.tensor(MASK),
    np.array(MASK),
    [0, 2],
    np.array([0, 2]),
    [-3, 2],
]


@pytest.mark.parametrize("where", SAME, ids=str)
def test_pins_and_holds_read_coordinates_alike(problem: ts.Problem, where: Any) -> None:
    held = ts.hold(problem.sheaf, randn(2, 4, 3), where=where)
    assert held.held["input"].tolist() == MASK
    place = ts.Pin("input", 0.0, where=where).place((3,), 4)
    assert place.mask(3).tolist() == [MASK]


def test_a_mask_of_another_length_is_refused_by_both(problem: ts.Problem) -> None:
    words = r"the mask has shape \(2,\); the stalk's is \(3,\), \(4, 3\) per sample"
    with pytest.raises(ValueError, match=words):
        ts.hold(problem.sheaf, randn(2, 4, 3), where=[True, False])
    with pytest.raises(ValueError, match=words):
        ts.Pin("input", 0.0, where=[True, False]).place((3,), 4)


def test_what_is_no_sheaf(problem: ts.Problem) -> None:
    x = randn(2, 4, 3)
    for given in (problem, problem.sheaf.network, None):
        for ask in (ts.hold, lambda s, x: ts.nearest_consistent(s, x, 1)):
            with pytest.raises(TypeError, match=r"for the sheaf; write encode\(model, x\)"):
                ask(given, x)  # type: ignore[operator]


def test_a_start_is_refused_in_one_way(problem: ts.Problem) -> None:
    held = problem.pin(ts.Pin("output", 0.0))
    for start in (3, None, {"0": randn(1, 4, 5)}):
        words = []
        for ask in (held.start, lambda s: ts.harmonic_extension(held, start=s),
                    lambda s: ts.heat_flow(held, s)):  # fmt: skip
            with pytest.raises(TypeError, match=r'start is a .*; write "forward", ') as caught:
                ask(start)
            words.append(str(caught.value))
        assert len(set(words)) == 1
    other = ts.Cochain({"0": randn(1, 4, 5)})
    for ask in (held.start, lambda s: ts.heat_flow(held, s)):
        with pytest.raises(ValueError, match=r"start has no value for vertex"):
            ask(other)


def test_stationarity_of_what_is_no_cochain_of_the_problem(problem: ts.Problem) -> None:
    with pytest.raises(ValueError, match=r"c has no value for vertex 'input'"):
        ts.stationarity(problem, {"a": randn(1, 4, 3)})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="c is a Tensor; pass a Cochain or a dict"):
        ts.stationarity(problem, randn(1, 4, 3))  # type: ignore[arg-type]
    forward = problem.start("forward")
    with pytest.raises(ValueError, match=r"residual has no value for edge '1'"):
        ts.stationarity(problem, forward, ts.Cochain({"0": forward["0"]}))


@pytest.mark.parametrize("pins", [3, None, "1", {"1": 0.5}, [("1", 0.5)]])
def test_what_is_no_pin(problem: ts.Problem, pins: Any) -> None:
    with pytest.raises(TypeError, match=r"write .*Pin\("):
        ts.counterfactual(problem.sheaf, randn(2, 4, 3), pins)


@pytest.mark.parametrize("weights", [3, None, "ab", [], [0.0], [1.0, "a"], torch.ones(())])
def test_pulls_that_are_none(problem: ts.Problem, weights: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=r"weights(\[\d\])? is .*; write"):
        ts.nearest_consistent(problem.sheaf, randn(2, 4, 3), 1, weights=weights)


def test_an_input_that_is_no_tensor(problem: ts.Problem) -> None:
    with pytest.raises(TypeError, match=r"pass a tensor \(batch, \*shape\)"):
        ts.nearest_consistent(problem.sheaf, [[1.0, 2.0, 3.0]], 1)  # type: ignore[arg-type]
    one = ts.nearest_consistent(problem.sheaf, (randn(2, 4, 3),), 1)  # type: ignore[arg-type]
    assert torch.equal(one.reference, randn(2, 4, 3))


@pytest.mark.parametrize("wanted", ["a", None, [0, 1, "b", 0], object()])
def test_classes_that_are_no_numbers(problem: ts.Problem, wanted: Any) -> None:
    with pytest.raises(ValueError, match=r"wanted is .*; write whole numbers"):
        ts.nearest_consistent(problem.sheaf, randn(2, 4, 3), wanted)


def test_nearest_needs_classes() -> None:
    x = randn(1, 4, 1, 8, 8)
    picture = nn.Conv2d(1, 2, 3, padding=1).double()
    with pytest.raises(ValueError, match=r"an output \(batch, classes\); it is \(4, 2, 8, 8\)"):
        ts.nearest_consistent(ts.encode(picture, x), x, 1)


def test_whole_numbers_may_be_written_as_floats(problem: ts.Problem) -> None:
    pinned = problem.pin(ts.Pin("output", 0.0))
    assert ts.harmonic_extension(pinned, max_passes=1e3, starts=2.0).outcome.ok  # type: ignore[arg-type]
    assert ts.spectrum(problem, np.float32(2)).values.shape == (4, 2)  # type: ignore[arg-type]
    flow = ts.heat_flow(problem, "zeros", 1.0, Exact(max_events=1e3), times=1e1, max_steps=1e6)  # type: ignore[arg-type]
    assert len(flow.times) == 10
    model = problem.sheaf.network.model
    assert isinstance(model, nn.Module)
    trainer = ts.SheafTrainer(model, loss="l2", rule=EdgeRule(group=2.0))  # type: ignore[arg-type]
    step = torch.optim.SGD(model.parameters(), 0.0)
    data = (randn(2, 4, 3), randn(3, 4, 2))
    history = ts.fit(trainer, data, step, epochs=2.0, batch_size=2.0, progress=False)  # type: ignore[arg-type]
    assert history.epochs == 2
    rule = EquilibriumRule(max_rounds=1e3, max_passes=1e3)  # type: ignore[arg-type]
    ts.SheafTrainer(model, loss="l2", rule=rule).local_gradients(*data)
    for given in (2.5, True, float("inf"), float("nan"), 1 + 1e-12, "2"):
        with pytest.raises(ValueError, match="k is .*; write a whole number, 1 or more"):
            ts.spectrum(problem, given)  # type: ignore[arg-type]


def test_gates_that_there_are_not(problem: ts.Problem) -> None:
    forward, x = problem.start("forward"), randn(1, 4, 5)
    words = r"pattern: no gate named 'zz'; write one of: %relu"
    for ask in (lambda p: ts.spectrum(problem, pattern=p), lambda p: problem.gradient(forward, p),
                lambda p: problem.sheaf.linearise(forward, p)):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            ask({"zz": x})
    with pytest.raises(TypeError, match="pattern is a Tensor; write"):
        ts.spectrum(problem, pattern=x)  # type: ignore[arg-type]


def test_what_holds_tensors_is_compared_by_identity(problem: ts.Problem) -> None:
    """Elementwise comparison has no truth value: `==` of such fields would raise."""
    t, x = randn(1, 4, 5), randn(2, 4, 3)
    pinned = problem.pin(ts.Pin("1", t))
    made: list[Callable[[], object]] = [
        lambda: ts.Pin("1", t),
        lambda: problem.pin(ts.Pin("1", t.clone())),
        lambda: ts.harmonic_extension(problem),
        lambda: ts.stationarity(problem, problem.start("forward")),
        lambda: ts.spectrum(problem),
        lambda: ts.heat_flow(problem),
        lambda: ts.discord(pinned, pinned.start("forward")),
        lambda: ts.counterfactual(problem.sheaf, x, ts.Pin("1", t)),
        lambda: ts.nearest_consistent(problem.sheaf, x, 1),
        lambda: ts.encode(relu_mlp([3, 5, 2], 1), x),
    ]
    for make in made:
        one, other = make(), make()
        assert one == one
        assert one != other
        assert len({one, other}) == 2


ODD: list[tuple[str, Callable[[ts.Problem], object]]] = [
    (r"residual is a int; write problem\.residual\(c\)",
     lambda p: ts.stationarity(p, p.start("forward"), 3)),  # type: ignore[arg-type]
    (r"gap is a float; pass what spectrum\(problem\) returns",
     lambda p: ts.agreement(ts.harmonic_extension(p), p.forward()["2"], gap=0.5)),  # type: ignore[arg-type]
    ("assemble_up_to is None; write a whole number",
     lambda p: ts.agreement(ts.harmonic_extension(p), p.forward()["2"], assemble_up_to=None)),  # type: ignore[arg-type]
    (r"no vertex named \['1'\]; write one of: input",
     lambda p: p.pin(ts.Pin(["1"], 0.5))),  # type: ignore[arg-type]
    (r"no edge named \['1'\]; write one of: 0",
     lambda p: prediction(p, p.forward(), ["1"])),  # type: ignore[arg-type]
    ("vertices is a int; write a list of names",
     lambda p: ts.Familiarity.of(p.samples(torch.arange(24) % 4), 3)),  # type: ignore[arg-type]
    (r"at has no value for vertex 'input'",
     lambda p: ts.spectra(p, at={"zz": randn(1, 4, 3)}, numbers=1)),  # type: ignore[arg-type]
]  # fmt: skip


@pytest.mark.parametrize(("words", "ask"), ODD)
def test_odd_arguments_are_named(
    problem: ts.Problem, words: str, ask: Callable[[ts.Problem], object]
) -> None:
    with pytest.raises((TypeError, ValueError), match=words):
        ask(problem)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_relaxation_in_half_precision_is_refused(dtype: torch.dtype) -> None:
    net, x = relu_mlp([4, 6, 3], 1).to(dtype), randn(1, 5, 4).to(dtype)
    sheaf = ts.encode(net, x)
    assert torch.equal(ts.harmonic_extension(ts.hold(sheaf, x)).output, net(x))
    pinned = ts.hold(sheaf, x).pin(ts.Pin("output", 0.3))
    for ask in (
        lambda: ts.harmonic_extension(pinned),
        lambda: ts.harmonic_extension(pinned, start="forward"),
        lambda: ts.counterfactual(sheaf, x, ts.Pin("1", 0.5)),
        lambda: ts.nearest_consistent(sheaf, x, 1),
    ):
        with pytest.raises(ValueError, match=r"a relaxation needs float32 .* model\.float"):
            ask()
