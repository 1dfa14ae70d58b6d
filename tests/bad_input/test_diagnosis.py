"""Diagnosis of what cannot be diagnosed: the argument, what came, what to write."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import torchsheaf as ts
from tests.reference.networks import TwoInputs, convnet, fill, randn, relu_mlp
from torchsheaf.diagnose import (
    Familiarity,
    agreement,
    discord,
    fault_profile,
    label_energy,
    nudged_discord,
    pathologies,
    prediction,
    spectra,
    tension_correction,
    watch,
)
from torchsheaf.figures import evolution_heatmap, spectral_evolution_figure

Y = torch.arange(24) % 2
BROKEN = r"weight '2\.weight' contains NaN or infinity"

DIAGNOSES: dict[str, Callable[[ts.Problem, ts.Cochain], object]] = {
    "pathologies": lambda p, _: pathologies(p, Y),
    "spectrum": lambda p, _: ts.spectrum(p),
    "spectra": lambda p, _: spectra(p),
    "label_energy": lambda p, _: label_energy(p, Y),
    "nudged_discord": lambda p, _: nudged_discord(p, Y),
    "fault_profile": lambda p, at: fault_profile(p, at),
    "discord": lambda p, at: discord(p, at),
    "prediction": lambda p, at: prediction(p, at, "0"),
    "tension_correction": lambda p, at: tension_correction(p, at, p),
    "Familiarity": lambda p, _: Familiarity.of(p),
}


@pytest.fixture
def held() -> ts.Problem:
    x = randn(2, 24, 3)
    return ts.hold(ts.encode(relu_mlp([3, 5, 2], 1), x), x)


def ruin(held: ts.Problem, value: float) -> None:
    with torch.no_grad():
        held.sheaf.network.state("2.weight")[1, 2] = value


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", DIAGNOSES)
def test_weights_that_broke_after_encode_are_named(
    held: ts.Problem, name: str, value: float
) -> None:
    forward = held.start("forward")
    DIAGNOSES[name](held, forward)
    ruin(held, value)
    with pytest.raises(ValueError, match=BROKEN):
        DIAGNOSES[name](held, forward)


def test_agreement_and_discord_of_an_extension_made_before(held: ts.Problem) -> None:
    forward = ts.harmonic_extension(held)
    known = Familiarity.of(held)
    table = discord(forward)
    ruin(held, float("nan"))
    assert torch.equal(discord(forward).values, table.values)  # read off, not computed
    with pytest.raises(ValueError, match=BROKEN):
        discord(forward, forward.cochain)
    with pytest.raises(ValueError, match=BROKEN):
        agreement(forward, forward.output)
    with pytest.raises(ValueError, match=BROKEN):
        known.finding(held)


def test_statistics_that_broke_after_encode_are_named() -> None:
    model, x = convnet(3), randn(1, 24, 1, 8, 8)
    problem = ts.hold(ts.encode(model, x), x)
    model[1].running_var[0] = float("nan")  # type: ignore[index, union-attr]
    with pytest.raises(ValueError, match=r"'1\.running_var' contains NaN"):
        pathologies(problem)


def test_a_look_that_fails_leaves_the_record_as_it_was() -> None:
    net, x = relu_mlp([3, 5, 2], 1), randn(2, 24, 3)
    monitor = watch(net, (x, Y))
    monitor()
    kept: Tensor = net[2].weight.detach().clone()
    with torch.no_grad():
        net[2].weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match=BROKEN):
        monitor()
    seen = monitor.evolution
    assert seen.steps == [0]
    assert len(seen.tables) == len(seen.gaps) == len(seen.findings) == 1
    with torch.no_grad():
        net[2].weight.copy_(kept)
    monitor()
    assert seen.steps == [0, 1]


class Pair(nn.Module):
    """Two heads on one body: two classes from the first, three from the second."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.a, self.b = nn.Linear(3, 5), nn.Linear(5, 2), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.relu(self.body(x))
        return self.a(h), self.b(h)


OUTPUT_READERS: dict[str, Callable[..., object]] = {
    "pathologies": lambda p, **o: pathologies(p, Y, **o),
    "label_energy": lambda p, **o: label_energy(p, Y, **o).signed.tolist(),
    "nudged_discord": lambda p, **o: nudged_discord(p, Y, **o).values.tolist(),
    "tension_correction": lambda p, **o: tension_correction(
        p, p.start("forward"), p, **o
    ).plain.tolist(),
}


