"""Law: pins that differ between samples give in a batch what each sample gives on its own."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchsheaf as ts
from tests.reference.networks import fill, generator, randn, relu_mlp

BATCH = 6


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 5), nn.Linear(5, 4)
        self.last = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(x + self.second(torch.relu(self.first(x)))))


NETS: dict[str, Callable[[], tuple[nn.Module, tuple[int, ...]]]] = {
    "relu": lambda: (relu_mlp([4, 6, 5, 2], 1), (4,)),
    "residual": lambda: (fill(Residual(), 2), (4,)),
    "gelu": lambda: (
        fill(nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 2)), 3),
        (4,),
    ),
    "leaky": lambda: (
        fill(nn.Sequential(nn.Linear(4, 6), nn.LeakyReLU(0.2), nn.Linear(6, 2)), 4),
        (4,),
    ),
    "pool": lambda: (
        fill(
            nn.Sequential(
                nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
                nn.Linear(8, 2),
            ),
            5,
        ),
        (1, 4, 4),
    ),
}  # fmt: skip


def masks(seed: int, *shape: int) -> Tensor:
    """Every sample has a coordinate that is chosen, and no two need have the same ones."""
    chosen = torch.rand(BATCH, *shape, generator=generator(seed)) < 0.5
    flat = chosen.reshape(BATCH, -1)
    flat[:, 0] |= ~flat.any(1)
    return flat.reshape(BATCH, *shape)


def same_in_a_loop(
    sheaf: ts.Sheaf, x: Tensor, make: Callable[[slice, Callable[[Tensor], Tensor]], ts.Problem]
) -> None:
    """`make(samples, pick)` holds the samples; `pick` gives their part of a tensor per sample."""
    whole = make(slice(None), lambda t: t)
    found = ts.harmonic_extension(whole, start="forward", tol=1e-9)
    assert bool((found.stationarity <= 1e-9).all())
    for i in range(BATCH):
        alone = make(slice(i, i + 1), lambda t, i=i: t[i])
        expected = ts.harmonic_extension(alone, start="forward", tol=1e-9)
        assert float((found.energy[i] - expected.energy[0]).abs()) <= 1e-10
        for name in expected.cochain:
            near = found.cochain[name][i], expected.cochain[name][0]
            torch.testing.assert_close(*near, atol=1e-7, rtol=1e-7)


@pytest.mark.parametrize("name", NETS)
def test_missing_features_of_each_sample(name: str) -> None:
    net, shape = NETS[name]()
    x, y = randn(10, BATCH, *shape), randn(11, BATCH, 2)
    sheaf, known = ts.encode(net, x), masks(12, *shape)
    x = torch.where(known, x, torch.nan)

    def make(samples: slice, pick: Callable[[Tensor], Tensor]) -> ts.Problem:
        held = ts.hold(sheaf, x[samples], where=pick(known))
        pull = ts.Pin("x" if "x" in sheaf.inputs else sheaf.inputs[0], 0.0, ~pick(known), 0.1)
        held = held.pin(ts.Pin("output", y[samples]))
        return held if bool(pick(known).all()) else held.pin(pull)

    same_in_a_loop(sheaf, x, make)


@pytest.mark.parametrize("hard", [True, False])
@pytest.mark.parametrize("name", NETS)
def test_pins_inside_of_each_sample(name: str, hard: bool) -> None:
    net, shape = NETS[name]()
    x, y = randn(20, BATCH, *shape), randn(21, BATCH, 2)
    sheaf = ts.encode(net, x)
    inside = [v for v in sheaf.edges if v != sheaf.output()][:2]
    places = {v: masks(22 + i, *sheaf.vertices[v].shape) for i, v in enumerate(inside)}
    values = {v: randn(30 + i, BATCH, *sheaf.vertices[v].shape) for i, v in enumerate(inside)}

    def make(samples: slice, pick: Callable[[Tensor], Tensor]) -> ts.Problem:
        problem = ts.hold(sheaf, x[samples]).pin(ts.Pin("output", y[samples], weight=0.7))
        for v in inside:
            where, value = pick(places[v]), values[v][samples]
            if where.ndim == len(sheaf.vertices[v].shape):  # shared: one number per coordinate
                value = value.reshape(1, -1)[:, where.flatten()]
            problem = problem.pin(ts.Pin(v, value, where, torch.inf if hard else 2.5))
        return problem

    same_in_a_loop(sheaf, x, make)


@pytest.mark.parametrize("name", NETS)
def test_weights_of_each_sample(name: str) -> None:
    net, shape = NETS[name]()
    x, y = randn(40, BATCH, *shape), randn(41, BATCH, 2)
    sheaf = ts.encode(net, x)
    inside = next(iter(sheaf.edges))
    size = sheaf.vertices[inside].shape
    gamma = randn(42, BATCH, 2).exp()
    deep = torch.where(masks(43, *size), randn(44, BATCH, *size).exp(), 0)

    def make(samples: slice, pick: Callable[[Tensor], Tensor]) -> ts.Problem:
        given = pick(deep)
        return ts.hold(sheaf, x[samples]).pin(
            ts.Pin("output", y[samples], weight=pick(gamma)),
            ts.Pin(inside, 0.5, weight=given),
        )

    same_in_a_loop(sheaf, x, make)


def test_weights_per_coordinate_are_several_pins() -> None:
    """γ as a vector is one pin per coordinate; equal weights are one number."""
    net, shape = NETS["relu"]()
    x, y = randn(50, BATCH, *shape), randn(51, BATCH, 2)
    held = ts.hold(ts.encode(net, x), x)
    vector = held.pin(ts.Pin("output", y, weight=torch.tensor([0.5, 3.0])))
    apart = held.pin(ts.Pin("output", y[:, 0], 0, 0.5), ts.Pin("output", y[:, 1], 1, 3.0))
    c = vector.start("random", generator(1))
    torch.testing.assert_close(vector.energy(c), apart.energy(c), atol=1e-12, rtol=1e-12)
    for start in ("forward", "auto"):
        a, b = (ts.harmonic_extension(p, start=start) for p in (vector, apart))
        assert a.passes == b.passes
        torch.testing.assert_close(a.energy, b.energy, atol=1e-12, rtol=1e-12)
    even, one = (held.pin(ts.Pin("output", y, weight=w)) for w in (torch.full((2,), 3.0), 3.0))
    torch.testing.assert_close(even.energy(c), one.energy(c), atol=1e-12, rtol=1e-12)


def test_a_soft_leaf_has_its_closed_form() -> None:
    """One affine layer, γ of each sample: output z + γ/(1 + γ)(p − z), E = ½ Σ γ/(1+γ)(p − z)²."""
    net = fill(nn.Linear(3, 2), 6)
    x, p = randn(60, BATCH, 3), randn(61, BATCH, 2)
    gamma = torch.where(masks(62, 2), randn(63, BATCH, 2).exp(), 0)
    problem = ts.hold(ts.encode(net, x), x).pin(ts.Pin("output", p, weight=gamma))
    found = ts.harmonic_extension(problem)
    z, share = net(x).detach(), gamma / (1 + gamma)
    torch.testing.assert_close(found.output, z + share * (p - z), atol=1e-9, rtol=1e-9)
    energy = 0.5 * (share * (p - z).square()).sum(1)
    torch.testing.assert_close(found.energy, energy, atol=1e-9, rtol=1e-9)


def test_gradient_and_laplacian_are_those_of_the_energy() -> None:
    """∇E and ∇²E by automatic differentiation of the energy written out, zero where it is held."""
    net, x, y = relu_mlp([4, 6, 2], 1), randn(70, BATCH, 4), randn(71, BATCH, 2)
    sheaf = ts.encode(net, x)
    inside, after, output = sheaf.edges
    place, gamma = masks(72, 6), randn(73, BATCH, 2).exp()
    pins = ts.Pin(inside, 0.3, place), ts.Pin(output, y, weight=gamma)
    problem = ts.hold(sheaf, x).pin(*pins)
    free = problem.free

    def energy(flat: Tensor) -> Tensor:
        z, a, out = flat.split([6, 6, 2], 1)
        z = torch.where(place, 0.3, z)
        residuals = z - net[0](x), a - torch.relu(z), out - net[2](a), gamma.sqrt() * (out - y)
        return 0.5 * sum(r.square().sum(1) for r in residuals)

    flat, v = free.flatten(problem.start("random", generator(2))), randn(74, BATCH, 14)
    c = problem.clamp(free.unflatten(flat))
    torch.testing.assert_close(problem.energy(c), energy(flat), atol=1e-12, rtol=1e-12)
    slope = torch.func.grad(lambda f: energy(f).sum())
    expected, second = torch.func.jvp(slope, (flat,), (v,))
    near = {"atol": 1e-12, "rtol": 1e-12}
    torch.testing.assert_close(free.flatten(problem.gradient(c)), expected, **near)
    torch.testing.assert_close(problem.laplacian(c).apply_flat(v), second, **near)
    assert bool((second[:, :6][place] == 0).all())


@pytest.mark.parametrize(("method", "missing"), [("exact", False), ("ode", True), ("ode", False)])
def test_flow_of_each_sample(method: str, missing: bool) -> None:
    net, x, y = relu_mlp([3, 4, 4, 1], 7), randn(80, BATCH, 3), randn(81, BATCH, 1)
    sheaf, gamma = ts.encode(net, x), randn(83, BATCH, 1).exp()
    known = masks(82, 3) if missing else torch.ones(BATCH, 3, dtype=torch.bool)

    def flow(samples: slice, pick: Callable[[Tensor], Tensor]) -> ts.Trajectory:
        held = ts.hold(sheaf, x[samples], where=pick(known))
        held = held.pin(ts.Pin("output", y[samples], weight=pick(gamma)))
        return ts.heat_flow(held, start="forward", until=3.0, method=method, tol=1e-10)

    whole = flow(slice(None), lambda t: t)
    for i in range(BATCH):
        alone = flow(slice(i, i + 1), lambda t, i=i: t[i])
        for name in alone.final:
            near = whole.final[name][i], alone.final[name][0]
            torch.testing.assert_close(*near, atol=1e-6, rtol=1e-6)
    held = torch.where(known, x, whole.final[sheaf.inputs[0]])
    assert bool((whole.final[sheaf.inputs[0]] == held).all())


def test_discord_of_a_pin_is_that_of_what_it_pulls() -> None:
    """‖c − p‖² over the chosen coordinates of each sample; 0 where a sample is not pulled."""
    net, x, y = relu_mlp([4, 6, 2], 8), randn(94, BATCH, 4), randn(95, BATCH, 2)
    sheaf, chosen = ts.encode(net, x), masks(96, 2)
    chosen[0] = False
    held, off = ts.hold(sheaf, x), torch.where(chosen, net(x).detach() - y, 0)
    weight = torch.where(chosen, randn(97, BATCH, 2).exp(), 0)
    for pin in (ts.Pin("output", y, chosen, 2.0), ts.Pin("output", y, weight=weight)):
        problem = held.pin(pin)
        table = ts.discord(problem, problem.start("forward"))
        (name,) = problem.taps
        near = {"atol": 1e-12, "rtol": 1e-12}
        torch.testing.assert_close(table.column(name), off.square().sum(1), **near)


def test_patching_follows_the_pins_of_each_sample() -> None:
    net, x = relu_mlp([4, 6, 2], 8), randn(90, BATCH, 4)
    sheaf = ts.encode(net, x)
    inside, place = next(iter(sheaf.edges)), masks(91, 6)
    values, gamma = randn(92, BATCH, 6), torch.where(masks(93, 6), 2.0, 0.0)
    z = net[0](x).detach()
    hard = ts.counterfactual(sheaf, x, ts.Pin(inside, values, place))
    soft = ts.counterfactual(sheaf, x, ts.Pin(inside, values, weight=gamma))
    for found, where in ((hard, place), (soft, gamma > 0)):
        expected = torch.where(where, values, z)
        torch.testing.assert_close(found.patched[inside], expected, atol=0, rtol=0)
        out = net[2](torch.relu(expected))
        torch.testing.assert_close(found.patched[sheaf.output()], out, atol=1e-12, rtol=1e-12)


def test_chosen_samples_keep_their_own_pins() -> None:
    net, x, y = relu_mlp([4, 6, 2], 9), randn(100, BATCH, 4), randn(101, BATCH, 2)
    sheaf, known, gamma = ts.encode(net, x), masks(102, 4), randn(103, BATCH, 2).exp()
    problem = ts.hold(sheaf, x, where=known).pin(ts.Pin("output", y, weight=gamma))
    c = problem.start("random", generator(3))
    index = torch.tensor([4, 0, 3])
    part = problem.samples(index)
    there = ts.Cochain({n: t[index] for n, t in c.items()})
    torch.testing.assert_close(part.energy(there), problem.energy(c)[index], atol=0, rtol=1e-14)
    for name, g in part.gradient(there).items():
        torch.testing.assert_close(g, problem.gradient(c)[name][index], atol=0, rtol=1e-12)
    with pytest.raises(ValueError, match="it pulls at what is held"):
        part.pin(ts.Pin(sheaf.inputs[0], 0.0, known[index], 1.0))


def test_masks_that_agree_are_one_mask() -> None:
    """What a mask per sample means does not depend on whether the samples' masks are the same."""
    net, x, values = relu_mlp([4, 6, 2], 9), randn(105, BATCH, 4), randn(106, BATCH, 6)
    sheaf, mask = ts.encode(net, x), torch.tensor([True, False, True, True, False, False])
    inside, held = next(iter(sheaf.edges)), ts.hold(sheaf, x)
    for weight in (torch.inf, 2.0):
        each = held.pin(ts.Pin(inside, values, mask.expand(BATCH, 6), weight))
        once = held.pin(ts.Pin(inside, values[:, mask], mask, weight))
        assert each.is_uniform
        assert once.is_uniform
        a, b = ts.harmonic_extension(each), ts.harmonic_extension(once)
        assert a.solver == b.solver
        assert a.passes == b.passes
        torch.testing.assert_close(a.energy, b.energy, atol=0, rtol=0)


