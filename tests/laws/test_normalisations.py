"""A normalisation written out in elementary operations is one smooth edge, unless read inside."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import torchsheaf as ts
from tests.reference.networks import fill, randn

Function = Callable[[Tensor], Tensor]


class Applied(nn.Module):
    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def rms(h: Tensor) -> Tensor:
    return h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-2)


def rms_with_casts(h: Tensor) -> Tensor:
    h = h.to(torch.float64)
    return (torch.rsqrt((h * h).mean(-1, keepdim=True) + 1e-2) * h).to(h.dtype)


def layer(h: Tensor) -> Tensor:
    variance = h.var(-1, keepdim=True, unbiased=False)
    return (h - h.mean(-1, keepdim=True)) / torch.sqrt(variance + 1e-2)


def centred_first(h: Tensor) -> Tensor:
    d = h - h.mean(-1, keepdim=True)
    return d / (d.square().mean(-1, keepdim=True) + 1e-2).sqrt()


def in_place(h: Tensor) -> Tensor:
    return h * h.pow(2).mean(-1, keepdim=True).add_(1e-2).rsqrt_()


def deviation(h: Tensor) -> Tensor:
    return (h - h.mean(-1, keepdim=True)) / (h.std(-1, keepdim=True) + 1e-2)


def unit_length(h: Tensor) -> Tensor:
    return h / h.norm(dim=-1, keepdim=True)


def soft_sign(h: Tensor) -> Tensor:
    return h / (1 + h.abs())


def share_of_squares(h: Tensor) -> Tensor:
    return h / (h.square().sum(-1, keepdim=True) + 0.5)


WRITTEN: dict[str, Function] = {
    f.__name__: f
    for f in (
        rms, rms_with_casts, layer, centred_first, in_place, deviation, unit_length, soft_sign,
        share_of_squares,
    )
}  # fmt: skip


def between_layers(function: Function) -> tuple[nn.Sequential, Tensor]:
    model = nn.Sequential(nn.Linear(4, 5), Applied(function), nn.Linear(5, 2))
    return fill(model, 0), randn(1, 6, 4)


@pytest.mark.parametrize("name", WRITTEN)
def test_it_is_one_smooth_edge_with_the_derivative_of_the_model(name: str) -> None:
    model, x = between_layers(WRITTEN[name])
    sheaf = ts.encode(model, x)
    assert [e.kind.value for e in sheaf.edges.values()] == ["affine", "smooth", "affine"]
    problem = ts.hold(sheaf, x)
    forward = ts.harmonic_extension(problem)
    assert torch.equal(forward.output, model(x))
    node = sheaf.network.nodes[1]
    point = forward.cochain
    jacobian = sheaf.network.linearise(node, point, {})
    h, u, g = point["0"], randn(2, 6, 5), randn(3, 6, 5)
    value, pushed = torch.func.jvp(WRITTEN[name], (h,), (u,))
    torch.testing.assert_close(point[node.name], value, rtol=0, atol=1e-15)
    torch.testing.assert_close(jacobian.push({"0": u}), pushed, rtol=0, atol=1e-12)
    pulled = torch.func.vjp(WRITTEN[name], h)[1](g)[0]
    torch.testing.assert_close(jacobian.pull(g)["0"], pulled, rtol=0, atol=1e-12)


def test_it_has_the_equilibria_of_the_operation_that_torch_has_for_it() -> None:
    written, x = between_layers(rms)
    whole = nn.Sequential(written[0], nn.RMSNorm(5, 1e-2, False, dtype=x.dtype), written[2])
    y = written(x).detach() + randn(4, 6, 2)
    found = [
        ts.harmonic_extension(ts.hold(ts.encode(m, x), x).pin(ts.Pin("output", y)))
        for m in (written, whole)
    ]
    torch.testing.assert_close(found[0].energy, found[1].energy, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", WRITTEN)
def test_its_energy_is_defined_everywhere(name: str) -> None:
    model, x = between_layers(WRITTEN[name])
    problem = ts.hold(ts.encode(model, x), x)
    for seed in range(20):
        start = problem.start("random", torch.Generator().manual_seed(seed))
        assert problem.energy(start).isfinite().all()
    problem = problem.pin(ts.Pin("output", model(x).detach() + randn(4, 6, 2)))
    found = ts.harmonic_extension(
        problem, start="random", generator=torch.Generator().manual_seed(0)
    )
    assert (found.stationarity <= 1e-8).all()


def scale_used_again(h: Tensor) -> Tensor:
    scale = torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-2)
    return h * scale + scale


def scale_of_something_else(h: Tensor) -> Tensor:
    return h * torch.rsqrt(h.tanh().pow(2).mean(-1, keepdim=True) + 1e-2)


def no_root(h: Tensor) -> Tensor:
    return h * (h.pow(2).mean(-1, keepdim=True) + 1e-2)


def largest_entry(h: Tensor) -> Tensor:
    return h / torch.linalg.vector_norm(h, float("inf"), -1, keepdim=True)


def sum_of_sizes(h: Tensor) -> Tensor:
    return h / (h.abs().sum(-1, keepdim=True) + 1)


def size_of_another_entry(h: Tensor) -> Tensor:
    return h / (1 + h.flip(-1).abs())


def root_of_a_plain_mean(h: Tensor) -> Tensor:
    return h * torch.sqrt(h.mean(-1, keepdim=True) + 50)


@pytest.mark.parametrize(
    ("function", "steps"),
    [
        (scale_used_again, {"1.pow", "1.mean"}),
        (scale_of_something_else, {"1.pow", "1.mean"}),
        (no_root, {"1.pow", "1.mean"}),
        (largest_entry, {"1.linalg_vector_norm"}),
        (sum_of_sizes, {"1.abs", "1.sum"}),
        (size_of_another_entry, {"1.abs"}),
        (root_of_a_plain_mean, {"1.mean", "1.sqrt"}),
    ],
)
def test_other_products_keep_their_vertices(function: Function, steps: set[str]) -> None:
    model, x = between_layers(function)
    sheaf = ts.encode(model, x)
    assert steps <= set(sheaf.vertices)
    assert torch.equal(ts.harmonic_extension(ts.hold(sheaf, x)).output, model(x))


def test_a_scale_over_the_batch_is_refused() -> None:
    model, x = between_layers(lambda h: h / (h.std(0, keepdim=True) + 1e-2))
    with pytest.raises(ts.UnsupportedModel, match="no batch axis"):
        ts.encode(model, x)


def test_a_scale_over_a_batch_as_long_as_the_layer_is_refused_too() -> None:
    model, x = between_layers(lambda h: h / (h.std(0, keepdim=True).expand(5, 5).mT + 1e-2))
    with pytest.raises(ts.UnsupportedModel):
        ts.encode(model, x[:5])
