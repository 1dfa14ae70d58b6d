"""Masked scores carry no error: whatever becomes of them, no output moves; and nothing else may."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from torchsheaf.network.aten import substitute, trace_aten
from torchsheaf.precision import NoSection, check, plan, refute
from torchsheaf.precision.bound_rules import softmax
from torchsheaf.precision.bounds import first_order_worst, rigorous_bound
from torchsheaf.precision.dataflow import Dataflow, read_dataflow
from torchsheaf.precision.execute import keywords, run_assigned, run_exact, uniform
from torchsheaf.precision.masking import ALL_READERS, masked_scores
from torchsheaf.precision.measure import measured_error

LOWEST = torch.finfo(torch.float32).min
FORMATS = ["fp32", "bf16", "fp16", "fp8_e5m2"]


class Attention(nn.Module):
    """softmax(mask(h(x) xᵀ)) x for one way to mask."""

    def __init__(self, mask: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.project, self.mask = nn.Linear(6, 6), mask

    def forward(self, x: Tensor) -> Tensor:
        scores = self.mask(self.project(x) @ x.transpose(-2, -1))
        return torch.softmax(scores, -1) @ x


class Fused(nn.Module):
    """torch's own attention."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.project, self.options = nn.Linear(6, 6), options

    def forward(self, x: Tensor) -> Tensor:
        h = self.project(x)
        return F.scaled_dot_product_attention(h, h, x, **self.options)


def above(t: int = 4) -> Tensor:
    return torch.ones(t, t, dtype=torch.bool).triu(1)


def added(low: float) -> Callable[[Tensor], Tensor]:
    return lambda s: s + torch.zeros(4, 4).masked_fill(above(), low)


def nothing_seen() -> Tensor:
    mask = ~above()
    mask[1] = False
    return mask


MODELS: dict[str, Callable[[], nn.Module]] = {
    "causal": lambda: Fused(is_causal=True),
    "a row sees nothing": lambda: Fused(attn_mask=nothing_seen()),
    "float mask": lambda: Fused(attn_mask=torch.full((4, 4), LOWEST).triu(1)),
    "filled with -inf": lambda: Attention(lambda s: s.masked_fill(above(), -math.inf)),
    "filled with the lowest": lambda: Attention(lambda s: s.masked_fill(above(), LOWEST)),
    "where": lambda: Attention(lambda s: torch.where(above(), -1e30, s)),
    "-inf added": lambda: Attention(added(-math.inf)),
    **{f"{low:.3g} added": lambda low=low: Attention(added(low)) for low in (-1e4, -1e9, LOWEST)},
    "added twice": lambda: Attention(lambda s: s + (added(-1e30)(s[..., :1] * 0) + added(-1e5)(s))),
}  # fmt: skip


def example() -> Tensor:
    return torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(0))


@functools.cache
def traced(name: str) -> Dataflow:
    return read_dataflow(trace_aten(MODELS[name](), example()))


@pytest.mark.parametrize("name", MODELS)
def test_masked_attention_has_a_plan_and_nothing_refutes_it(name: str) -> None:
    model, x, graph = MODELS[name](), example(), traced(name).graph
    found = plan(graph, x, 0.1, formats=("fp16",), probes=2)
    assert found.measured.value <= 0.1
    assert math.isfinite(found.predicted.value)
    assert found.measured.reference_bound < 1e-9
    assert any("PROVED" in line for line in check(found.certificate))
    assert not refute(graph, x, "fp16", 0.1, sweeps=2).refuted
    with torch.no_grad():
        assert float((found.apply()(x) - model(x)).abs().max()) <= 0.1


@pytest.mark.parametrize("name", MODELS)
def test_bounds_hold_under_masks(name: str) -> None:
    x, flow = example(), traced(name)
    exact = run_exact(flow, (x,))
    for form in FORMATS:
        assignment = uniform(flow, form)
        error = measured_error(exact, run_assigned(flow, (x,), assignment))
        bound = torch.cat([o.reshape(-1) for o in rigorous_bound(flow, (x,), assignment).outputs])
        assert bool((bound >= error).all()), form
        assert bool(torch.isfinite(bound).all()), form
        if form == "bf16":
            assert bool((first_order_worst(flow, (x,), assignment) * 1.2 >= error).all())