def test_what_needs_the_same_boundary_in_all_samples_says_so() -> None:
    net, x, y = relu_mlp([4, 6, 2], 9), randn(110, BATCH, 4), randn(111, BATCH, 2)
    sheaf, known = ts.encode(net, x), masks(112, 4)
    own = ts.hold(sheaf, x, where=known).pin(ts.Pin("output", y))
    with pytest.raises(ValueError, match=r"problem\.samples\(index\)"):
        ts.spectrum(own)
    with pytest.raises(ValueError, match="samples hold different coordinates"):
        ts.heat_flow(own, method="exact")
    assert ts.heat_flow(own, start="forward", until=0.1).method == "ode"
    weighed = ts.hold(sheaf, x).pin(ts.Pin("output", y, weight=randn(113, BATCH, 2).exp()))
    with pytest.raises(ValueError, match="the same pins and weights in all samples"):
        ts.harmonic_extension(weighed, solver="block descent")
    assert bool((ts.spectrum(weighed).values > 0).all())


@pytest.mark.parametrize(
    ("pin", "said"),
    [
        ({"value": 0.0, "where": torch.ones(5, 6, dtype=torch.bool)}, r"\(6, 6\) per sample"),
        ({"value": 0.0, "weight": torch.tensor([1.0, -1.0])}, "0 for no pull"),
        ({"value": 0.0, "weight": torch.tensor([1.0, torch.inf])}, "0 for no pull"),
        ({"value": 0.0, "weight": torch.ones(3)}, r"weight has shape \(3,\)"),
        ({"value": torch.zeros(3), "where": masks(120, 6)}, r"value has shape \(3,\)"),
        ({"value": torch.tensor(torch.nan), "where": masks(120, 6)}, "NaN or infinity"),
    ],
)
def test_what_does_not_fit_is_refused(pin: dict[str, Any], said: str) -> None:
    net, x = relu_mlp([4, 6, 2], 9), randn(121, BATCH, 4)
    sheaf = ts.encode(net, x)
    with pytest.raises(ValueError, match=said):
        ts.hold(sheaf, x).pin(ts.Pin(next(iter(sheaf.edges)), **pin))


def test_pins_that_meet_in_no_sample_do_not_conflict() -> None:
    net, x = relu_mlp([4, 6, 2], 9), randn(130, BATCH, 4)
    sheaf = ts.encode(net, x)
    inside, place = next(iter(sheaf.edges)), masks(131, 6)
    problem = ts.hold(sheaf, x).pin(ts.Pin(inside, 1.0, place), ts.Pin(inside, 2.0, ~place))
    found = ts.harmonic_extension(problem)
    assert bool((found.cochain[inside] == torch.where(place, 1.0, 2.0)).all())
    first = tuple(place.nonzero()[0].tolist())
    with pytest.raises(ValueError, match=rf"both hold '{inside}' at \[{first[1]}\]"):
        problem.pin(ts.Pin(inside, 0.0, [first[1]]))
