"""Kernels of one layer each: a plan, a certificate, and bounds that no execution exceeds."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchsheaf.network.aten import trace_aten
from torchsheaf.network.errors import UnsupportedModel
from torchsheaf.precision import check, plan
from torchsheaf.precision.bounds import rigorous_bound
from torchsheaf.precision.conformance import conformance
from torchsheaf.precision.dataflow import read_dataflow
from torchsheaf.precision.execute import run_assigned, run_exact, uniform
from torchsheaf.precision.measure import measured_error


class After(nn.Module):
    """A layer, then a function of its result and the input, with further modules."""

    def __init__(self, layer: nn.Module, step: Callable[..., Tensor], *more: nn.Module) -> None:
        super().__init__()
        self.layer, self.step, self.more = layer, step, nn.ModuleList(more)

    def forward(self, x: Tensor) -> Tensor:
        return self.step(self.layer(x), x, *self.more)


def columns(h: Tensor, x: Tensor) -> Tensor:
    y = torch.zeros(x.shape[0], 4)
    y[:, 0] = h[:, 0]
    y[:, 1:3] = h[:, 1:3].tanh()
    y[:, 3] = torch.arange(x.shape[0])
    return y


GOALS = torch.tensor([0, 1, 0, 2, 1])
Example = tuple[nn.Module, tuple[int, ...]]


def line(step: Callable[..., Tensor], *more: nn.Module) -> Example:
    return After(nn.Linear(4, 4), step, *more), (5, 4)


def image(step: Callable[..., Tensor], *more: nn.Module) -> Example:
    return After(nn.Conv2d(2, 3, 1), step, *more), (2, 2, 6, 5)


def volume(step: Callable[..., Tensor]) -> Example:
    return After(nn.Conv3d(1, 2, 1), step), (2, 1, 4, 5, 4)


MODELS: dict[str, Callable[[], Example]] = {
    "columns": lambda: line(columns),
    "circular": lambda: (nn.Conv1d(2, 3, 3, padding=2, padding_mode="circular"), (2, 2, 8)),
    "atan2": lambda: line(lambda h, x: torch.atan2(h, x + 3)),
    "cumprod": lambda: line(lambda h, x: h.cumprod(1)),
    "cumsum": lambda: line(lambda h, x: h.cumsum(0)),
    "scatter_add": lambda: line(
        lambda h, x: torch.ones(3, 4).scatter_add(0, GOALS[:, None].expand(5, 4), h)
    ),
    "index_add": lambda: line(lambda h, x: x[:3].index_add(0, GOALS, h)),
    "sort": lambda: line(lambda h, x: h.sort(-1).values - x),
    "least": lambda: line(lambda h, x: h.min(-1).values),
    "topk": lambda: line(lambda h, x: h.topk(2, 0).values),
    "bilinear": lambda: line(lambda h, x, b: b(h, x), nn.Bilinear(4, 4, 3)),
    "upsample": lambda: image(lambda h, x: F.interpolate(h, scale_factor=2.3, mode="bilinear")),
    "aligned": lambda: image(
        lambda h, x: F.interpolate(h, (4, 9), mode="bilinear", align_corners=True)
    ),
    "adaptive_max_pool2d": lambda: image(lambda h, x: F.adaptive_max_pool2d(h, 3)),
    "local response": lambda: image(lambda h, x, n: n(h), nn.LocalResponseNorm(2)),
    "instance norm": lambda: image(lambda h, x, n: n(h), nn.InstanceNorm2d(3, affine=True)),
    "plain instance norm": lambda: image(lambda h, x, n: n(h), nn.InstanceNorm2d(3)),
    "group norm": lambda: image(lambda h, x, n: n(h), nn.GroupNorm(1, 3)),
    "plain group norm": lambda: image(lambda h, x, n: n(h), nn.GroupNorm(3, 3, affine=False)),
    "group norm of vectors": lambda: line(lambda h, x, n: n(h), nn.GroupNorm(2, 4)),
    "max_pool3d": lambda: volume(lambda h, x: F.max_pool3d(h, 2)),
    "avg_pool3d": lambda: volume(lambda h, x: F.avg_pool3d(h, 2)),
    "adaptive_avg_pool3d": lambda: volume(lambda h, x: F.adaptive_avg_pool3d(h, 2)),
    **{
        f"{mode} of embeddings": lambda mode=mode: (nn.EmbeddingBag(10, 4, mode=mode), ())
        for mode in ("sum", "mean", "max")
    },
}


def build(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model, shape = MODELS[name]()
    return model.eval(), torch.randn(shape) if shape else torch.arange(8).view(2, 4)


@pytest.mark.parametrize("name", MODELS)
def test_the_kernel_has_a_plan(name: str) -> None:
    model, x = build(name)
    found = plan(model, x, 0.1, probes=2)
    assert found.measured.value <= 0.1
    assert any("PROVED" in line for line in check(found.certificate))
    with torch.no_grad():
        assert float((found.apply()(x) - model(x)).abs().max()) <= 0.1


@pytest.mark.parametrize("name", MODELS)
def test_the_rigorous_bound_holds(name: str) -> None:
    model, x = build(name)
    flow = read_dataflow(trace_aten(model, x))
    exact, ran = run_exact(flow, (x,)), 0
    for form in ("fp64", "fp32", "bf16", "fp16", "fp8_e5m2"):
        assignment = uniform(flow, form)
        try:
            error = measured_error(exact, run_assigned(flow, (x,), assignment))
        except NotImplementedError:
            continue  # this machine has no such kernel in 16 bits
        found = rigorous_bound(flow, (x,), assignment)
        bound = torch.cat([o.reshape(-1) for o in found.outputs])
        assert bool((bound >= error).all()), form
        assert found.unbounded == ()
        assert form.startswith("fp8") or bool(torch.isfinite(bound).all())
        ran += 1
    assert ran >= 3


NEW = (
    "atan2 cumprod cumsum avg_pool3d _adaptive_avg_pool3d upsample_bilinear2d scatter_add "
    "index_put _embedding_bag _trilinear _native_batch_norm_legit native_group_norm _softmax "
    "_log_softmax"
).split()


@pytest.mark.parametrize("operator", NEW)
def test_the_kernels_of_this_machine_obey_their_models(operator: str) -> None:
    found = conformance(operators=[operator])
    assert not found.failures, found.failures
    assert {"fp32", "fp8_e5m2"} <= {c.format for c in found.checks}


def test_a_kernel_without_a_model_is_named() -> None:
    def unknown(h: Tensor, x: Tensor) -> Any:
        return torch.special.bessel_j0(h)

    with pytest.raises(UnsupportedModel, match=r"no rounding model for aten\.special_bessel_j0"):
        plan(line(unknown)[0], torch.ones(5, 4), 0.1)


def test_memory_that_is_written_before_it_is_read_holds_zeros() -> None:
    class Written(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x.new_empty(4, 4)
            y[:2], y[2:] = x.exp(), x.sin()
            return y

    # A block of the same size, freed with numbers that no format is allowed to hold.
    torch.full((4, 4), 1e38)
    x = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    graph = trace_aten(Written(), x)
    assert all(float(t.abs().max()) == 0 for t in graph.constants.values())
    assert plan(graph, x, 1e-2).measured.value <= 1e-2
