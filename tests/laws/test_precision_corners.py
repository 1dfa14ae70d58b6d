"""Bounds at corners: overflow, masks that flip, numbers in the code, jumps, powers."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchsheaf.network.aten import trace_aten
from torchsheaf.precision import FORMATS, plan
from torchsheaf.precision.bounds import rigorous_bound
from torchsheaf.precision.dataflow import read_dataflow
from torchsheaf.precision.execute import run_assigned, run_exact, uniform
from torchsheaf.precision.measure import measured_error

Step = Callable[[Tensor], Tensor]


class Function(nn.Module):
    def __init__(self, step: Step) -> None:
        super().__init__()
        self.step = step

    def forward(self, x: Tensor) -> Tensor:
        return self.step(x * 1.0)


class Alone(Function):
    """On the inputs as they come: what they hold exactly has no error that others could hide in."""

    def forward(self, x: Tensor) -> Tensor:
        return self.step(x)


def spread(size: float = 1.0) -> Tensor:
    return size * torch.randn(200, 4, generator=torch.Generator().manual_seed(0))


def near(number: float) -> Tensor:
    return torch.full((2, 4), number)


POWERS = torch.tensor([0.1, 0.7, 1.3, -2.2])
SHUFFLED = torch.tensor([[0.50001, 0.50002, 0.5, 0.49999]])
CASES: dict[str, tuple[Step, Tensor]] = {
    "past the range": (lambda x: x * 1000 * 0.01, near(72.0)),
    "past the range, then bounded": (lambda x: torch.softmax(x * 1000, -1), spread(72.0)),
    "past the range in a norm": (lambda x: F.layer_norm(x * 1000, (4,)), spread(72.0)),
    "cast past the range": (lambda x: F.relu(x), near(7e4)),
    "a number cancels": (lambda x: x + 0.1, near(-0.1)),
    "a number cancels on the left": (lambda x: 0.3 - x, near(0.3)),
    "a factor": (lambda x: x * 0.1, spread()),
    "a divisor": (lambda x: x / 0.7, spread()),
    "padding": (lambda x: F.pad(x, (1, 1), value=0.1), spread()),
    "filling": (lambda x: x.masked_fill(torch.arange(4) > 1, 0.1), spread()),
    "a mask flips": (lambda x: torch.where(x > 0.5, 1.0, -1.0) * x, near(0.50001)),
    "a mask as a number": (lambda x: (x > 0.5).float(), near(0.50001)),
    "an index": (lambda x: torch.arange(4.0)[x.argmax(1)], SHUFFLED),
    "an order": (lambda x: torch.arange(4.0)[x.sort(1).indices], SHUFFLED),
    "a jump": (lambda x: F.softplus(x, 1.0, 1.0), near(1.0001)),
    "a threshold": (lambda x: F.threshold(x, 0.1, 20.0), near(0.1001)),
    "whole quotients": (lambda x: torch.div(x, 0.7, rounding_mode="floor"), spread()),
    "limits": (lambda x: torch.clamp(x, POWERS, POWERS + 0.3), spread()),
    "a share of one number": (lambda x: x + torch.softmax(x.sum(), 0), spread()),
    "a negative divisor": (lambda x: F.avg_pool2d(x[None], 2, divisor_override=-3), spread()),
    "powers of a number": (lambda x: 2.0**x, spread()),
    "powers": (lambda x: (x.abs() + 0.1) ** POWERS, spread()),
}


@pytest.mark.parametrize("name", CASES)
def test_no_run_is_further_off_than_its_rigorous_bound(name: str) -> None:
    step, x = CASES[name]
    flow = read_dataflow(trace_aten(Function(step), (x,)))
    for form in ("fp32", "bf16", "fp16", "fp8_e4m3", "fp8_e5m2"):
        assignment = uniform(flow, form)
        error = measured_error(run_exact(flow, (x,)), run_assigned(flow, (x,), assignment))
        bound = torch.cat([o.reshape(-1) for o in rigorous_bound(flow, (x,), assignment).outputs])
        assert bool((bound >= error.nan_to_num(nan=math.inf)).all()), form


NUMBERS: dict[str, Step] = {
    "a sum": lambda x: x + 0.3,
    "a difference": lambda x: x - 0.3,
    "a difference from a number": lambda x: 0.3 - x,
    "a multiple that is added": lambda x: torch.add(torch.zeros_like(x), x, alpha=0.3),
    "a multiple that is taken away": lambda x: torch.rsub(x, 0.1, alpha=0.3),
    "a product": lambda x: x * 0.3,
    "a quotient": lambda x: x / 0.3,
    "an exponent": lambda x: x.abs() ** 0.3,
    "a base": lambda x: 0.3**x,
}


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_in_the_code_are_rounded_as_kernels_round_them(name: str) -> None:
    """In 16 bits, CPU kernels keep those of sums and powers in 16 bits, factors in float32.

    Few numbers take another path through a kernel than many: it rounds the products too.
    """
    for x in (torch.arange(-128, 128).reshape(-1, 4) / 4, torch.arange(1.0, 17).reshape(4, 4)):
        flow = read_dataflow(trace_aten(Alone(NUMBERS[name]), (x,)))  # x is exact in every format
        for form in ("fp32", "bf16", "fp16"):
            assignment = uniform(flow, form)
            error = measured_error(run_exact(flow, (x,)), run_assigned(flow, (x,), assignment))
            (bound,) = rigorous_bound(flow, (x,), assignment).outputs
            assert bool((bound.reshape(-1) >= error).all()), form
            assert bool(bound.isfinite().all()) or form == "fp16"  # 0.3 ** -32 is past its range


@pytest.mark.parametrize("form", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("shape", [(20_000, 3), (64, 1), (9, 8)])
def test_a_softmax_along_another_axis_than_the_last(shape: tuple[int, ...], form: str) -> None:
    """Its kernels round the exponentials before they divide, and add them one after another."""
    x = FORMATS["fp8_e4m3"].round(
        5 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    )
    flow = read_dataflow(trace_aten(Alone(lambda x: torch.softmax(x, 0)), (x,)))  # x is exact
    assignment = uniform(flow, form)
    error = measured_error(run_exact(flow, (x,)), run_assigned(flow, (x,), assignment))
    (bound,) = rigorous_bound(flow, (x,), assignment).outputs
    assert bool((bound.reshape(-1) >= error).all())


TABLE = torch.tensor([[0.3, 4.0, 0.1], [5.0, 0.7, 8.0]])
ROWS: dict[str, Step] = {
    "a row": lambda w: w[0],
    "the smallest": lambda w: w.min(0).values,
    "the second": lambda w: w.topk(2, 0).values[1],
    "the first in order": lambda w: w.sort(0).values[0],
}


@pytest.mark.parametrize("name", ROWS)
def test_the_error_of_a_weight_is_seen_through_what_puts_weights_in_order(name: str) -> None:
    """The smallest weight does not err by the smallest error."""

    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(TABLE)

        def forward(self, x: Tensor) -> Tensor:
            return x - ROWS[name](self.table)

    x = ROWS[name](TABLE).bfloat16().float()  # nothing but the error of the weight is left
    flow = read_dataflow(trace_aten(Table(), (x,)))
    for form in ("bf16", "fp16"):
        assignment = uniform(flow, form)
        error = measured_error(run_exact(flow, (x,)), run_assigned(flow, (x,), assignment))
        (bound,) = rigorous_bound(flow, (x,), assignment).outputs
        assert bool((bound >= error).all()), form
        assert float(bound.max()) <= 2 * FORMATS[form].unit * float(TABLE.max())


@pytest.mark.parametrize("groups", [1, 6])
@pytest.mark.parametrize("mean", [0.0, 30.0, -1000.0])
@pytest.mark.parametrize("spread", [1.0, 1e-3])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_group_norm_in_either_layout(
    layout: torch.memory_format, spread: float, mean: float, groups: int
) -> None:
    """Channels last, the kernel takes mean(x²) − m² for the variance: it loses (m/σ)² digits."""
    generator = torch.Generator().manual_seed(groups)
    w, b = torch.randn(2, 6, generator=generator)
    x = mean + spread * torch.randn(2, 6, 9, 7, generator=generator)
    x[0, :, 0, 0] += 20 * spread  # nearly all of its group's variance
    x = FORMATS["fp8_e5m2" if mean == 0 else "bf16"].round(x).to(memory_format=layout).float()
    flow = read_dataflow(trace_aten(Alone(lambda x: F.group_norm(x, groups, w, b)), (x,)))
    exact = run_exact(flow, (x.contiguous(),))
    for form in ("fp64", "fp32", "bf16", "fp16"):
        assignment = uniform(flow, form)
        error = measured_error(exact, run_assigned(flow, (x,), assignment))
        found = rigorous_bound(flow, (x,), assignment)
        (bound,) = found.outputs
        assert bool((bound.reshape(-1) >= error).all()), form
        assert found.unbounded == ()
        assert bool(bound.isfinite().all()) or (form == "fp16" and mean == -1000.0)


COUNTS = torch.tensor([[1, 2, 7, 3], [5, 11, 4, 2], [9, 6, 1, 8]])
WHOLE: dict[str, Step] = {
    "a root": torch.sqrt,
    "a logarithm": torch.log1p,
    "a sigmoid": torch.sigmoid,
    "an angle": lambda n: torch.atan2(n.flip(0), n),
    "a sum": lambda n: n.sum(1, dtype=torch.float32) / 3,
    "a mean": lambda n: n.mean(1, dtype=torch.float32),
    "sums so far": lambda n: n.cumsum(1, dtype=torch.float32),
    "a difference from a number": lambda n: 0.3 - n,
    "powers of a number": lambda n: 1.5**n,
    "whole powers": lambda n: (n / 3) ** n.flip(1),
    "a product": lambda n: torch.sqrt(n) * (257 * n),  # kernels round 257 n to 16 bits first
    "a share": lambda n: n / n.sum(1, keepdim=True),
}


@pytest.mark.parametrize("name", WHOLE)
def test_whole_numbers_are_operands_without_an_error(name: str) -> None:
    flow = read_dataflow(trace_aten(Alone(WHOLE[name]), (COUNTS,)))
    exact = run_exact(flow, (COUNTS,))
    for form in ("fp32", "bf16"):
        assignment = uniform(flow, form)
        error = measured_error(exact, run_assigned(flow, (COUNTS,), assignment))
        (bound,) = rigorous_bound(flow, (COUNTS,), assignment).outputs
        size = exact.outputs[0].abs().max()
        assert bound.shape == exact.outputs[0].shape
        assert bool((bound.reshape(-1) >= error).all()), form
        assert float(bound.max()) <= 40 * FORMATS[form].unit * float(size)


@pytest.mark.parametrize(("beta", "alpha"), [(2.1, -0.3), (-7.0, 0.1), (0.3, 5.0)])
def test_factors_of_a_product_and_of_what_is_added_count(beta: float, alpha: float) -> None:
    x = torch.arange(-8.0, 8).reshape(4, 4) / 4
    step = Alone(lambda x: torch.addmm(x.flip(0), x, x.T, beta=beta, alpha=alpha))
    flow = read_dataflow(trace_aten(step, (x,)))  # x is exact
    for form in ("fp32", "bf16", "fp16"):
        assignment = uniform(flow, form)
        error = measured_error(run_exact(flow, (x,)), run_assigned(flow, (x,), assignment))
        (bound,) = rigorous_bound(flow, (x,), assignment).outputs
        assert bool((bound.reshape(-1) >= error).all()), form


def test_a_mask_that_may_flip_costs_the_distance_of_what_it_chooses_between() -> None:
    x = near(0.50001)
    flow = read_dataflow(trace_aten(Function(lambda x: torch.where(x > 0.5, 3.0, 2.0)), (x,)))
    bound = rigorous_bound(flow, (x,), uniform(flow, "bf16"))
    assert bound.unbounded == ()
    assert bound.largest == pytest.approx(1.0)
    assert rigorous_bound(flow, (x + 0.5,), uniform(flow, "bf16")).largest == 0.0


def test_what_an_uncertain_index_reads_is_named() -> None:
    flow = read_dataflow(trace_aten(Function(CASES["an index"][0]), (SHUFFLED,)))
    bound = rigorous_bound(flow, (SHUFFLED,), uniform(flow, "bf16"))
    assert math.isinf(bound.largest)
    assert bound.unbounded == ("index",)


def test_functions_of_whole_numbers_are_right_to_float64() -> None:
    """A kernel of whole numbers alone computes in float32, whatever it is asked for."""
    x = COUNTS[:, :1]
    flow = read_dataflow(trace_aten(Alone(torch.sqrt), (x,)))
    root = x.double().sqrt()
    assert torch.equal(run_exact(flow, (x,)).outputs[0], root)
    assert torch.equal(run_assigned(flow, (x,), uniform(flow, "fp64")).outputs[0], root)
    found = plan(Alone(torch.sqrt), x, budget=1e-12, formats=("fp64", "fp32"))
    assert torch.equal(found.apply()(x), root)


@pytest.mark.parametrize("name", ["a sum", "powers of a number"])
def test_operations_of_whole_numbers_can_be_planned(name: str) -> None:
    assert plan(Alone(WHOLE[name]), COUNTS, budget=0.1).measured.value <= 0.1


@pytest.mark.parametrize("name", ["powers of a number", "powers", "limits"])
def test_operations_of_two_tensors_can_be_planned(name: str) -> None:
    step, x = CASES[name]
    assert plan(Function(step), x[:8].clamp(-1, 1), budget=0.1).measured.value <= 0.1
