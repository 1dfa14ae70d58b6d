"""A float32 problem in float64 against the model itself made double."""

import copy
import warnings
from collections.abc import Iterator

import pytest
import torch
from torch import nn

import torchsheaf as ts
from tests.against.zoo import ZOO, example
from torchsheaf.boundary.widening import widened
from torchsheaf.flow.velocity import descent


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """transformers warns about its own deprecations while it is traced."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.parametrize(
    "name", ["bert", "resnet", "mixer", "elman", "two towers", "encoder layer"]
)
def test_widened_is_the_model_made_double(name: str) -> None:
    if name in ("bert", "resnet"):
        pytest.importorskip("transformers")
    assert name in ZOO
    model, inputs = example(name, torch.float32)
    problem = ts.hold(ts.encode(model, inputs), inputs)
    wide = widened(problem)
    double = copy.deepcopy(model).double()
    given = tuple(x.double() if x.is_floating_point() else x for x in inputs)
    expected = ts.hold(ts.encode(double, given), given)
    start = expected.start("random", torch.Generator().manual_seed(1))
    found, wanted = descent(wide, start), descent(expected, start)
    for vertex, value in wanted.items():
        assert found[vertex].dtype == torch.float64
        torch.testing.assert_close(found[vertex], value, rtol=1e-12, atol=1e-12)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert problem.like.dtype == torch.float32


def test_pins_are_widened_and_casts_of_the_model_are_kept() -> None:
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(2))
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    problem = ts.hold(ts.encode(net, x), x).pin(ts.Pin("1", 0.3, weight=2.0), ts.Pin("output", 1.0))
    wide = widened(problem)
    at = wide.start("random", torch.Generator().manual_seed(3))
    narrow = ts.Cochain({n: t.float() for n, t in at.items()})
    assert wide.energy(at).dtype == torch.float64
    torch.testing.assert_close(wide.energy(at).float(), problem.energy(narrow), rtol=1e-5, atol=0)
    assert widened(wide) is wide

    class Cast(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.tanh(x.bfloat16()).float() * 2

    cast = ts.hold(ts.encode(Cast(), x), x)
    assert widened(cast) is cast