@pytest.mark.parametrize("name", OUTPUT_READERS)
def test_one_of_several_outputs_is_named(name: str) -> None:
    model, x = fill(Pair(), 4), randn(2, 24, 3)
    problem, read = ts.hold(ts.encode(model, x), x), OUTPUT_READERS[name]
    with pytest.raises(ValueError, match="this model has 2 outputs; write output= one of: a, b"):
        read(problem)
    with pytest.raises(ValueError, match="no output named 'body'; write one of: a, b"):
        read(problem, output="body")
    assert read(problem, output="a") != read(problem, output="b")
    model.forward = lambda x: model.b(torch.relu(model.body(x)))  # type: ignore[method-assign]
    alone = ts.hold(ts.encode(model, x, unused_parameters="allow"), x)
    assert read(alone) == read(alone, output="b")
    if name not in ("pathologies", "nudged_discord"):  # those have a column for head a
        assert read(alone) == read(problem, output="b")


@pytest.mark.parametrize("name", ["a", "b"])
def test_discord_decays_from_the_output_that_is_meant(name: str) -> None:
    """The other head is no step of this output's, though it stands behind it."""
    model, x = fill(Pair(), 4), randn(2, 24, 3)
    found = pathologies(ts.hold(ts.encode(model, x), x), Y, output=name)
    assert f"vanishing discord from {name} back to body" in [f.name for f in found]


def test_watch_of_several_outputs_names_one() -> None:
    model, x = fill(Pair(), 4), randn(2, 24, 3)
    with pytest.raises(ValueError, match="this model has 2 outputs; write output= one of: a, b"):
        watch(model, (x, Y))
    monitor = watch(model, (x, Y), output="b", samples=16, spectral=0)
    monitor()
    expected = nudged_discord(ts.hold(monitor.sheaf, x[:16]), Y[:16], output="b")
    assert torch.equal(monitor.evolution.tables[0], expected.values)


def test_the_page_says_which_of_several_outputs_it_is_about() -> None:
    model, x = fill(Pair(), 4), randn(2, 24, 3)
    page = ts.report(model, x, Y)
    assert "This model has 2 outputs: a, b. What the page says of the output is about a." in page
    assert "outputs:" not in ts.report(relu_mlp([3, 5, 2], 1), x, Y)


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda p: pathologies(p, dt=-1, top=3.0), "dt is -1; write a positive number"),
        (lambda p: pathologies(p, dt=NAN, top=3.0), "dt is nan; write a positive number"),
        (lambda p: pathologies(p, dt=0.1, top=0.0), "top is 0.0; write a positive number"),
        (lambda p: pathologies(p, dt=0.1, top=3.0, alpha="a"), "alpha is 'a'; write a positive"),
        (lambda p: pathologies(p, dt=0.1), r"write top=float\(spectra\(problem\)\.top\.max"),
        (lambda p: pathologies(p, decay=NAN), "decay is nan; write a positive number"),
        (lambda p: pathologies(p, decay=True), "decay is True; write a positive number"),
        (lambda p: label_energy(p, Y, margin=NAN), "margin is nan; write a finite number"),
        (lambda p: label_energy(p, Y, margin=INF), "margin is inf; write a finite number"),
        (lambda p: label_energy(p, Y, rivals=0), "rivals is 0; write a whole number, 1 or more"),
        (lambda p: label_energy(p, Y, rivals=1.5), "rivals is 1.5; write a whole number"),
        (lambda p: ts.spectrum(p, k=1.5), "k is 1.5; write a whole number, 1 or more"),
        (lambda p: ts.spectrum(p, k=True), "k is True; write a whole number"),
        (lambda p: ts.spectrum(p, k=13), r"k is 13; write 1 … 12 \(the free coordinates\)"),
        (lambda p: ts.spectrum(p, tol=NAN), "tol is nan; write a positive number"),
        (lambda p: ts.spectrum(p, max_basis=0), "max_basis is 0; write a whole number, 1 or more"),
        (lambda p: spectra(p, tol=-1.0), "tol is -1.0; write a positive number"),
        (lambda p: spectra(p, numbers=NAN), "numbers is nan; write a positive number"),
        (lambda p: nudged_discord(p).worst(-1), "count is -1; write a whole number, 0 or more"),
        (lambda p: nudged_discord(p).worst(2.5), "count is 2.5; write a whole number"),
        (lambda p: watched(p, samples=0), "samples is 0; write a whole number, 1 or more"),
        (lambda p: watched(p, samples=-1), "samples is -1; write a whole number"),
        (lambda p: watched(p, every=1.5), "every is 1.5; write a whole number, 1 or more"),
        (lambda p: watched(p, spectral=-1), "spectral is -1; write a whole number, 0 or more"),
    ],
)
def test_numbers_that_do_not_fit(
    held: ts.Problem, ask: Callable[[ts.Problem], object], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        ask(held)


def watched(problem: ts.Problem, **options: Any) -> object:
    return watch(problem.sheaf.network.model, (problem.values["input"], Y), **options)


def test_numbers_of_other_libraries_are_numbers(held: ts.Problem) -> None:
    top = spectra(held).top.max()  # a scalar tensor
    assert pathologies(held, dt=0.1, top=top, alpha=np.float32(1))[-1].bound == 2 / float(top)
    assert ts.spectrum(held, k=np.int64(2)).values.shape == (24, 2)
    assert nudged_discord(held).worst(torch.tensor(3)).shape == (3,)
    assert nudged_discord(held).worst(0).shape == (0,)


LABELS: list[tuple[Any, str]] = [
    ([0] * 24, "is a list; pass a tensor of labels"),
    (torch.tensor(1), r"shape \(\)"),
    (Y[:5], r"shape \(5,\)"),
    (Y + 1, r"class numbers 1 … 2; the output has 2 classes, numbered 0 … 1"),
    (Y - 1, "class numbers -1 … 0"),
    (torch.zeros(24, 2, dtype=torch.complex64), r"complex64 of shape \(24, 2\)"),
]
VALUES: list[tuple[Any, str]] = [
    (torch.zeros(24, 3), r"shape \(24, 3\); write class numbers \(24,\).*or values \(24, 2\)"),
    (torch.full((24, 2), NAN), "y contains NaN or infinity"),
]


@pytest.mark.parametrize(("y", "words"), LABELS)
def test_labels_that_do_not_fit(held: ts.Problem, y: Any, words: str) -> None:
    for read in (label_energy, pathologies, nudged_discord):
        with pytest.raises((TypeError, ValueError), match=words):
            read(held, y)


@pytest.mark.parametrize(("y", "words"), VALUES)
def test_wanted_values_that_do_not_fit(held: ts.Problem, y: Tensor, words: str) -> None:
    for read in (pathologies, nudged_discord):
        with pytest.raises(ValueError, match=words):
            read(held, y)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int32])
