"""Coboundary, Laplacian and their triangular inverses obey the laws, whatever is held."""

import math
from collections.abc import Callable
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.laws.linear_maps import LAWS, close, draw, is_one_map_per_sample
from tests.reference.networks import classifier, convnet, randn, relu_mlp, residual_block
from torchsheaf import ConvergenceError, Pin, Problem, encode, hold
from torchsheaf.cochain import Cochain, Space
from torchsheaf.linalg import LinearMap
from torchsheaf.sheaf import Laplacian

MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (lambda: relu_mlp([3, 5, 4, 2], 1), (3,)),
    "convnet": (lambda: convnet(2), (1, 8, 8)),
    "classifier": (lambda: classifier(3), (6,)),
    "residual": (lambda: residual_block(4), (3,)),
}
HELD = ("input", "soft", "hard", "partial", "free input")


@cache
def problem(model: str, held: str, form: str = "unfused", batch: int = 3) -> Problem:
    make, shape = MODELS[model]
    x = randn(21, batch, *shape)
    sheaf = encode(make(), x, form=form)
    where = torch.arange(math.prod(shape)) % 2 == 0 if held == "free input" else None
    weights = {sheaf.outputs[0]: 2.5} if held != "input" else None
    whole = hold(sheaf, x, where=where, weights=weights)
    first = next(iter(sheaf.edges))
    dim = math.prod(sheaf.vertices[sheaf.outputs[0]].shape)
    pins = {
        "soft": [Pin("output", randn(22, dim), weight=3.0), Pin(first, 0.5, where=[1], weight=0.1)],
        "hard": [Pin("output", randn(22, batch, dim))],
        "partial": [Pin("output", 0.1, where=0), Pin(first, 0.2, where=[0, 2])],
    }
    return whole.pin(*pins.get(held, []))


def off_the_forward_pass(p: Problem) -> Cochain:
    return p.start("random", torch.Generator().manual_seed(23))


CASES = [(m, h, "unfused") for m in MODELS for h in HELD] + [(m, "soft", "fused") for m in MODELS]


@pytest.mark.parametrize(("model", "held", "form"), CASES)
def test_coboundary_and_laplacian_are_lawful(model: str, held: str, form: str) -> None:
    p = problem(model, held, form)
    at = off_the_forward_pass(p)
    for operator in (p.coboundary(at), p.laplacian(at)):
        for law in LAWS:
            law(operator)


@pytest.mark.parametrize(("model", "held", "form"), CASES)
def test_a_batch_is_a_loop_over_samples(model: str, held: str, form: str) -> None:
    p = problem(model, held, form)
    at = off_the_forward_pass(p)

    def alone(build: Callable[[Problem, Cochain], LinearMap]) -> Callable[[int], LinearMap]:
        def one(m: int) -> LinearMap:
            index = torch.tensor([m])
            return build(p.samples(index), at.samples(index))

        return one

    is_one_map_per_sample(p.coboundary(at), alone(lambda q, c: q.coboundary(c)))
    is_one_map_per_sample(p.laplacian(at), alone(lambda q, c: q.laplacian(c)))


@pytest.mark.parametrize(("model", "held", "form"), CASES)
def test_the_laplacian_is_the_weighted_square_of_the_coboundary(
    model: str, held: str, form: str
) -> None:
    p = problem(model, held, form)
    at = off_the_forward_pass(p)
    delta, laplacian = p.coboundary(at).to_dense(), p.laplacian(at).to_dense()
    weights = torch.ones(p.edge_space.dim, dtype=torch.float64)
    for name, w in p.edge_weights.items():
        weights[p.edge_space.slices[name]] = w
    assert close(laplacian, delta.mT @ (weights[:, None] * delta))


@pytest.mark.parametrize(("model", "held", "form"), [c for c in CASES if c[1] != "free input"])
def test_the_laplacian_solves(model: str, held: str, form: str) -> None:
    """L⁻¹b against a dense solve, in at most #pinned + 1 steps of four sweeps (and rounding)."""
    p = problem(model, held, form)
    laplacian = p.laplacian(off_the_forward_pass(p))
    sweeps = solves(laplacian)
    pinned = p.free.dim - p.sheaf.edge_space.dim + 2 * sum(s.index.numel() for s in p.soft)
    assert sweeps == 2 if held == "input" else 0 < sweeps <= 4 * (abs(pinned) + 10)


@pytest.mark.parametrize("model", ["mlp", "residual"])
def test_the_laplacian_solves_with_a_free_input_and_a_pinned_output(model: str) -> None:
    p = problem(model, "free input").pin(Pin("output", 0.3, weight=2.0))
    solves(p.laplacian(off_the_forward_pass(p)))


def solves(laplacian: Laplacian) -> int:
    b = draw(laplacian.domain, laplacian.like, 24)
    solution, sweeps = laplacian.solve(b)
    flat = laplacian.domain.flatten
    dense = torch.linalg.solve(laplacian.to_dense(), flat(b))
    assert (flat(solution) - dense).norm() <= 1e-9 * dense.norm()
    assert (flat(laplacian.apply(solution)) - flat(b)).norm() <= 1e-9 * flat(b).norm()
    return sweeps


