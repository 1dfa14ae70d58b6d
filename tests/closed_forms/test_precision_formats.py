"""Grids, roundings and the statistics of a held-out count, against exact arithmetic."""

import math
from fractions import Fraction

import pytest
import torch

from torchsheaf.precision.check_certificate import clopper_pearson
from torchsheaf.precision.conformance import (
    UNARY,
    KernelCheck,
    all_numbers,
    check_unary,
    conformance,
)
from torchsheaf.precision.formats import FORMATS, binade, find_format
from torchsheaf.precision.refute import grid_distance

NAMES = list(FORMATS)
NARROW = ["bf16", "fp16", "fp8_e4m3", "fp8_e5m2"]


@pytest.mark.parametrize("name", NARROW)
def test_the_description_of_a_format_gives_its_very_numbers(name: str) -> None:
    form = FORMATS[name]
    stored = all_numbers(form, "cpu").double()
    stored = stored[torch.isfinite(stored)].abs().unique()
    assert float(stored.max()) == form.largest
    assert float(stored[stored > 0].min()) == form.spacing
    # Neighbours are one ulp of the lower apart.
    assert torch.equal(stored[1:] - stored[:-1], form.ulp(stored[:-1]))


@pytest.mark.parametrize("name", [*NARROW, "tf32"])
def test_rounding_is_to_nearest_even_and_overflows_where_it_should(name: str) -> None:
    form = FORMATS[name]
    g = torch.Generator().manual_seed(0)
    x = torch.randn(20_000, generator=g) * torch.exp2(
        torch.randint(-20, 20, (20_000,), generator=g)
    )
    inside = x[x.abs() <= form.largest]
    rounded = form.round(inside).double()
    assert bool(((rounded - inside.double()).abs() <= form.ulp(inside.double()) / 2).all())
    assert torch.equal(form.round(rounded.float()).double(), rounded)
    for value in inside[:300].tolist():
        exact = abs(Fraction(value) - Fraction(float(form.round(torch.tensor(value)))))
        assert exact == grid_distance(Fraction(value), form)
    # A tie goes to the even neighbour.
    tie = torch.tensor([1 + 2.0**-form.bits, 1 + 3 * 2.0**-form.bits])
    assert form.round(tie).tolist() == [1.0, 1 + 4 * 2.0**-form.bits]
    if form.rounds_result:
        past = form.round(torch.tensor([form.overflow, -form.overflow]))
        assert not torch.isfinite(past).any()
        assert float(form.round(torch.tensor(form.largest))) == form.largest


def test_a_format_holds_another_iff_every_number_of_it_survives() -> None:
    for a in NARROW:
        numbers = all_numbers(FORMATS[a], "cpu").float()
        numbers = numbers[torch.isfinite(numbers)]
        for b in NARROW:
            survives = torch.equal(FORMATS[b].round(numbers).float(), numbers)
            assert FORMATS[b].holds(FORMATS[a]) == survives, (a, b)
    assert FORMATS["fp32"].holds(FORMATS["tf32"])
    assert not FORMATS["tf32"].holds(FORMATS["fp32"])


def test_binade_is_the_power_of_two_below() -> None:
    x = torch.tensor([1.0, 1.5, -3.99, 0.0, 2.0**-140, 7e20])
    for dtype in (torch.float32, torch.float64):
        found = binade(x.to(dtype))[[0, 1, 2, 3, 5]].double().tolist()
        assert found == [1.0, 1.0, 2.0, 0.0, 2.0 ** math.floor(math.log2(7e20))]


def test_formats_are_found_by_alias_and_dtype() -> None:
    assert find_format("half") is find_format(torch.float16) is FORMATS["fp16"]
    assert find_format(torch.float8_e4m3fn) is FORMATS["fp8_e4m3"]
    with pytest.raises(ValueError, match="fp32, tf32"):
        find_format("int8")


@pytest.mark.parametrize(("k", "n"), [(0, 1), (0, 40), (3, 40), (7, 300), (39, 40)])
def test_clopper_pearson_equals_the_beta_quantile(k: int, n: int) -> None:
    from scipy.stats import beta

    assert clopper_pearson(k, n, 0.95) == pytest.approx(beta.ppf(0.95, k + 1, n - k), abs=1e-10)
    assert clopper_pearson(0, 3000, 0.95) == pytest.approx(1 - 0.05 ** (1 / 3000), abs=1e-12)


def test_every_kernel_obeys_its_model_on_all_16_bit_inputs_here() -> None:
    found = conformance(("bf16", "fp16", "fp8_e4m3", "fp8_e5m2", "fp32", "tf32"))
    assert not found.failures, [(c.operator, c.format, c.worst, c.witness) for c in found.failures]
    full = [c for c in found.checks if c.exhaustive and c.format in ("bf16", "fp16")]
    assert len(full) >= 2 * len(UNARY)
    elementary = [c for c in full if c.operator not in ("sin", "cos")]
    assert all(c.inputs == 65_536 for c in elementary)


def test_models_are_of_finite_operands_only() -> None:
    """NaN for an infinite operand is a kernel's own matter, NaN for a finite one is not."""
    form, source = FORMATS["bf16"], torch.Generator().manual_seed(0)

    def nan_from(bound: float) -> KernelCheck:
        return check_unary(
            "relu", lambda x: torch.relu(x).masked_fill(x.abs() >= bound, torch.nan)
            if x.dtype == torch.bfloat16 else torch.relu(x), form, "cpu", source,
        )  # fmt: skip

    assert nan_from(math.inf).worst == 0
    assert nan_from(1e38).worst == math.inf


def test_a_model_without_its_absolute_part_is_falsified_by_enumeration(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from torchsheaf.precision import operators

    monkeypatch.setitem(operators.MODELS, "rsqrt", operators.KernelModel(narrow=0.9))
    monkeypatch.setitem(operators.MODELS, "gelu", operators.KernelModel())
    found = conformance(("bf16", "fp16"), operators=["rsqrt", "gelu"])
    assert {c.operator for c in found.failures} == {"rsqrt", "gelu"}
    assert all("exact" in c.witness for c in found.failures)
