"""Predicted against measured on the zoo; sharp attention flagged; cost against autocast's list."""

import functools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchsheaf.network.aten import trace_aten
from torchsheaf.precision import FORMATS, plan, zoo
from torchsheaf.precision.autocast import autocast_assignment
from torchsheaf.precision.dataflow import Dataflow, read_dataflow
from torchsheaf.precision.execute import uniform
from torchsheaf.precision.measure import measure
from torchsheaf.precision.predict import known_shift, predict
from torchsheaf.precision.price import price
from torchsheaf.precision.profile import load_profile
from torchsheaf.precision.ranges import measure_ranges, needed_range
from torchsheaf.precision.sensitivity import analyse


@functools.lru_cache(maxsize=2)
def traced(name: str) -> tuple[Dataflow, tuple[Any, ...]]:
    model, x = zoo.ZOO[name]()
    return read_dataflow(trace_aten(model, x)), (x,)


@pytest.mark.parametrize("name", list(zoo.ZOO))
def test_predicted_rms_is_within_a_fifth_of_measured(name: str) -> None:
    flow, inputs = traced(name)
    names = ["bf16", "fp16", "fp8_e5m2", "fp8_e4m3"]
    needs = needed_range(flow, measure_ranges(flow, inputs))
    table = analyse(flow, inputs, [FORMATS[f] for f in names], probes=4)
    for form in names:
        # e4m3 has no infinity, which a causal mask needs: those operations stay in bf16.
        assignment = {
            c: form if needs[c].fits(FORMATS[form], 1.0) else "bf16" for c in flow.choices
        }
        assert sum(f == form for f in assignment.values()) > 0.8 * len(assignment)
        shift = known_shift(flow, inputs, assignment, "rms")
        predicted = predict(flow, table, assignment, "rms", shift).rms
        measured = measure(flow, inputs, assignment, "rms").rms
        assert 0.85 <= predicted / measured <= 1.2, (form, predicted, measured)


@pytest.mark.parametrize("form", ["fp16", "bf16"])
@pytest.mark.parametrize("pre", [False, True])
def test_sharp_attention_is_flagged_and_ends_within_budget(form: str, pre: bool) -> None:
    model, x = zoo.sharp_block(pre)
    flow = read_dataflow(trace_aten(model, x))
    budget = 0.7 * measure(flow, (x,), uniform(flow, form), "max").value
    found = plan(flow.graph, x, budget, formats=("fp32", form))
    assert found.measured.value <= budget
    assert any("few directions" in f or "not linear" in f for f in found.flags), found.flags
    assert set(found.assignment.values()) == {"fp32", form}
    calm, y = zoo.block(pre)
    plain = plan(calm, y, 0.05, formats=("fp32", form))
    assert not any("few directions" in f or "bends" in f for f in plain.flags)


@pytest.mark.parametrize("form", ["fp16", "bf16"])
def test_the_plan_is_no_dearer_than_autocasts_list_at_its_own_error(form: str) -> None:
    flow, inputs = traced("toy-transformer")
    profile = load_profile("stated")
    listed = autocast_assignment(flow, form)
    assert set(listed.values()) == {"fp32", form}
    error = measure(flow, inputs, listed, "max").value
    found = plan(flow.graph, inputs, error, formats=("fp32", form), margin=1.0)
    assert found.measured.value <= error
    assert found.cost.value <= price(flow, listed, profile).value


def test_blame_depends_on_the_data_and_sums_to_the_total() -> None:
    flow, inputs = traced("toy-transformer")
    found = plan(flow.graph, inputs, 1.0, formats=("fp16",))
    shares = found.blame()
    assert sum(s.error for s in shares) == pytest.approx(found.predicted.value, rel=1e-12)
    assert sum(s.share for s in shares) == pytest.approx(1.0, rel=1e-12)
    for s in shares:
        assert s.kernel + s.weights + s.casts == pytest.approx(s.error, rel=1e-9, abs=1e-18)
    by_kind: dict[str, float] = {}
    for s in shares:
        by_kind[s.kind] = by_kind.get(s.kind, 0.0) + s.share
    # The seed's constants say softmax most and additions nothing; it is the other way round.
    assert by_kind["_softmax"] < 0.02
    assert by_kind["add"] > 0.2
    assert by_kind["native_layer_norm"] > 0.1


class Gathered(nn.Module):
    """Many numbers are added to one of a few places, or averaged over large windows."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.register_buffer("goals", torch.arange(432) * 7 % 4)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "pool":
            return F.adaptive_avg_pool3d(x.reshape(24, 1, 12, 12, 12), 2)
        return torch.zeros(4, 96).index_add(0, self.goals, x)


@pytest.mark.parametrize("shift", [0.0, 3.0])
@pytest.mark.parametrize("kind", ["pool", "index"])
def test_the_estimate_counts_the_roundings_of_partial_sums(kind: str, shift: float) -> None:
    x = torch.randn(432, 96, generator=torch.Generator().manual_seed(0)) + shift
    flow = read_dataflow(trace_aten(Gathered(kind), x))
    table = analyse(flow, (x,), [FORMATS["bf16"], FORMATS["fp16"]], probes=8)
    for form in ("bf16", "fp16"):
        assignment = uniform(flow, form)
        shifted = known_shift(flow, (x,), assignment, "rms")
        ratio = predict(flow, table, assignment, "rms", shifted).rms
        ratio /= measure(flow, (x,), assignment, "rms").rms
        assert 0.4 <= ratio <= 2.5, form