@pytest.mark.parametrize("model", ["mlp", "residual", "classifier", "convnet"])
def test_a_singular_laplacian_is_not_solved(model: str) -> None:
    """A free input and nothing held downstream: every forward pass has zero energy."""
    p = problem(model, "free input")
    laplacian = p.laplacian(off_the_forward_pass(p))
    smallest = torch.linalg.eigvalsh(laplacian.to_dense())[:, 0]
    assert bool((smallest < 1e-12).all())
    with pytest.raises(ConvergenceError, match="conjugate gradients"):
        laplacian.solve(draw(laplacian.domain, laplacian.like, 24))


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("form", ["unfused", "fused"])
def test_triangular_solves_invert_the_coboundary(model: str, form: str) -> None:
    p = problem(model, "input", form)
    delta = p.coboundary(off_the_forward_pass(p))
    flat = delta.domain.flatten
    u = draw(delta.domain, delta.like, 25)
    assert close(flat(delta.solve(delta.apply(u))), flat(u))
    assert close(flat(delta.apply(delta.solve(u))), flat(u))
    assert close(flat(delta.solve_adjoint(delta.adjoint(u))), flat(u))
    assert close(flat(delta.adjoint(delta.solve_adjoint(u))), flat(u))


@pytest.mark.parametrize("held", ["soft", "hard", "partial", "free input"])
def test_triangular_solves_are_refused_where_delta_is_not_square(held: str) -> None:
    p = problem("mlp", held)
    delta = p.coboundary(off_the_forward_pass(p))
    u = draw(delta.codomain, delta.like, 26)
    for solve in (delta.solve, delta.solve_adjoint):
        with pytest.raises(ValueError, match="laplacian"):
            solve(u)


@settings(max_examples=15)
@given(
    widths=st.lists(st.integers(1, 6), min_size=2, max_size=5),
    batch=st.integers(1, 4),
    seed=st.integers(0, 2**16),
    bias=st.booleans(),
)
def test_the_laws_hold_for_any_shape(widths: list[int], batch: int, seed: int, bias: bool) -> None:
    x = randn(seed, batch, widths[0])
    p = hold(encode(relu_mlp(widths, seed, bias=bias), x), x)
    at = p.start("random", torch.Generator().manual_seed(seed))
    delta = p.coboundary(at)
    for law in LAWS:
        law(delta)
        law(p.laplacian(at))
    u = draw(delta.domain, delta.like, seed)
    assert (delta.solve(delta.apply(u)) - u).norm().max() <= 1e-10 * max(1.0, float(u.norm().max()))


@given(
    shapes=st.lists(st.lists(st.integers(1, 3), max_size=3), min_size=1, max_size=4),
    batch=st.integers(1, 4),
    data=st.data(),
)
def test_flat_vectors_and_cochains_are_the_same_thing(
    shapes: list[list[int]], batch: int, data: st.DataObject
) -> None:
    """flatten and unflatten are inverse, and keep inner products, held coordinates left out."""
    where: dict[str, Tensor] = {}
    for i, shape in enumerate(shapes):
        if data.draw(st.booleans()):
            size = math.prod(shape)
            mask = data.draw(st.lists(st.booleans(), min_size=size, max_size=size))
            where[str(i)] = torch.tensor(mask).reshape(shape)
    space = Space({str(i): tuple(s) for i, s in enumerate(shapes)}, where)
    like = torch.zeros(batch, dtype=torch.float64)
    u, v = draw(space, like, 1), draw(space, like, 2)
    assert space.flatten(u).shape == (batch, space.dim)
    assert torch.equal(space.flatten(space.unflatten(space.flatten(u))), space.flatten(u))
    assert close((space.flatten(u) * space.flatten(v)).sum(1), u.dot(v))
    assert all(torch.equal(space.project(u)[n], u[n]) for n in u)


@pytest.mark.parametrize("device", ["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("model", MODELS)
def test_dtype_and_device_follow_the_input(model: str, dtype: torch.dtype, device: str) -> None:
    make, shape = MODELS[model]
    x = randn(27, 2, *shape, dtype=dtype).to(device)
    p = hold(encode(make().to(device, dtype), x), x).pin(Pin("output", 0.5, weight=2.0))
    at = p.start("random", torch.Generator().manual_seed(1))
    made = [at, p.residual(at), p.gradient(at), p.start("forward"), p.start("zeros")]
    made += [p.coboundary(at).apply(p.free.project(at)), p.laplacian(at).solve(p.gradient(at))[0]]
    for cochain in made:
        for name, block in cochain.items():
            assert (block.dtype, block.device.type) == (dtype, device), name
    assert p.energy(at).dtype == dtype
    assert p.coboundary(at).to_dense().dtype == dtype


def test_where_everything_is_held_the_matrices_have_no_columns() -> None:
    p = problem("mlp", "input")
    for name, value in p.forward().select(p.sheaf.edges).items():
        p = p.pin(Pin(name, value))
    at = p.forward()
    rows = p.coboundary(at).codomain.dim
    assert p.coboundary(at).to_dense().shape == (3, rows, 0)
    assert p.laplacian(at).to_dense().shape == (3, 0, 0)
    assert p.coboundary(at).to_scipy().shape == (rows, 0)
