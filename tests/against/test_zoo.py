"""Real architectures against torch itself: forward pass, energy, determinant, triangular solves."""

from collections.abc import Iterator
from functools import cache

import pytest
import torch
from torch import Tensor, nn

import torchsheaf as ts
from tests.against.zoo import ZOO, example
from torchsheaf.cochain import Cochain

TRANSFORMERS = ("gpt2", "bert", "vit", "resnet", "convnext", "mamba", "llama")


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """transformers warns about its own deprecations while it is traced."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@cache
def case(name: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, tuple, ts.Problem]:  # type: ignore[type-arg]
    if name in TRANSFORMERS:
        pytest.importorskip("transformers")
    model, inputs = example(name, dtype)
    return model, inputs, ts.hold(ts.encode(model, inputs), inputs)


def outputs(model: nn.Module, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    with torch.no_grad():
        return torch.utils._pytree.tree_leaves(model(*inputs))


def relative(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).abs().max() / expected.abs().max().clamp_min(1e-30))


@pytest.mark.parametrize("name", ZOO)
def test_substitution_is_the_model(name: str) -> None:
    model, inputs, problem = case(name)
    extension = ts.harmonic_extension(problem)
    for vertex, expected in zip(problem.sheaf.outputs, outputs(model, inputs), strict=True):
        assert relative(extension.cochain[vertex], expected) <= 1e-11
    assert float(extension.energy.max()) <= 1e-20


@pytest.mark.parametrize("name", ZOO)
def test_substitution_is_the_model_in_float32(name: str) -> None:
    model, inputs, problem = case(name, torch.float32)
    extension = ts.harmonic_extension(problem)
    for vertex, expected in zip(problem.sheaf.outputs, outputs(model, inputs), strict=True):
        assert extension.cochain[vertex].dtype == torch.float32
        assert relative(extension.cochain[vertex], expected) <= 1e-5
    assert float(extension.energy.max()) <= 1e-9


@pytest.mark.parametrize("name", ZOO)
def test_another_batch_of_another_size(name: str) -> None:
    """The encoding is of the model, not of the example: samples stay apart, order is kept."""
    model, inputs, problem = case(name)
    more = tuple(torch.cat([x.flip(0), x, x[:1]]) for x in inputs)
    held = ts.hold(problem.sheaf, more)
    got = held.start("forward")
    for vertex, expected in zip(held.sheaf.outputs, outputs(model, more), strict=True):
        assert relative(got[vertex], expected) <= 1e-11


@pytest.mark.parametrize("name", ZOO)
def test_every_parameter_belongs_to_an_edge(name: str) -> None:
    model, _, problem = case(name)
    claimed = {s for edge in problem.sheaf.edges.values() for s in edge.parameters}
    ids = {id(problem.sheaf.network.state(s)) for s in claimed}
    assert {id(p) for p in model.parameters()} <= ids


@pytest.mark.parametrize("name", ZOO)
def test_triangular_solves_at_a_state_that_is_not_the_forward_pass(name: str) -> None:
    """δ⁻¹ and δ⁻ᵀ against the products that they undo."""
    _, _, problem = case(name)
    generator = torch.Generator().manual_seed(5)
    noise = problem.free.random(problem.batch, problem.like, generator)
    forward = problem.start("forward").select(problem.free.names)
    # each number by up to some tenths of itself: a mean square stays positive under its root
    near = Cochain({v: t * (1 + 0.1 * noise[v].clamp(-3, 3)) for v, t in forward.items()})
    coboundary = problem.coboundary(problem.clamp(near))
    u = problem.free.random(problem.batch, problem.like, generator)
    there = coboundary.apply(coboundary.solve(u)) - u
    back = coboundary.adjoint(coboundary.solve_adjoint(u)) - u
    # a deep net's δ⁻¹ is large: rounding is relative to the solution
    assert bool((there.norm() <= 1e-11 * coboundary.solve(u).norm()).all())
    assert bool((back.norm() <= 1e-11 * coboundary.solve_adjoint(u).norm()).all())
    left = coboundary.apply(u).dot(noise)
    right = u.dot(coboundary.adjoint(noise))
    # llama and mamba compute their norms in single precision inside
    tol = 1e-6 if name in ("llama", "mamba") else 1e-10
    assert bool(((left - right).abs() <= tol * left.abs().clamp_min(1)).all())


# llama and mamba compute their norms in single precision inside, too coarse for differences.
@pytest.mark.parametrize("name", [n for n in ZOO if n not in ("llama", "mamba")])
def test_restriction_maps_are_the_derivative_of_the_residual(name: str) -> None:
    """δ u against central differences of r along u, off the forward pass (and its ties)."""
    _, _, problem = case(name)
    generator = torch.Generator().manual_seed(6)
    noise = problem.free.random(problem.batch, problem.like, generator)
    forward = problem.start("forward").select(problem.free.names)
    moved = Cochain({v: t * (1 + 0.1 * noise[v]) + 1e-4 * noise[v] for v, t in forward.items()})
    u = problem.free.random(problem.batch, problem.like, generator)
    coboundary, step = problem.coboundary(problem.clamp(moved)), 1e-7
    high = problem.residual(problem.clamp(moved + step * u))
    low = problem.residual(problem.clamp(moved - step * u))
    slope, pushed = (high - low) * (0.5 / step), coboundary.apply(u)
    for edge in problem.sheaf.edges:
        gap = (slope[edge] - pushed[edge]).abs()
        # an activation nearer to a kink than the step is allowed to differ
        assert float((gap > 1e-5 * (1 + pushed[edge].abs())).double().mean()) < 5e-3, edge


@pytest.mark.parametrize("name", ZOO)
def test_the_determinant_is_one(name: str) -> None:
    """δ assembled (up to 3,068 coordinates) is unit lower triangular to the last bit."""
    _, inputs, problem = case(name)
    one = ts.hold(problem.sheaf, tuple(x[:1] for x in inputs))
    dense = one.coboundary(one.start("forward")).to_dense()
    assert bool((dense.diagonal(dim1=1, dim2=2) == 1).all())
    assert not bool(dense.triu(1).any())


@pytest.mark.parametrize("name", ["mixer", "tied", "encoder layer", "elman", "resnet"])
def test_the_gap_without_vectors_is_the_gap(name: str) -> None:
    _, _, problem = case(name)
    for which in ("smallest", "largest"):
        full = ts.spectrum(problem, which=which)
        slim = ts.spectrum(problem, which=which, vectors=False)
        assert torch.allclose(slim.values, full.values, rtol=1e-6)
        assert slim.passes <= full.passes  # it stops on the value's error, not the vector's
        tight = ts.spectrum(problem, which=which, vectors=False, tol=1e-12)
        assert torch.allclose(tight.values, full.values, rtol=1e-11)
        assert slim.vectors.shape[2] == 0
    with pytest.raises(ValueError, match="values only"):
        slim.cochain()
    with pytest.raises(ValueError, match="write k=1"):
        ts.spectrum(problem, 2, vectors=False)


# The residual stream after a block, and the module whose hook replaces it: a cut of the graph.
CUTS = {
    "gpt2": ("model.transformer.h.0.add_1", "model.transformer.h.0"),
    "resnet": (
        "model.resnet.encoder.stages.0.layers.0.activation",
        "model.resnet.encoder.stages.0.layers.0",
    ),
}


@pytest.mark.parametrize("name", CUTS)
def test_a_hard_pin_is_a_forward_hook_downstream(name: str) -> None:
    """Below the cut the pinned equilibrium is the hooked model; above it, the pin pulls."""
    model, inputs, problem = case(name)
    vertex, path = CUTS[name]
    free = problem.start("forward")
    noise = torch.randn(free[vertex].shape, generator=torch.Generator().manual_seed(8))
    value = free[vertex] + 0.3 * free[vertex].std() * noise

    def replace(_module: nn.Module, _inputs: object, out: object) -> object:
        return (value, *out[1:]) if isinstance(out, tuple) else value

    hook = model.get_submodule(path).register_forward_hook(replace)
    try:
        (expected,) = outputs(model, inputs)
    finally:
        hook.remove()
    assert relative(expected, outputs(model, inputs)[0]) > 1e-3
    pinned = problem.pin(ts.Pin(vertex, value))
    start = pinned.start("forward")
    relaxed = ts.harmonic_extension(pinned, tol=1e-5, throw=False, max_passes=150)
    out = problem.sheaf.outputs[0]
    assert relative(start[out], expected) <= 1e-11
    assert relative(relaxed.output, expected) <= 1e-5
    before = pinned.energy(start)
    assert bool((relaxed.energy < 0.9 * before).all())
    assert bool((relaxed.energy > 0).all())
    table = ts.discord(relaxed)
    torch.testing.assert_close(0.5 * table.total, relaxed.energy)
    names = list(problem.sheaf.edges)
    above = names[: names.index(vertex)]
    pull = {v: float((relaxed.cochain[v] - free[v]).norm()) for v in above}
    assert max(pull.values()) > 1e-3
    below = names[names.index(vertex) + 1 :]
    assert max(float(relaxed.residual[e].abs().max()) for e in below) <= 1e-6


def test_the_zoo_has_joins_gates_and_smooth_edges() -> None:
    kinds: dict[str, int] = {}
    for name in ("two towers", "unet", "encoder layer"):
        for edge in case(name)[2].sheaf.edges.values():
            kinds[str(edge.kind)] = kinds.get(str(edge.kind), 0) + 1
    assert set(kinds) == {"affine", "gate", "join", "smooth"}
