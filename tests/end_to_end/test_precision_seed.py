"""Every failure of the seed that the audit found, with the right answer."""

import pytest
import torch
from torch import Tensor, nn

from torchsheaf.precision import NoSection, SheafPrecisionOptimizer, plan, refute
from torchsheaf.precision.seed_surface import PrecisionResult


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 10), nn.Softmax(dim=1))


def sample(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


class Shift(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x + 1e4) - 1e4


class Double(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.exp(torch.exp(x))


def analyse(model: nn.Module, x: Tensor, target: float) -> PrecisionResult:
    return SheafPrecisionOptimizer(model, target_accuracy=target).analyze(x)


@pytest.fixture(scope="module")
def readme() -> dict[float, PrecisionResult]:
    return {t: analyse(mlp(), sample(1, 784), t) for t in (1e-6, 1e-5, 1e-3, 1e-2)}


@pytest.mark.parametrize("target", [1e-6, 1e-5])
def test_the_readme_network_is_not_impossible_and_needs_no_fp64(
    readme: dict[float, PrecisionResult], target: float
) -> None:
    r = readme[target]
    assert r.h0_dim >= 1, "uniform fp32 meets it"
    assert r.uniform_errors["fp32"] < target
    assert r.impossibility_proof is None
    assert all(v.precision_bits <= 32 for v in r.precision_map.values())
    assert r.plan is not None
    assert r.plan.measured.value <= target


def test_at_1e_3_both_16_bit_formats_work(readme: dict[float, PrecisionResult]) -> None:
    r = readme[1e-3]
    assert r.h0_dim == 4
    assert r.h1_dim == 0
    assert all(v.precision_bits == 16 for v in r.precision_map.values())


def test_at_1e_2_bf16_works(readme: dict[float, PrecisionResult]) -> None:
    assert readme[1e-2].uniform_errors["bf16"] < 1e-2
    assert readme[1e-2].h0_dim == 4


def test_an_identity_is_not_impossible() -> None:
    r = analyse(nn.Identity(), sample(1, 784), 1e-6)
    assert r.h0_dim == 4
    assert r.impossibility_proof is None
    assert r.precision_map == {}


@pytest.mark.parametrize(("scale", "target"), [(1.0, 2e-5), (1e4, 1e-4)])
def test_a_linear_layer_gets_no_fp16_that_misses_its_target(scale: float, target: float) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(784, 256)
    with torch.no_grad():
        layer.weight.mul_(scale)
        layer.bias.mul_(scale)
    r = analyse(layer, sample(1, 784), target)
    assert r.uniform_errors["fp16"] > 10 * target
    (config,) = r.precision_map.values()
    assert config.precision_bits > 16
    assert config.obstruction
    assert config.curvature == 0.0, "a linear layer has no curvature and still needs bits"
    assert r.plan is not None
    assert r.plan.measured.value <= target


def test_scaling_weights_and_input_changes_the_assignment() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(784, 256)
    small = analyse(layer, sample(1, 784), 1e-2)
    with torch.no_grad():
        layer.weight.mul_(1e6)
    large = analyse(layer, sample(1, 784) * 1e-3, 1e-2)
    bits = [next(iter(r.precision_map.values())).precision_bits for r in (small, large)]
    assert bits[0] == 16
    assert bits[1] > 16


def test_a_large_shift_is_seen() -> None:
    r = analyse(Shift(), sample(1, 50), 1e-4)
    assert r.uniform_errors["fp16"] > 1.0
    assert r.plan is not None
    assert r.plan.measured.value <= 1e-4
    assert r.precision_map["add"].precision_bits == 64, "float32 loses 4e-4 here"


def test_a_softmax_is_fine_in_fp16() -> None:
    x = torch.rand(1, 50, generator=torch.Generator().manual_seed(0)) * 10 - 5
    r = analyse(nn.Softmax(dim=-1), x, 1e-3)
    assert r.uniform_errors["fp16"] < 1e-3
    assert r.h1_dim == 0
    assert not refute(nn.Softmax(dim=-1), x, "fp16", 1e-3).refuted


@pytest.mark.parametrize("target", [1e-6, 1e-2])
def test_a_double_exponential_is_not_impossible_and_meets_its_target(target: float) -> None:
    x = sample(1, 100)
    r = analyse(Double(), x, target)
    assert r.h0_dim >= 1, "uniform fp64 meets it"
    assert r.impossibility_proof is None
    assert r.plan is not None
    assert r.plan.measured.value <= target
    assert r.uniform_errors["bf16"] > target


class ExponentialsInside(nn.Module):
    """A double exponential between two linear layers, as in the seed's pathological network."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(50, 100), nn.Linear(100, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(torch.exp(torch.exp(torch.tanh(self.fc1(x)))))


def test_float64_goes_where_the_error_is_and_not_to_the_exponentials() -> None:
    """The seed gave the exponentials 64 bits and the rest 32: the error of uniform fp32, still."""
    torch.manual_seed(0)
    model, x, target = ExponentialsInside(), sample(4, 50), 3e-7
    r = analyse(model, x, target)
    assert r.uniform_errors["fp32"] > target
    assert r.impossibility_proof is None
    assert r.plan is not None
    assert r.plan.measured.value <= target
    assert r.precision_map["fc2"].precision_bits == 64
    pins = dict.fromkeys(r.precision_map, "fp32") | {"exp": "fp64", "exp_1": "fp64"}
    with pytest.raises(NoSection) as refused:
        plan(model, x, target, formats=("fp64", "fp32"), pins=pins)
    assert refused.value.measured is not None
    assert refused.value.measured.value > target


def test_memory_counts_nested_parameters_once_and_compares_like_with_like() -> None:
    nested = nn.Sequential(nn.Sequential(mlp()))
    optimizer = SheafPrecisionOptimizer(nested, target_accuracy=1e-3)
    r = optimizer.analyze(sample(1, 784))
    weights = 203_530
    assert 2 * weights / 2**20 <= r.total_memory_mb <= 2.1 * weights / 2**20
    compared = optimizer.compare_with_amp(sample(1, 784))
    assert 4 * weights / 2**20 <= compared["amp_memory_mb"] <= compared["fp32_memory_mb"]
    assert 0.4 < compared["sheaf_vs_amp_improvement"] < 0.6
    assert compared["sheaf_error"] <= 1e-3


def test_analyze_traces_the_model_that_is_there_now() -> None:
    optimizer = SheafPrecisionOptimizer(nn.Linear(4, 4), target_accuracy=1e-2)
    first = optimizer.analyze(sample(1, 4))
    again = optimizer.analyze(sample(1, 4))
    assert list(first.precision_map) == list(again.precision_map), "nothing is appended"
    other = optimizer.analyze(sample(1, 4), model=Double())
    assert set(other.precision_map) == {"exp", "exp_1"}


class Masked(nn.Module):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        y = torch.relu(x)
        if mask is not None:
            y = torch.where(mask == 0, -1.0, y)
        return torch.tanh(y)


def test_an_absent_mask_is_not_traced_as_present() -> None:
    r = analyse(Masked(), sample(2, 8), 1e-3)
    assert list(r.precision_map) == ["tanh"]


def test_the_ranking_is_measured_not_a_table_of_names() -> None:
    from torchsheaf.precision import zoo

    model, x = zoo.toy_transformer()
    r = SheafPrecisionOptimizer(model, 1.0, formats=("fp16",)).analyze(x)
    assert r.plan is not None
    assert r.plan.measured.value <= 1.0
    share = {s.operation: s.share for s in r.plan.blame()}
    softmaxes = [v for k, v in share.items() if "softmax" in k]
    additions = [v for k, v in share.items() if k.rsplit(".", 1)[-1].startswith("add")]
    assert max(softmaxes) < min(0.01, max(additions))
    tight = plan(model, x, 1e-3, formats=("fp32", "fp16"))
    assert tight.measured.value <= 1e-3, "the seed's assignment missed this by a factor of two"


def test_no_proof_text_without_a_proof_and_a_proof_where_there_is_one() -> None:
    # Only 16-bit formats, so that each uniform one really fails.
    from torchsheaf.precision.demos import range_versus_precision
    from torchsheaf.precision.seed_surface import write_proof

    model, x = range_versus_precision()
    proofs = tuple(refute(model, x, f, 8e-3) for f in ("fp16", "bf16"))
    text = write_proof(proofs, 8e-3)
    assert text is not None
    assert "overflow" in text
    assert "off the grid" in text
    assert write_proof((proofs[0], refute(model, x, "fp32", 8e-3)), 8e-3) is None


def test_the_model_is_left_in_the_mode_in_which_it_came() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(), nn.BatchNorm1d(4).eval())
    assert analyse(model, sample(2, 4), 1e-2).h0_dim > 0
    assert [m.training for m in model.modules()] == [True, True, True, False]