@pytest.mark.parametrize("width", [1, 2])
def test_labels_of_every_whole_type_are_class_numbers(width: int, dtype: torch.dtype) -> None:
    x = randn(2, 24, 3)
    problem = ts.hold(ts.encode(relu_mlp([3, 5, width], 1), x), x)
    found, plain = (label_energy(problem, y).signed for y in (Y.to(dtype), Y))
    assert torch.equal(found, plain)
    assert pathologies(problem, Y.to(dtype)) == pathologies(problem, Y)


def test_whole_numbers_as_wanted_values(held: ts.Problem) -> None:
    """A one-hot table of integers is values, and labels for no class."""
    hot = nn.functional.one_hot(Y, 2)
    assert pathologies(held, hot) == pathologies(held, hot.double())


def test_references_that_do_not_fit(held: ts.Problem) -> None:
    forward = held.start("forward")
    with pytest.raises(ValueError, match=r"reference\['input'\] is torch.float32.*torch.float64"):
        fault_profile(held, forward.map(Tensor.float))
    with pytest.raises(ValueError, match=r"reference\['1'\] contains NaN or infinity"):
        fault_profile(held, {**forward, "1": forward["1"] * NAN})
    with pytest.raises(TypeError, match=r"reference\['1'\] is a list; pass a tensor"):
        fault_profile(held, {**forward, "1": [1.0]})  # type: ignore[dict-item]
    with pytest.raises(TypeError, match="reference is a Tensor; pass a Cochain or a dict"):
        fault_profile(held, forward["1"])  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["discord", "prediction", "tension_correction", "spectrum"])
def test_cochains_that_do_not_fit(held: ts.Problem, name: str) -> None:
    forward, what = held.start("forward"), "stalks" if name == "tension_correction" else "at"

    def ask(at: Any) -> object:
        return ts.spectrum(held, at=at) if name == "spectrum" else DIAGNOSES[name](held, at)

    for at, words in (
        (forward.select(["input", "0"]), f"{what} has no value for vertex '1'"),
        (forward.samples(slice(0, 5)), rf"{what}\['input'\] has shape \(5, 3\); write \(24, 3\)"),
        (
            forward.map(Tensor.float),
            rf"{what}\['input'\] is torch.float32; write .to\(torch.float64",
        ),
        (forward.map(lambda t: t * NAN), rf"{what}\['input'\] contains NaN or infinity"),
    ):
        with pytest.raises(ValueError, match=words):
            ask(at)
    with pytest.raises(TypeError, match=f"{what} is a Tensor; pass a Cochain or a dict"):
        ask(forward["0"])


@pytest.mark.parametrize("name", DIAGNOSES)
def test_what_is_no_problem(held: ts.Problem, name: str) -> None:
    with pytest.raises(TypeError, match="a Sheaf came|got Sheaf"):
        DIAGNOSES[name](held.sheaf, held.start("forward"))  # type: ignore[arg-type]


