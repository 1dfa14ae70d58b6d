"""Bounds are never below what is measured, on random kernel graphs and on a transformer block."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reference.precision_problems import random_graph
from torchsheaf.network.aten import trace_aten
from torchsheaf.precision.bounds import first_order_worst, reference_bound, rigorous_bound
from torchsheaf.precision.dataflow import read_dataflow
from torchsheaf.precision.execute import run_assigned, run_exact, uniform
from torchsheaf.precision.measure import measured_error
from torchsheaf.precision.zoo import block

FORMATS = st.sampled_from(["fp32", "tf32", "bf16", "fp16"])


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.integers(2, 7), FORMATS)
def test_rigorous_and_first_order_bounds_hold_on_random_graphs(
    seed: int, size: int, form: str
) -> None:
    graph, x = random_graph(seed, size)
    flow = read_dataflow(graph)
    assignment = uniform(flow, form)
    error = measured_error(run_exact(flow, (x,)), run_assigned(flow, (x,), assignment))
    bound = torch.cat([o.reshape(-1) for o in rigorous_bound(flow, (x,), assignment).outputs])
    assert bool((bound >= error).all())
    assert bool((first_order_worst(flow, (x,), assignment) + 1e-12 >= error).all())


class SquareOfADifference(torch.nn.Module):
    """(x − b)², x and b on either side of the middle between two fp16 numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("b", torch.tensor([[1 + 2**-11 - 2**-20]]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        d = x - self.b
        return d * d


def test_first_order_leaves_out_products_of_errors() -> None:
    """|x − b| = 2⁻¹⁹ becomes 2⁻¹⁰: where the derivative all but vanishes, the square counts."""
    x = torch.tensor([[1 + 2**-11 + 2**-20]])
    flow = read_dataflow(trace_aten(SquareOfADifference(), x))
    assignment = uniform(flow, "fp16")
    error = measured_error(run_exact(flow, (x,)), run_assigned(flow, (x,), assignment))
    assert float(error) == 2.0**-20 - 2.0**-38
    assert float(error) > 20 * float(first_order_worst(flow, (x,), assignment))
    assert float(error) <= rigorous_bound(flow, (x,), assignment).largest


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.data())
def test_bounds_hold_for_mixed_assignments(seed: int, data: st.DataObject) -> None:
    graph, x = random_graph(seed, 5)
    flow = read_dataflow(graph)
    assignment = {c: data.draw(st.sampled_from(["fp32", "bf16", "fp16"])) for c in flow.choices}
    error = measured_error(run_exact(flow, (x,)), run_assigned(flow, (x,), assignment))
    bound = torch.cat([o.reshape(-1) for o in rigorous_bound(flow, (x,), assignment).outputs])
    assert bool((bound >= error).all())


@pytest.mark.parametrize("form", ["bf16", "fp16"])
def test_the_rigorous_bound_is_finite_for_a_post_norm_block_in_half_precision(form: str) -> None:

    model, x = block(pre=False)
    flow = read_dataflow(trace_aten(model, x))
    assignment = uniform(flow, form)
    bound = rigorous_bound(flow, (x,), assignment)
    error = measured_error(run_exact(flow, (x,)), run_assigned(flow, (x,), assignment))
    assert bound.unbounded == ()
    assert float(error.max()) <= bound.largest < 100.0


def test_a_bound_for_the_reference_is_small_where_the_network_is_shallow() -> None:

    net = torch.nn.Sequential(torch.nn.Linear(20, 30), torch.nn.Tanh(), torch.nn.Linear(30, 5))
    x = torch.randn(3, 20, generator=torch.Generator().manual_seed(0))
    flow = read_dataflow(trace_aten(net, x))
    assert 0 < reference_bound(flow, (x,)) < 1e-11
