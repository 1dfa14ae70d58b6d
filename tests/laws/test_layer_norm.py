"""The closed form of a normalised layer's differential, in every way that the call is written."""

from typing import Any

import pytest
import torch
from torch import nn

from tests.reference.networks import randn
from torchsheaf.network.composition import differential
from torchsheaf.network.laws import check_rule
from torchsheaf.network.operation import Operation, Value
from torchsheaf.network.rules import rule_for

NAME = "aten.layer_norm.default"
TARGET = torch.ops.aten.layer_norm.default


def learnt(seed: int, *shape: int) -> nn.Parameter:
    return nn.Parameter(randn(seed, *shape))


X = randn(0, 3, 4, 5)
CALLS: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "scaled and shifted": ((X, [5], learnt(1, 5), learnt(2, 5), 1e-5), {}),
    "over two axes": ((X, [4, 5], learnt(1, 4, 5), learnt(2, 4, 5), 1e-5), {}),
    "scaled only": ((X, [5], learnt(1, 5), None, 1e-2), {}),
    "bare": ((X, [5]), {}),
    "by name": ((X, [5]), {"weight": randn(1, 5), "bias": randn(2, 5), "eps": 0.1}),
}


@pytest.mark.parametrize("name", CALLS)
def test_push_and_pull_are_the_derivative_and_its_adjoint(name: str) -> None:
    args, kwargs = CALLS[name]
    rule = rule_for(NAME)
    assert rule is not None
    check_rule(rule, TARGET, args, kwargs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_tangents_keep_their_dtype(dtype: torch.dtype) -> None:
    rule = rule_for(NAME)
    assert rule is not None
    x, w, b = (t.to(dtype) for t in (X, randn(1, 5), randn(2, 5)))
    op = Operation("y", TARGET, (Value("x"), [5], w, b, 1e-5), {}, ("x",), rule)
    jacobian = differential(op, (x, [5], w, b, 1e-5), {}, {"x": x}, {})
    u = randn(3, *x.shape).to(dtype)
    pushed, (pulled,) = jacobian.push({"x": u}), jacobian.pull(u).values()
    assert pushed.dtype == pulled.dtype == dtype
    exact = torch.func.jvp(
        lambda v: nn.functional.layer_norm(v, [5], w.double(), b.double()),
        (x.double(),), (u.double(),),
    )[1]  # fmt: skip
    unit = torch.finfo(dtype).eps
    assert (pushed.double() - exact).abs().max() <= 20 * unit * exact.abs().max()
    assert torch.equal(jacobian.value, TARGET(x, [5], w, b, 1e-5))
