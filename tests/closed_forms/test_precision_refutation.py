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
    forged = Proof("overflow", "fp16", 1.0, "", "", {"value": 65519.0, "reference_bound": 0.0})
    assert not forged.recheck()


def test_what_is_possible_is_not_refuted() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
    x = torch.randn(4, 8)
    for form in ("fp32", "fp64", "bf16", "fp16"):
        assert not refute(net, x, form, 0.05).refuted
    assert "not refuted" in str(refute(net, x, "fp16", 0.05))
