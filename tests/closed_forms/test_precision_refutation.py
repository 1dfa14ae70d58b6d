"""Refutations: each kind fires where it must, stays silent where it must, and can be rechecked."""

import dataclasses
import math
from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn

from torchsheaf.precision.formats import FORMATS
from torchsheaf.precision.refute import Proof, Refutation, grid_distance, refute


class Fast(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(2000.0 * x)


class Constant(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 0.0 + 5.138157


class Large(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.log(torch.exp(x))


def kinds(r: Refutation) -> set[str]:
    return {p.kind for p in r.proofs}


def test_two_inputs_in_one_cell_bound_every_algorithm() -> None:
    # At 1.0 an fp16 cell is 2^-11 + 2^-12 wide: sin(2000 x) sweeps about 1.46 radians over it.
    x = torch.ones(1, 1)
    found = refute(Fast(), x, "fp16", 0.1)
    assert "cell" in kinds(found)
    (proof,) = (p for p in found.proofs if p.kind == "cell")
    one, two = proof.numbers["output_one"], proof.numbers["output_two"]
    assert abs(one - two) / 2 > 0.1
    assert abs(one) <= 1.0
    assert "cell" not in kinds(refute(Fast(), x, "fp32", 0.1))


def test_an_output_off_the_grid_is_measured_exactly() -> None:
    x = torch.zeros(1, 1)
    found = refute(Constant(), x, "bf16", 8e-3)
    assert "grid" in kinds(found)
    exact = grid_distance(Fraction(5.138157), FORMATS["bf16"])
    assert float(exact) == pytest.approx(1.316e-2, abs=1e-5)
    assert "grid" not in kinds(refute(Constant(), x, "fp16", 8e-3))
    assert not refute(Constant(), x, "bf16", 2e-2).refuted


def test_overflow_needs_the_exact_value_past_the_threshold() -> None:
    found = refute(Large(), torch.tensor([[11.8]]), "fp16", 10.0)
    assert "overflow" in kinds(found)
    below = refute(Large(), torch.tensor([[11.0]]), "fp16", 10.0)
    assert "overflow" not in kinds(below)
    assert not below.refuted
    # 65519 still rounds to 65504; 65521 does not.
    edge = FORMATS["fp16"].overflow
    assert edge == 65520.0
    assert math.isinf(float(torch.tensor(65520.0).half()))
    assert float(torch.tensor(65519.0).half()) == 65504.0


def test_the_witness_is_the_run_itself() -> None:
    found = refute(Large(), torch.tensor([[11.8]]), "fp16", 10.0)
    (witness,) = (p for p in found.proofs if p.kind == "witness")
    assert math.isinf(witness.numbers["error"])


def test_every_proof_rechecks_and_no_forged_one_does() -> None:
    proofs = [
        *refute(Fast(), torch.ones(1, 1), "fp16", 0.1).proofs,
        *refute(Constant(), torch.zeros(1, 1), "bf16", 8e-3).proofs,
        *refute(Large(), torch.tensor([[11.8]]), "fp16", 10.0).proofs,
    ]
    assert {p.kind for p in proofs} == {"overflow", "grid", "cell", "witness"}
    for p in proofs:
        assert p.recheck()
        assert not dataclasses.replace(p, budget=1e308).recheck() or p.kind in (
            "overflow",
            "witness",
        )
    numbers = {"value": 65519.0, "reference_bound": 0.0, "error": 2.0, "output_bound": 0.0}
    assert not Proof("overflow", "fp16", 1.0, "", "", numbers).recheck()
    numbers["value"] = 65520.0
    assert Proof("overflow", "fp16", 1.0, "", "", numbers).recheck()
    assert not Proof("overflow", "fp16", 2.0, "", "", numbers).recheck()


def test_what_is_possible_is_not_refuted() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
    x = torch.randn(4, 8)
    for form in ("fp32", "fp64", "bf16", "fp16"):
        assert not refute(net, x, form, 0.05).refuted
    assert "not refuted" in str(refute(net, x, "fp16", 0.05))


class Saturating(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        large = 6000.0 * x
        return torch.tanh(large), torch.nn.functional.relu6(large), 1.0 / (large * large)


@pytest.mark.parametrize("form", ["fp16", "fp8_e5m2"])
def test_an_overflow_that_no_output_feels_proves_nothing(form: str) -> None:
    x = torch.full((2, 3), 12.0)  # 72000 becomes infinite, and its tanh is 1 all the same
    assert not refute(Saturating(), x, form, 1e-2).refuted
    # 1/large² is 0 in that run, and nothing but the overflow makes it so.
    tight = refute(Saturating(), x, form, 1e-12)
    assert "witness" in kinds(tight)
    assert "overflow" in kinds(tight)
    # A run that is over for another reason says nothing of the overflow.
    assert "overflow" not in kinds(refute(Third(), x, form, 1e-6))
    # Without an infinity there is a NaN instead.
    assert "overflow" in kinds(refute(Saturating(), x, "fp8_e4m3", 1e-2))


class Third(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.tanh(6000.0 * x), x / 3 + 0.1


class Untouched(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.flip(0), 0.0 * x


@pytest.mark.parametrize("form", ["bf16", "fp16", "fp8_e4m3", "tf32"])
def test_an_input_that_is_returned_as_it_came_is_never_rounded(form: str) -> None:
    x = torch.full((2, 3), 1.2345678)
    assert not refute(Untouched(), x, form, 1e-4).refuted


class Steep(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 6000.0 * x


def test_a_run_that_does_not_round_its_inputs_has_no_cells() -> None:
    # tf32 rounds the operands of matrix products only, and fp32 holds these inputs.
    x = torch.full((2, 3), 1.0)
    assert not refute(Steep(), x, "tf32", 1e-2).refuted
    assert not refute(Steep(), x, "fp32", 1e-4).refuted
    assert "cell" in kinds(refute(Steep(), x, "bf16", 1e-2))
