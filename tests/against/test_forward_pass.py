"""The harmonic extension of the input is the model's forward pass (T1, Prop. 1)."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.reference.dense import autograd_coboundary, layers, path_energy
from tests.reference.networks import classifier, convnet, fill, randn, relu_mlp, residual_block
from torchsheaf import encode, harmonic_extension, hold

BATCH = 32
MODELS: dict[str, tuple[Callable[[int, torch.dtype], nn.Module], tuple[int, ...]]] = {
    "mlp": (lambda seed, dtype: relu_mlp([6, 20, 20, 3], seed, dtype=dtype), (6,)),
    "deep mlp": (lambda seed, dtype: relu_mlp([5, *[16] * 12, 2], seed, dtype=dtype), (5,)),
    "no bias": (lambda seed, dtype: relu_mlp([4, 9, 2], seed, bias=False, dtype=dtype), (4,)),
    "convnet": (convnet, (1, 8, 8)),
    "classifier": (classifier, (6,)),
    "residual": (residual_block, (3,)),
}


@pytest.mark.parametrize("form", ["unfused", "fused"])
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", MODELS)
def test_extension_is_the_model(name: str, seed: int, form: str) -> None:
    """float64, batch 32: output to 1e-12 relative, energy ≤ 1e-24 per sample."""
    make, shape = MODELS[name]
    model, x = make(seed, torch.float64), randn(seed + 50, BATCH, *shape)
    extension = harmonic_extension(hold(encode(model, x[:4], form=form), x))
    expected = model(x).detach()
    assert extension.output.shape == expected.shape
    assert (extension.output - expected).abs().max() <= 1e-12 * expected.abs().max()
    assert extension.energy.shape == (BATCH,)
    assert float(extension.energy.max()) <= 1e-24
    assert float(extension.stationarity.max()) <= 1e-12
    assert bool(extension.settled.all())


@pytest.mark.parametrize("name", MODELS)
def test_extension_is_the_model_in_float32(name: str) -> None:
    make, shape = MODELS[name]
    model, x = make(3, torch.float32), randn(53, BATCH, *shape, dtype=torch.float32)
    extension = harmonic_extension(hold(encode(model, x), x))
    expected = model(x).detach()
    assert extension.output.dtype == torch.float32
    assert (extension.output - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("name", MODELS)
def test_every_inner_value_is_what_the_module_computes(name: str) -> None:
    """Forward hooks on the modules, independent of any trace, see the same vertex values."""
    make, shape = MODELS[name]
    model, x = make(4, torch.float64), randn(54, 3, *shape)
    seen: dict[str, Tensor] = {}
    for path, module in model.named_modules():
        if path and not list(module.children()):
            module.register_forward_hook(
                lambda m, i, out, path=path: seen.update({path: out.detach().clone()})
            )
    sheaf = encode(model, x)
    cochain = sheaf.forward(x)
    seen.clear()
    model(x)
    compared = [n for n in cochain if n in seen]
    assert len(compared) >= len(sheaf.edges) - 4
    for path in compared:
        assert torch.allclose(cochain[path], seen[path], rtol=1e-12, atol=1e-13), path


@pytest.mark.parametrize("name", MODELS)
def test_coboundary_is_the_jacobian_of_the_residual(name: str) -> None:
    """δ at a random state against one reverse pass of autograd per row; det δ = 1; L positive."""
    make, shape = MODELS[name]
    model, x = make(5, torch.float64), randn(55, 2, *shape)
    problem = hold(encode(model, x), x)
    at = problem.start("random", torch.Generator().manual_seed(6))
    dense = problem.coboundary(at).to_dense()
    laplacian = problem.laplacian(at).to_dense()
    for m in range(2):
        expected = autograd_coboundary(problem.sheaf, at, m)
        assert torch.allclose(dense[m], expected, rtol=1e-10, atol=1e-12)
        assert torch.equal(dense[m].triu(1), torch.zeros_like(dense[m]))
        assert torch.equal(dense[m].diagonal(), torch.ones(len(dense[m])).double())
    assert torch.allclose(torch.linalg.det(dense), torch.ones(2).double(), atol=1e-10, rtol=0)
    assert float(torch.linalg.eigvalsh(laplacian).min()) > 0


@pytest.mark.parametrize("name", MODELS)
def test_every_random_pattern_is_positive_definite(name: str) -> None:
    """Not only the patterns that a state selects: masks drawn at random, fractional ones too."""
    make, shape = MODELS[name]
    model, x = make(6, torch.float64), randn(56, 4, *shape)
    problem = hold(encode(model, x), x)
    at = problem.start("random", torch.Generator().manual_seed(7))
    source = torch.Generator().manual_seed(8)
    pattern = {}
    for gate, selection in problem.sheaf.pattern(at).items():
        if selection.is_floating_point():
            drawn = torch.rand(selection.shape, generator=source, dtype=torch.float64)
            drawn[:2] = drawn[:2].round()
            pattern[gate] = drawn
        else:
            pattern[gate] = selection[torch.randperm(4, generator=source)]
    delta = problem.coboundary(at, pattern).to_dense()
    laplacian = problem.laplacian(at, pattern).to_dense()
    assert torch.allclose(torch.linalg.det(delta), torch.ones(4).double(), atol=1e-10, rtol=0)
    assert float(torch.linalg.eigvalsh(laplacian).min()) > 0


@settings(max_examples=20)
@given(
    widths=st.lists(st.integers(1, 5), min_size=2, max_size=5),
    batch=st.integers(1, 3),
    seed=st.integers(0, 999),
)
def test_energy_and_gradient(widths: list[int], batch: int, seed: int) -> None:
    """E against a double loop over edges and coordinates, ∇E against autograd of E."""
    net, x = relu_mlp(widths, seed), randn(seed, batch, widths[0])
    problem = hold(encode(net, x), x)
    at = problem.start("random", torch.Generator().manual_seed(seed))
    weights, biases = layers(net)
    names = list(problem.sheaf.edges)
    energy = problem.energy(at)
    for m in range(batch):
        values = [at[n][m].numpy() for n in names]
        expected = path_energy(weights, biases, x[m].numpy(), values[0::2], values[1::2])
        assert abs(float(energy[m]) - expected) <= 1e-12 * max(1.0, expected)
    free = [at[n].clone().requires_grad_() for n in names]
    with torch.enable_grad():
        given_values = dict(at.items()) | dict(zip(names, free, strict=True))
        total = sum(
            0.5
            * (given_values[n.name] - problem.sheaf.network.evaluate(n, given_values))
            .square()
            .sum()
            for n in problem.sheaf.network.nodes
        )
        grads = torch.autograd.grad(total, free)
    gradient = problem.gradient(at)
    for name, g in zip(names, grads, strict=True):
        assert torch.allclose(gradient[name], g, rtol=1e-11, atol=1e-12)


def test_the_sheaf_follows_the_weights() -> None:
    """Parameters are looked up live: after a change of weights nothing needs encoding again."""
    net, x = relu_mlp([3, 6, 2], 9), randn(59, 4, 3)
    problem = hold(encode(net, x), x)
    before = harmonic_extension(problem).output
    with torch.no_grad():
        net[0].weight.mul_(-2)
        net[2].bias.add_(1)
    after = harmonic_extension(problem).output
    assert torch.equal(after, net(x).detach())
    assert not torch.allclose(before, after)


def watched(h: Tensor) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        seen = 2 * h
        _ = seen > 0  # for a print that is commented out, say
    return h, seen


@pytest.mark.parametrize(
    "returned",
    [
        lambda h: (h, h.argmax(1)),
        lambda h: (h > 0, h),
        lambda h: {"best": h.argmax(1), "logits": h, "kept": h.max(1), "sure": h.amax(1) > 1},
        lambda h: h.topk(2, 1),
        watched,
    ],
)
def test_predictions_returned_beside_real_numbers_are_left_out(returned) -> None:
    class Predicting(nn.Linear):
        def forward(self, x: Tensor) -> object:
            return returned(super().forward(x))

    model, x = fill(Predicting(3, 4), 0), randn(1, 5, 3)
    sheaf = encode(model, x)
    values, wanted = sheaf.forward(x), torch.utils._pytree.tree_leaves(model(x))
    assert len(sheaf.outputs) == sum(t.is_floating_point() for t in wanted)
    for name, position in zip(sheaf.outputs, sheaf.network.positions, strict=True):
        assert torch.equal(values[name], wanted[position])


@pytest.mark.parametrize("inside", [True, False])
def test_inputs_made_in_inference_mode(inside: bool) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.LayerNorm(4)).double()
    with torch.inference_mode():
        x = randn(1, 5, 3).clone()
    assert x.is_inference()
    with torch.inference_mode(inside), torch.no_grad():
        assert torch.equal(encode(model, x).forward(x)["2"], model(x))
        assert torch.equal(encode(model, x[:1]).forward(x)["2"], model(x))


class Mixed(nn.Module):
    """Its first layers run under an autocast of its own, in which one layer does not."""

    def __init__(self) -> None:
        super().__init__()
        self.narrow, self.wide = relu_mlp([4, 6, 3], 1, dtype=torch.float32), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, dtype=torch.bfloat16):
            h = self.narrow(x)
            with torch.autocast(x.device.type, enabled=False):
                g = self.wide(x)
        return h.float() + g


@pytest.mark.parametrize("samples", [1, 5])
def test_an_autocast_inside_a_model_is_read_as_its_casts(samples: int) -> None:
    model, x = Mixed(), randn(2, samples, 4, dtype=torch.float32)
    problem = hold(encode(model, x), randn(3, 7, 4, dtype=torch.float32))
    found = harmonic_extension(problem)
    assert torch.equal(found.output, model(problem.values["input"]))
    assert problem.coarsest[1] == torch.bfloat16
    assert problem.sheaf.network.fixed_batch is None
