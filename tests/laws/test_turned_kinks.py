"""Slopes that turn over a layer: linear inside it, those of the gate outside."""

import pytest
import torch
from torch import Tensor, nn

from torchsheaf.boundary import hold
from torchsheaf.flow.regularised import regularised
from torchsheaf.sheaf import encode

LAYER = 0.2


def across(z: Tensor, kink: float) -> Tensor:
    return ((z - kink + LAYER) / (2 * LAYER)).clamp(0, 1)


@pytest.mark.parametrize(
    ("gate", "slope"),
    [
        (nn.ReLU(), lambda z: across(z, 0)),
        (nn.LeakyReLU(0.3), lambda z: 0.3 + 0.7 * across(z, 0)),
        (nn.PReLU(init=0.3), lambda z: 0.3 + 0.7 * across(z, 0)),
        (nn.Hardtanh(), lambda z: across(z, -1) - across(z, 1)),
        (nn.Softshrink(0.5), lambda z: 1 - across(z, -0.5) + across(z, 0.5)),
        (nn.ELU(2.0), lambda z: 2 * z.clamp_max(0).exp() - across(z, 0)),
    ],
    ids=lambda v: type(v).__name__,
)
def test_a_gates_slope_goes_from_one_piece_to_the_next(gate: nn.Module, slope) -> None:  # type: ignore[no-untyped-def]
    net = nn.Sequential(nn.Linear(9, 9), gate).double()
    z = torch.linspace(-1.6, 1.6, 45).double().view(5, 9)
    problem = hold(encode(net, z), z)
    at = {**problem.start("forward"), "0": z}
    maps = regularised(problem.coboundary(type(problem.start("forward"))(at)), LAYER, {}).maps
    found = maps["1"].push({"0": torch.ones_like(z)})
    torch.testing.assert_close(found, slope(z), rtol=0, atol=1e-6)
