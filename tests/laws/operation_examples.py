"""One small network per operation that layers are made of (every rule: rule_examples.py).

Every example reads `h`, the value of a linear layer (a free vertex), and some read `g`, another
one, so that no restriction map is trivially absent because the input is held.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.reference.networks import fill

aten = torch.ops.aten
Body = Callable[[nn.ParameterDict, Tensor, Tensor], Tensor]


class Probe(nn.Module):
    """body(parameters, h, g) with h and g two linear images of the input."""

    def __init__(self, body: Body, width: int, parameters: dict[str, tuple[int, ...]]) -> None:
        super().__init__()
        self.body = body
        self.first = nn.Linear(width, width)
        self.second = nn.Linear(width, width)
        self.own = nn.ParameterDict({n: torch.zeros(s) for n, s in parameters.items()})

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.own, self.first(x), self.second(x))


@dataclass(frozen=True)
class Example:
    """A network whose graph contains the operation, for inputs of `shape` (without the batch)."""

    body: Body
    shape: tuple[int, ...] = (4,)
    parameters: tuple[tuple[str, tuple[int, ...]], ...] = ()

    def model(self, seed: int = 7) -> nn.Module:
        return fill(Probe(self.body, self.shape[-1], dict(self.parameters)), seed)


def unary(function: Callable[[Tensor], Tensor], *shape: int) -> Example:
    return Example(lambda p, h, g: function(h), shape or (4,))


def binary(function: Callable[[Tensor, Tensor], Tensor], *shape: int) -> Example:
    return Example(lambda p, h, g: function(h, g), shape or (4,))


def weighted(
    function: Callable[[nn.ParameterDict, Tensor], Tensor],
    shape: tuple[int, ...],
    **parameters: tuple[int, ...],
) -> Example:
    return Example(lambda p, h, g: function(p, h), shape, tuple(parameters.items()))


def _batch_norm(p: nn.ParameterDict, h: Tensor) -> Tensor:
    mean, var = p["mean"].detach(), p["var"].detach().square() + 0.5
    return F.batch_norm(h, mean, var, p["weight"], p["bias"])


EXAMPLES: dict[str, Example] = {
    # affine
    "aten.linear.default": weighted(
        lambda p, h: F.linear(h, p["w"], p["b"]), (4,), w=(3, 4), b=(3,)
    ),
    "aten.conv1d.default": weighted(
        lambda p, h: F.conv1d(h, p["w"], p["b"], stride=2, padding=1, dilation=2),
        (2, 9),
        w=(3, 2, 3),
        b=(3,),
    ),
    "aten.conv2d.default": weighted(
        lambda p, h: F.conv2d(h, p["w"], p["b"], stride=(2, 1), padding=1, groups=2),
        (2, 5, 4),
        w=(4, 1, 3, 2),
        b=(4,),
    ),
    "aten.conv3d.default": weighted(
        lambda p, h: F.conv3d(h, p["w"]), (1, 3, 3, 4), w=(2, 1, 2, 2, 3)
    ),
    "aten.conv1d.padding": weighted(
        lambda p, h: F.conv1d(h, p["w"], padding="same"), (2, 5), w=(3, 2, 3)
    ),
    "aten.conv2d.padding": weighted(
        lambda p, h: F.conv2d(h, p["w"], p["b"], padding="same"), (2, 4, 4), w=(3, 2, 3, 3), b=(3,)
    ),
    "aten.batch_norm.default": weighted(
        _batch_norm, (3, 4), mean=(3,), var=(3,), weight=(3,), bias=(3,)
    ),
    "aten.avg_pool1d.default": unary(lambda h: F.avg_pool1d(h, 2), 2, 6),
    "aten.avg_pool2d.default": unary(lambda h: F.avg_pool2d(h, 3, stride=2, padding=1), 2, 5, 4),
    "aten.adaptive_avg_pool1d.default": unary(lambda h: F.adaptive_avg_pool1d(h, 3), 2, 7),
    "aten.adaptive_avg_pool2d.default": unary(lambda h: F.adaptive_avg_pool2d(h, (2, 3)), 2, 5, 4),
    "aten.mean.dim": unary(lambda h: h.mean((1, 2)), 2, 3, 4),
    "aten.sum.dim_IntList": unary(lambda h: h.sum(1), 3, 4),
    "aten.neg.default": unary(torch.neg),
    "aten.constant_pad_nd.default": unary(lambda h: aten.constant_pad_nd.default(h, [1, 2], 0.5)),
    "aten.pad.default": unary(lambda h: F.pad(h, (1, 2), mode="reflect"), 2, 4),
    "aten.mul.Tensor": weighted(lambda p, h: h * p["w"], (4,), w=(4,)),
    "aten.mul.Scalar": unary(lambda h: aten.mul.Scalar(h, 2.5)),
    "aten.div.Tensor": weighted(lambda p, h: h / (p["w"].square() + 1), (4,), w=(4,)),
    "aten.div.Scalar": unary(lambda h: aten.div.Scalar(h, 2.5)),
    "aten.matmul.default": binary(lambda h, g: h @ g.transpose(1, 2), 3, 4),
    "aten.bmm.default": binary(lambda h, g: torch.bmm(h, g.transpose(1, 2)), 3, 4),
    # joins
    "aten.add.Tensor": binary(lambda h, g: torch.add(h, g, alpha=3)),
    "aten.sub.Tensor": binary(lambda h, g: h - g),
    "aten.rsub.Scalar": unary(lambda h: torch.rsub(h, 2.0)),
    "aten.cat.default": binary(lambda h, g: torch.cat([h, g, h], 1)),
    "aten.stack.default": binary(lambda h, g: torch.stack([g, h], 2)),
    # gates
    "aten.relu.default": unary(torch.relu),
    "aten.leaky_relu.default": unary(lambda h: F.leaky_relu(h, 0.3)),
    "aten.hardtanh.default": unary(lambda h: F.hardtanh(h, -0.5, 0.7)),
    "aten.relu6.default": unary(lambda h: F.relu6(9 * h)),
    "aten.abs.default": unary(torch.abs),
    "aten.max_pool1d.default": unary(lambda h: F.max_pool1d(h, 3, stride=2, padding=1), 2, 7),
    "aten.max_pool2d.default": unary(lambda h: F.max_pool2d(h, 2, dilation=2, stride=1), 2, 5, 4),
    "aten.max_pool3d.default": unary(lambda h: F.max_pool3d(h, 2), 1, 2, 4, 4),
    "aten.adaptive_max_pool2d.default": unary(lambda h: F.adaptive_max_pool2d(h, 2), 2, 5, 4),
    # smooth
    "aten.sigmoid.default": unary(torch.sigmoid),
    "aten.tanh.default": unary(torch.tanh),
    "aten.softmax.int": unary(lambda h: torch.softmax(h, 1), 3, 4),
    "aten.log_softmax.int": unary(lambda h: torch.log_softmax(h, -1)),
    "aten.gelu.default": unary(lambda h: F.gelu(h, approximate="tanh")),
    "aten.silu.default": unary(F.silu),
    "aten.elu.default": unary(lambda h: F.elu(h, 1.0)),
    "aten.softplus.default": unary(F.softplus),
    "aten.exp.default": unary(torch.exp),
    "aten.log.default": unary(lambda h: torch.log(h * h + 1)),
    "aten.sin.default": unary(torch.sin),
    "aten.cos.default": unary(torch.cos),
    "aten.pow.Tensor_Scalar": unary(lambda h: h**3),
    "aten.sqrt.default": unary(lambda h: torch.sqrt(h * h + 1)),
    "aten.rsqrt.default": unary(lambda h: torch.rsqrt(h * h + 1)),
    "aten.layer_norm.default": weighted(
        lambda p, h: F.layer_norm(h, (4,), p["w"], p["b"], 1e-2), (3, 4), w=(4,), b=(4,)
    ),
    "aten.group_norm.default": weighted(
        lambda p, h: F.group_norm(h, 2, p["w"], p["b"], 1e-2), (4, 3), w=(4,), b=(4,)
    ),
    # relabellings
    "aten.dropout.default": unary(lambda h: F.dropout(h, 0.5, training=False)),
    "aten.feature_dropout.default": unary(lambda h: F.dropout2d(h, 0.5, training=False), 2, 3, 4),
    "aten.view.default": unary(lambda h: h.view(h.shape[0], 12), 3, 4),
    "aten.reshape.default": unary(lambda h: h.transpose(1, 2).reshape(-1, 12), 3, 4),
    "aten._unsafe_view.default": unary(
        lambda h: aten._unsafe_view.default(h, [h.shape[0], 12]), 3, 4
    ),
    "aten.flatten.using_ints": unary(lambda h: torch.flatten(h, 1), 3, 4),
    "aten.unflatten.int": unary(lambda h: torch.unflatten(h, 1, (2, 2))),
    "aten.permute.default": unary(lambda h: h.permute(0, 2, 1), 3, 4),
    "aten.transpose.int": unary(lambda h: h.transpose(1, 2), 3, 4),
    "aten.t.default": unary(lambda h: (h.t() * 2.0).t()),
    "aten.squeeze.dim": unary(lambda h: h.unsqueeze(1).squeeze(1)),
    "aten.squeeze.dims": unary(lambda h: h[:, None, :, None].squeeze((1, 3))),
    "aten.squeeze.default": unary(lambda h: h.unsqueeze(1).squeeze()),
    "aten.unsqueeze.default": unary(lambda h: h.unsqueeze(2)),
    "aten.slice.Tensor": unary(lambda h: h[:, 1:4:2]),
    "aten.select.int": unary(lambda h: h[:, 1], 3, 4),
    "aten.expand.default": unary(lambda h: h.unsqueeze(1).expand(-1, 3, -1)),
    "aten.contiguous.default": unary(lambda h: aten.contiguous.default(h)),
    "aten.clone.default": unary(torch.clone),
    "aten.alias.default": unary(lambda h: aten.alias.default(h)),
    "aten.max.dim": unary(lambda h: h.max(1)[0], 3, 4),
    "aten.min.dim": unary(lambda h: h.min(-1, keepdim=True).values, 3, 4),
    "aten.detach.default": unary(lambda h: aten.detach.default(h)),
    "aten.movedim.int": unary(lambda h: torch.movedim(h, 1, 2), 3, 4),
    "aten.split.Tensor": unary(lambda h: torch.split(h, 3, 1)[0] * 2, 5),
    "aten.split_with_sizes.default": unary(
        lambda h: torch.cat(aten.split_with_sizes.default(h, [3, 2], 1)[::-1], 1), 5
    ),
    "aten.chunk.default": unary(lambda h: torch.chunk(h, 2, 1)[1], 5),
    "aten.unbind.int": unary(lambda h: h.unbind(1)[1] + h.unbind(1)[0], 3, 4),
    "aten._to_copy.default": unary(lambda h: aten._to_copy.default(h, dtype=h.dtype)),
    "aten.to.dtype": unary(lambda h: aten.to.dtype(h, h.dtype)),
    "getitem": unary(lambda h: h.chunk(2, 1)[1] * h.chunk(2, 1)[0]),
}
