"""Pins, free inputs and starts as a new user meets them."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

import torchsheaf as ts
from tests.reference.networks import TwoInputs, fill, randn, relu_mlp


@pytest.fixture(scope="module")
def sheaf() -> ts.Sheaf:
    return ts.encode(relu_mlp([4, 10, 7, 3], 1), randn(1, 6, 4))


def test_free_input_coordinates_start_where_x_is(sheaf: ts.Sheaf) -> None:
    x = randn(2, 6, 4)
    answer = sheaf.forward(x)[sheaf.outputs[0]]
    found = ts.harmonic_extension(ts.hold(sheaf, x, where=[0]))
    assert torch.equal(found.cochain["input"], x)
    assert torch.equal(found.output, answer)
    # asked for its own answer, x is the answer
    whole = ts.hold(sheaf, x, where=[]).pin(ts.Pin("output", answer))
    found = ts.harmonic_extension(whole, start="forward")
    assert torch.equal(found.cochain["input"], x)
    assert float(found.energy.max()) < 1e-25


def test_missing_features_start_at_zero(sheaf: ts.Sheaf) -> None:
    x = randn(2, 6, 4)
    x[:, 2] = math.nan
    problem = ts.hold(sheaf, x, where=[0, 1, 3])
    assert bool((problem.start("forward")["input"][:, 2] == 0).all())
    found = ts.harmonic_extension(problem.pin(ts.Pin("output", 0.5)))
    assert torch.equal(found.cochain["input"][:, [0, 1, 3]], x[:, [0, 1, 3]])
    assert float(found.stationarity.max()) <= 1e-8
    one = ts.harmonic_extension(problem.samples(torch.tensor([4])).pin(ts.Pin("output", 0.5)))
    torch.testing.assert_close(one.energy, found.energy[4:5], rtol=1e-6, atol=1e-9)


def test_one_of_two_inputs_is_free() -> None:
    model, x, y = fill(TwoInputs(3), 3), randn(1, 5, 3), randn(2, 5, 3)
    sheaf = ts.encode(model, (x, y))
    problem = ts.hold(sheaf, {"x": x, "y": y}, where={"y": [0]})
    found = ts.harmonic_extension(problem.pin(ts.Pin("output", 1.0)))
    assert torch.equal(found.cochain["input.x"], x)
    assert torch.equal(found.cochain["input.y"][:, 0], y[:, 0])
    assert not torch.equal(found.cochain["input.y"], y)
    assert float(found.stationarity.max()) <= 1e-8


def test_float32_counts_an_equilibrium_once() -> None:
    net = relu_mlp([4, 10, 7, 3], 1)
    counts = []
    for dtype in (torch.float64, torch.float32):
        x = randn(2, 20, 4).to(dtype)
        problem = ts.hold(ts.encode(net.to(dtype), x), x).pin(ts.Pin("output", 1.0))
        several = ts.harmonic_extension(problem, starts=16).equilibria
        assert several is not None
        for sample in range(20):
            energies = [e for e, _ in several.distinct(sample)]
            assert energies == sorted(energies)
        counts.append(several.count)
    assert float((counts[0] - counts[1]).abs().double().mean()) <= 0.5
    assert int(counts[1].max()) <= 5


def test_samples_of_equilibria_are_counted_from_either_end(sheaf: ts.Sheaf) -> None:
    problem = ts.hold(sheaf, randn(2, 6, 4)).pin(ts.Pin("output", 1.0))
    several = ts.harmonic_extension(problem, starts=3, start="zeros").equilibria
    assert several is not None
    assert several.starts[0] == "zeros"
    (energy, last), *_ = several.distinct(-1)
    assert last["input"].shape[0] == 1
    assert energy == several.distinct(5)[0][0]
    with pytest.raises(IndexError, match="sample 6 is out of range; there are 6"):
        several.distinct(6)


def test_a_random_start_follows_its_generator(sheaf: ts.Sheaf) -> None:
    problem = ts.hold(sheaf, randn(2, 6, 4)).pin(ts.Pin("output", 1.0))

    def first(seed: int) -> float:
        source = torch.Generator().manual_seed(seed)
        found = ts.harmonic_extension(problem, start="random", generator=source)
        return found.energies[0]

    assert first(0) == first(0)
    assert first(0) != first(1)


def test_nothing_free_is_an_equilibrium() -> None:
    net = nn.Linear(3, 2, dtype=torch.float64)
    x = randn(1, 4, 3)
    found = ts.harmonic_extension(ts.hold(ts.encode(net, x), x).pin(ts.Pin("output", 1.0)))
    assert torch.equal(found.stationarity, torch.zeros(4, dtype=torch.float64))
    expected = 0.5 * (1 - net(x)).square().sum(1)
    torch.testing.assert_close(found.energy, expected.detach())


def test_later_patches_win_one_coordinate_at_a_time(sheaf: ts.Sheaf) -> None:
    x = randn(2, 6, 4)
    pins = [ts.Pin("0", 1.0, [0], 2.0), ts.Pin("0", 3.0, [0, 1], 2.0)]
    patched = ts.counterfactual(sheaf, x, pins).patched["0"]
    assert bool((patched[:, :2] == 3).all())
    assert torch.equal(patched[:, 2:], sheaf.forward(x)["0"][:, 2:])


def test_a_counterfactual_of_token_numbers_and_one_that_is_cut_short() -> None:
    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
    net = nn.Sequential(nn.Embedding(7, 4), nn.Flatten(), nn.Linear(12, 2)).double()
    sheaf = ts.encode(net, ids)
    answer = ts.counterfactual(sheaf, ids, ts.Pin("0", 0.5, where=[0]))
    assert float(answer.changes[0].pinned.max()) == 0  # the input, which is held
    hard = ts.encode(relu_mlp([4, 10, 7, 3], 1), randn(1, 6, 4))
    pins = [ts.Pin("2", 0.5, where=[0]), ts.Pin("output", 1.0)]
    short = ts.counterfactual(hard, randn(2, 6, 4), pins, max_passes=2, throw=False)
    assert not short.extension.outcome.ok


def test_values_and_choices_of_numpy_and_of_each_sample(sheaf: ts.Sheaf) -> None:
    problem, each = ts.hold(sheaf, randn(2, 6, 4)), torch.arange(6.0, dtype=torch.float64)
    mask = np.zeros(10, dtype=bool)
    mask[3] = True
    pinned = problem.pin(ts.Pin("0", each, where=mask, weight=np.float32(2)))
    assert torch.equal(pinned.soft[0].target[:, 0], each)
    each += 1  # the pin has its own copy
    assert torch.equal(pinned.soft[0].target[:, 0], each - 1)
    learnt = torch.ones(6, 1, dtype=torch.float64, requires_grad=True)
    found = ts.harmonic_extension(problem.pin(ts.Pin("0", learnt, where=[3])))
    assert not found.output.requires_grad


def test_one_number_per_sample_holds_all_its_chosen_coordinates(sheaf: ts.Sheaf) -> None:
    problem, each = ts.hold(sheaf, randn(2, 6, 4)), randn(3, 6, 1)
    held = problem.pin(ts.Pin("2", each, where=[1, 4])).values["2"]
    assert torch.equal(held[:, [1, 4]], each.expand(6, 2))
    assert torch.equal(problem.pin(ts.Pin("0", each)).values["0"], each.expand(6, 10))


def test_a_value_of_the_shape_of_the_stalk_keeps_its_order() -> None:
    net, x, value = nn.Linear(4, 3, dtype=torch.float64), randn(1, 5, 2, 4), randn(2, 2, 3)
    problem = ts.hold(ts.encode(net, x), x)
    for given in (value, value.expand(5, 2, 3)):
        held = problem.pin(ts.Pin("output", given)).values[problem.sheaf.outputs[0]]
        assert torch.equal(held[3], value)


def test_a_pin_leaves_the_problem_that_it_refines_as_it_was(sheaf: ts.Sheaf) -> None:
    one = ts.hold(sheaf, randn(2, 6, 4)).pin(ts.Pin("0", 1.0, where=[2]))
    two = one.pin(ts.Pin("0", 3.0, where=[5]))
    assert [int(p.held["0"].sum()) for p in (one, two)] == [1, 2]
    assert bool((two.values["0"][:, [2, 5]] == torch.tensor([1.0, 3.0])).all())
    assert bool((one.values["0"][:, 5] == 0).all())


def test_a_start_is_of_the_type_that_the_model_has_now() -> None:
    net, x = relu_mlp([4, 10, 7, 3], 1), randn(2, 6, 4).float()
    sheaf = ts.encode(net, x.double())
    net.float()
    problem = ts.hold(sheaf, x).pin(ts.Pin("output", 1.0))
    found = ts.harmonic_extension(problem, start=problem.start("forward"))
    assert found.start == "given"
    assert found.output.dtype == torch.float32


def test_what_is_found_shares_no_memory_with_the_input(sheaf: ts.Sheaf) -> None:
    x = randn(2, 6, 4)
    problem = ts.hold(sheaf, x)
    x.zero_()
    assert torch.equal(problem.values["input"], randn(2, 6, 4))


def test_printed_objects_fit_a_line_or_two(sheaf: ts.Sheaf) -> None:
    net, x = relu_mlp([4, 10, 7, 3], 1), randn(2, 6, 4)
    problem = ts.hold(sheaf, x).pin(ts.Pin("output", 1.0))
    found = ts.harmonic_extension(problem)
    printed = [
        sheaf, problem, found, found.cochain, problem.laplacian(found.cochain),
        problem.coboundary(found.cochain), ts.spectrum(problem), ts.discord(found),
        ts.heat_flow(ts.hold(sheaf, x)), ts.precision.plan(net.float(), x.float(), budget=1e-2),
    ]  # fmt: skip
    for thing in printed:
        assert type(thing).__name__ in repr(thing)
        assert len(repr(thing)) < 240, repr(thing)


def test_weights_may_be_numbers_of_any_kind():
    net, x = relu_mlp([2, 3, 1], 0), randn(1, 4, 2)
    sheaf = ts.encode(net, x)

    def energy(half: object, two: object) -> torch.Tensor:
        held = ts.hold(sheaf, x, weights={"0": half})  # type: ignore[dict-item]
        pinned = held.pin(ts.Pin("output", 1.0, weight=two))  # type: ignore[arg-type]
        return ts.harmonic_extension(pinned).energy

    plain = energy(0.5, 2)
    for half, two in ((Fraction(1, 2), Fraction(2)), (torch.tensor(0.5), np.float32(2))):
        assert torch.equal(energy(half, two), plain)
