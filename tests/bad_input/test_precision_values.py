"""Values at the ends: nothing at all, NaN, numbers whose squares no longer fit, nested inputs."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torchsheaf.network.errors import UnsupportedModel
from torchsheaf.precision import check, plan, refute
from torchsheaf.precision.measure import norm_of


class Step(nn.Module):
    """A function as a module."""

    def __init__(self, step: Callable[..., Any]) -> None:
        super().__init__()
        self.step = step

    def forward(self, *inputs: Any) -> Any:
        return self.step(*inputs)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(4, 5, generator=torch.Generator().manual_seed(0))


def test_an_output_without_elements_is_refused(x: Tensor) -> None:
    empty = Step(lambda x: x[:, :0].tanh())
    for ask in (lambda: plan(empty, x, 1e-2), lambda: refute(empty, x, "fp16", 1e-2)):
        with pytest.raises(ValueError, match="no floating-point tensor with elements"):
            ask()


def test_gradients_may_be_switched_off_around_a_plan(x: Tensor) -> None:
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))
    with torch.inference_mode():
        shifted = x + 0.5
        found = plan(model, shifted, budget=1e-2)
        assert refute(model, shifted, "bf16", 1e-9).refuted
        assert float((found.apply()(shifted) - model(shifted)).abs().max()) <= 1e-2
    assert found.predicted == plan(model, x + 0.5, budget=1e-2).predicted


@pytest.mark.parametrize("frozen", [False, True])
def test_weights_may_have_been_made_under_inference_mode(x: Tensor, frozen: bool) -> None:
    def build() -> nn.Module:
        layers = nn.Linear(5, 5), nn.BatchNorm1d(5), nn.Linear(5, 5)
        model = nn.Sequential(*layers).eval().requires_grad_(not frozen)
        model[2].weight = model[0].weight
        return model

    torch.manual_seed(0)
    ordinary = build()
    torch.manual_seed(0)
    with torch.inference_mode():
        model = build()
    found, plain = plan(model, x, budget=1e-2), plan(ordinary, x, budget=1e-2)
    assert found.predicted == plain.predicted
    assert found.assignment == plain.assignment
    assert found.cost == plain.cost  # of one weight that two layers share
    assert refute(model, x, "bf16", 1e-9).refuted
    assert model[0].weight.is_inference()


def test_complex_numbers_are_refused_by_name(x: Tensor) -> None:
    with pytest.raises(UnsupportedModel, match=r"no rounding model for aten\._fft_r2c"):
        plan(Step(lambda x: torch.fft.rfft(x).abs()), x, 1e-2)


def test_one_empty_output_beside_others_changes_nothing(x: Tensor) -> None:
    both = Step(lambda x: (x[:, :0].tanh(), x.exp()))
    found, plain = plan(both, x, 1e-2), plan(Step(torch.exp), x, 1e-2)
    assert found.measured.errors == plain.measured.errors
    assert any("PROVED" in line for line in check(found.certificate))
    assert [p.kind for p in refute(both, x, "fp16", 1e-4).proofs] == [
        p.kind for p in refute(Step(torch.exp), x, "fp16", 1e-4).proofs
    ]


def test_a_model_that_is_undefined_on_its_inputs_is_refused(x: Tensor) -> None:
    undefined = Step(lambda x: torch.tanh(torch.log(x)))
    for ask in (lambda: plan(undefined, x, 1e-2), lambda: refute(undefined, x, "fp16", 1e-2)):
        with pytest.raises(ValueError, match="'log' gives NaN"):
            ask()


def test_a_nan_that_is_masked_away_refuses_nothing(x: Tensor) -> None:
    masked = Step(lambda x: torch.where(x > 0, torch.log(x), 0.0))
    assert refute(masked, x, "fp16", 1e-7).refuted


@pytest.mark.parametrize("power", [-100, -60, 60, 100])
def test_scaling_a_linear_network_scales_its_plan(x: Tensor, power: int) -> None:
    torch.manual_seed(1)
    net, scale = nn.Linear(5, 3, bias=False), 2.0**power
    plain = plan(net, x, 1e-5, formats=("fp32", "bf16"))
    scaled = plan(net, x * scale, 1e-5 * scale, formats=("fp32", "bf16"))
    assert scaled.assignment == plain.assignment
    assert scaled.measured.value == plain.measured.value * scale
    assert scaled.predicted.value / scale == pytest.approx(plain.predicted.value, rel=1e-3)


def test_numbers_whose_squares_overflow_float64_are_refused(x: Tensor) -> None:
    net = nn.Linear(5, 3, bias=False).double()
    with pytest.raises(ValueError, match="squares that overflow float64"):
        plan(net, x.double() * 1e200, 1e190, formats=("fp64",))


def test_a_constant_model_is_not_refuted_and_costs_nothing(x: Tensor) -> None:
    constant = Step(lambda x: torch.ones(3))
    assert not refute(constant, x, "fp16", 1e-2).refuted
    assert plan(constant, x, 1e-2).assignment == {}


def test_nested_inputs_are_refused(x: Tensor) -> None:
    nested = Step(lambda a, b: a * b[0])
    for ask in (lambda: plan(nested, (x, [x]), 1e-2), lambda: refute(nested, (x, [x]), "fp16", 1)):
        with pytest.raises(TypeError, match="inputs holds a list"):
            ask()


def test_inputs_that_ask_for_gradients_are_inputs(x: Tensor) -> None:
    asks = x.clone().requires_grad_()
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(5, 3), nn.Tanh())
    assert refute(net, asks, "fp16", 1e-5) == refute(net, x, "fp16", 1e-5)
    assert plan(net, asks, 1e-2).measured == plan(net, x, 1e-2).measured
    assert asks.grad is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_error_of_nothing_relative_to_nothing_is_none(dtype: torch.dtype) -> None:
    nothing = torch.zeros(3, 4, dtype=dtype)
    assert torch.equal(norm_of(nothing, nothing, "relative"), torch.zeros(3, dtype=dtype))