def test_agreement_of_what_is_no_extension_or_no_output(held: ts.Problem) -> None:
    forward = ts.harmonic_extension(held)
    with pytest.raises(TypeError, match="agreement takes an Extension; got Problem"):
        agreement(held, forward.output)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="expected is a list; pass"):
        agreement(forward, [0.0])  # type: ignore[arg-type]


def test_bounds_and_vertices(held: ts.Problem) -> None:
    with pytest.raises(ValueError, match="bound is nan; write a finite number"):
        fault_profile(held, held.start("forward")).findings(NAN)
    assert Familiarity.of(held, "input").means.keys() == {"input"}


def test_spectrum_of_half_precision_is_refused() -> None:
    net, x = relu_mlp([3, 5, 2], 1, dtype=torch.float16), randn(2, 4, 3, dtype=torch.float16)
    with pytest.raises(ValueError, match=r"float16; .*needs float32 or float64: .*model\.float"):
        ts.spectrum(ts.hold(ts.encode(net, x), x))


def test_watching_what_is_no_model_or_writing_to_what_is_no_writer() -> None:
    data = (randn(1, 4, 3), Y[:4])
    with pytest.raises(TypeError, match="model is a str; pass an nn.Module"):
        watch("net", data)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="writer is a int; .*add_scalar"):
        watch(relu_mlp([3, 2], 1), data, writer=3)


def test_a_heat_map_of_no_discord_at_all() -> None:
    net, x = relu_mlp([3, 2], 1), randn(1, 4, 3)
    monitor = watch(net, (x, net(x).detach()))
    monitor()
    assert float(monitor.evolution.discord.max()) == 0
    evolution_heatmap(monitor.evolution).canvas.draw()


def test_watch_of_two_inputs() -> None:
    """As `fit` takes them: a tuple of inputs, then the labels."""
    model = fill(TwoInputs(3), 5)
    x = (randn(6, 24, 3), randn(7, 24, 3))
    monitor = watch(model, (x, Y), samples=16, spectral=0)
    monitor()
    first = hold_first(monitor, 16, x)
    assert torch.equal(monitor.evolution.tables[0], nudged_discord(first, Y[:16]).values)
    loaded = watch(model, [(x, Y), (x, Y)], samples=30)
    assert [t.shape for t in loaded.x] == [(30, 3), (30, 3)]


def hold_first(monitor: Any, count: int, x: tuple[Tensor, ...]) -> ts.Problem:
    return ts.hold(monitor.sheaf, tuple(t[:count] for t in x))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([randn(1, 4, 3)], r"a Tensor; write \(x, y\)"),
        ([(randn(1, 4, 3), Y[:4], Y[:4])], r"a tuple of 3; write \(x, y\)"),
        ([{"x": randn(1, 4, 3), "y": Y[:4]}], r"a dict; write \(x, y\)"),
        (randn(1, 4, 3), r"a Tensor; write \(x, y\)"),
        ((randn(1, 4, 3), [0, 1, 0, 1]), r"y is a list; pass a tensor of labels"),
        ((randn(1, 4, 3), Y[:3]), r"y has shape \(3,\) for 4 samples"),
        (([[0.0]], Y[:1]), r"input x is a list of list; write a tensor"),
        (((), Y[:1]), r"input x is an empty tuple; write a tensor"),
        ((torch.tensor(1.0), Y[:1]), r"input x is a tensor without axes; write a tensor"),
        (7, r"a int; write \(x, y\)"),
        ([], "empty"),
    ],
)
def test_data_that_cannot_be_watched(data: Any, words: str) -> None:
    with pytest.raises((TypeError, ValueError), match=words):
        watch(relu_mlp([3, 5, 2], 1), data)


def test_watching_without_labels() -> None:
    monitor = watch(relu_mlp([3, 5, 2], 1), (randn(1, 24, 3), None), samples=16)
    monitor()
    assert len(monitor.evolution.tables[0]) == 16


def test_an_evolution_says_what_it_has_not_seen(held: ts.Problem) -> None:
    data = (held.values["input"], Y)
    seen = watch(held.sheaf.network.model, data).evolution
    for read in (
        lambda: seen.discord, lambda: seen.gap, lambda: seen.top, seen.scalars,
        lambda: evolution_heatmap(seen), lambda: spectral_evolution_figure(seen),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="no look has been taken yet; call the monitor first"):
            read()
    assert seen.failing == ()
    monitor = watch(held.sheaf.network.model, data, spectral=0)
    monitor()
    assert evolution_heatmap(monitor.evolution).axes
    for read in (lambda: monitor.evolution.gap, lambda: monitor.evolution.top):
        with pytest.raises(ValueError, match="no spectrum was watched; write watch.*spectral="):
            read()