def rerun(flow: Dataflow, x: Tensor, lost: Mapping[tuple[str, str], Tensor]) -> Tensor:
    """The output in float64 with −∞ in the place of the numbers in `lost`, reader by reader."""
    values: dict[str, Any] = {flow.graph.inputs[0]: x.double()}
    for n, t in flow.graph.constants.items():
        values[n] = t.double() if t.is_floating_point() else t
    for c in flow.graph.calls:

        def value(n: str, reader: str = c.name) -> Any:
            gone = lost.get((n, reader))
            return values[n] if gone is None else values[n].masked_fill(gone, -math.inf)

        values[c.name] = c.call(*substitute(c.args, value), **keywords(c, value, torch.float64))
        if (c.name, ALL_READERS) in lost:
            values[c.name] = values[c.name].masked_fill(lost[c.name, ALL_READERS], -math.inf)
    return values[flow.graph.outputs[0]]


@pytest.mark.parametrize("name", MODELS)
def test_masked_scores_may_become_infinite(name: str) -> None:
    x, flow = example(), traced(name)
    run = run_exact(flow, (x,), keep=True)
    masks = masked_scores(flow, run.values)
    assert masks or name == "a row sees nothing"
    assert torch.equal(rerun(flow, x, masks), run.outputs[0])


@pytest.mark.parametrize(
    ("read", "felt"),
    [
        (lambda s: torch.softmax(s, -1) + s.mean(), True),
        (lambda s: (torch.softmax(s, -1), s), True),
        (lambda s: torch.softmax(s.neg().neg(), -1), False),
        (lambda s: torch.softmax(s - 2 * added(-1e5)(s), -1), True),
        (lambda s: torch.softmax(s, -1) * (s == -math.inf).any(0), False),
    ],
    ids=["mean", "output", "negated", "subtracted", "compared"],
)
def test_scores_that_something_else_reads_are_not_masked(
    read: Callable[[Tensor], Any], felt: bool
) -> None:
    class Read(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return read(added(-1e5)(x @ x.transpose(-2, -1)))

    x = example()
    with pytest.raises(NoSection, match="fp16 ends at 65504"):
        plan(Read(), x, 1e9, formats=("fp16",))
    # Not known beforehand to be harmless is one thing, an output over the budget another.
    assert any(p.kind == "overflow" for p in refute(Read(), x, "fp16", 1e-6).proofs) == felt


def test_scores_that_still_have_weight_are_not_masked() -> None:
    x = example() * 0
    flow = read_dataflow(trace_aten(Attention(added(-700.0)), x))
    assert masked_scores(flow, run_exact(flow, (x,), keep=True).values) == {}
    flow = read_dataflow(trace_aten(Attention(added(-800.0)), x))
    assert masked_scores(flow, run_exact(flow, (x,), keep=True).values)


def test_a_format_without_infinity_holds_no_masked_score() -> None:
    model, x = MODELS["-1e+09 added"](), example()
    with pytest.raises(NoSection, match=r"reaches 1e\+09; fp8_e4m3 ends at 448"):
        plan(model, x, 10.0, formats=("fp8_e4m3",))
    with pytest.raises(NoSection, match="holds infinities"):
        plan(MODELS["causal"](), x, 10.0, formats=("fp8_e4m3",))


def test_masked_scores_as_an_output_are_no_error() -> None:
    class Scores(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x @ x.transpose(-2, -1)).masked_fill(above(), -math.inf) * 0.5 + 1.0

    found = plan(Scores(), example(), 0.05)
    assert found.measured.value <= 0.05
    assert math.isfinite(found.predicted.value)
    assert not any("bends" in f for f in found.flags)


def test_an_overflow_is_no_mask() -> None:
    class Overflow(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.exp(1000.0 + x).log()

    x = example().double()
    with pytest.raises(ValueError, match="squares that overflow float64"):
        plan(Overflow(), x, 1e-3, formats=("fp64",))
    flow = read_dataflow(trace_aten(Overflow(), x))
    assert rigorous_bound(flow, (x,), uniform(flow, "fp64")).largest == math.inf


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.sampled_from([1e-6, 1.0, 30.0, 400.0, 5000.0]))
def test_the_softmax_rule_holds_for_operands_moved_far(seed: int, reach: float) -> None:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(5, 7, generator=g, dtype=torch.float64) * reach
    x[:, 1] -= 500.0
    e = torch.rand(5, 7, generator=g, dtype=torch.float64) * reach
    bound, _ = softmax((x, e), -1)
    for _ in range(20):
        side = torch.rand(5, 7, generator=g, dtype=torch.float64) * 2 - 1
        moved = x + e * torch.where(torch.rand(5, 7, generator=g) < 0.5, side, side.sign())
        assert bool(((torch.softmax(moved, -1) - torch.softmax(x, -1)).abs() <= bound).all())
