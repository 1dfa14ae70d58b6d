"""Affine operations: y = R x + b with R constant, and products with a constant factor."""

from typing import Any

import torch
from torch import Tensor

from torchsheaf.network.differential import (
    AveragePool,
    Convolution,
    Differential,
    Linear,
    Pointwise,
)
from torchsheaf.network.rules.rule import Kind, Rule, Shortcut, Site, training_flag


def _linear(site: Site) -> Differential | None:
    name = site.name_at(0)
    return Linear(name, site.args[1]) if name and len(site.operands) == 1 else None


def _addmm(site: Site) -> Differential | None:
    name = site.name_at(1)
    if name is None or len(site.operands) != 1 or site.kwargs:
        return None
    return Linear(name, site.args[2].mT)


def _average_pool(site: Site) -> Differential | None:
    name = site.name_at(0)
    if name is None or site.kwargs:
        return None
    _, kernel, *rest = site.args
    defaults: tuple[Any, ...] = ([], [0, 0], False, True, None)
    return AveragePool(name, site.args[0], (kernel, *rest, *defaults[len(rest) :]))


def _convolution(spatial: int, transposed: bool) -> Shortcut:
    order = (3, 4, 7, 5, 6) if transposed else (3, 4, 5, None, 6)

    def shortcut(site: Site) -> Differential | None:
        name, args = site.name_at(0), site.args
        if name is None or len(site.operands) != 1 or site.kwargs:
            return None
        x, weight = args[0], args[1]
        if x.ndim != spatial + 2:
            return None

        def option(position: int | None, default: int) -> list[int]:
            given = args[position] if position is not None and len(args) > position else default
            given = [given] if isinstance(given, int) else list(given)
            return given * spatial if len(given) == 1 else given

        stride, padding, dilation, extra = (
            option(p, d) for p, d in zip(order[:4], (1, 0, 1, 0), strict=True)
        )
        groups = args[6] if len(args) > 6 else 1
        options = (stride, padding, dilation, transposed, extra, groups)
        return Convolution(name, x, weight, options)

    return shortcut


def _core_convolution(site: Site) -> Differential | None:
    """The one form that all convolutions have in core ATen."""
    name = site.name_at(0)
    if name is None or len(site.operands) != 1:
        return None
    return Convolution(name, site.args[0], site.args[1], tuple(site.args[3:]))


def pointwise(site: Site) -> Differential | None:
    """A diagonal differential, where one operand enters and nothing broadcasts it."""
    if len(site.operands) != 1:
        return None
    ((name, z),) = site.operands.items()
    others = [a.shape for a in (*site.args, *site.kwargs.values()) if isinstance(a, Tensor)]
    if torch.broadcast_shapes(*others) != z.shape:
        return None
    return Pointwise(name, z, site.function)


def _batch_norm(site: Site) -> Differential | None:
    name = site.name_at(0)
    if name is None or len(site.operands) != 1:
        return None
    return Pointwise(name, site.operands[name], site.function)


def _batch_statistics(args: tuple[Any, ...], kwargs: Any) -> str | None:
    if args[3] is None:
        return (
            "batch-norm without running statistics takes those of the batch, which mixes its "
            "samples: build it with track_running_stats=True"
        )
    return training_flag(5, "training", "batch-norm")(args, kwargs)


def _conv(spatial: int, transposed: bool = False) -> Rule:
    return Rule(Kind.AFFINE, linear_in=(0, 1), shortcut=_convolution(spatial, transposed))


_PLAIN = Rule(Kind.AFFINE)
_FIRST = Rule(Kind.AFFINE, linear_in=(0,))
_EITHER = Rule(Kind.SMOOTH, linear_in=(0, 1))
_SCALED = Rule(Kind.AFFINE, shortcut=pointwise)

AFFINE: dict[str, Rule] = {
    "aten.linear.default": Rule(Kind.AFFINE, linear_in=(0, 1), shortcut=_linear),
    "aten.addmm.default": Rule(Kind.SMOOTH, linear_in=(0, 1, 2), shortcut=_addmm),
    "aten.baddbmm.default": Rule(Kind.SMOOTH, linear_in=(0, 1, 2)),
    "aten.bilinear.default": _EITHER,
    "aten.embedding.default": _FIRST,
    "aten.conv1d.default": _conv(1),
    "aten.conv2d.default": _conv(2),
    "aten.conv3d.default": _conv(3),
    "aten.convolution.default": Rule(
        Kind.AFFINE, linear_in=(0, 1), shortcut=_core_convolution
    ),
    "aten.conv1d.padding": _FIRST,
    "aten.conv2d.padding": _FIRST,
    "aten.conv3d.padding": _FIRST,
    "aten.conv_transpose1d.default": _conv(1, True),
    "aten.conv_transpose2d.input": _conv(2, True),
    "aten.conv_transpose3d.input": _conv(3, True),
    "aten.batch_norm.default": Rule(
        Kind.AFFINE,
        linear_in=(0,),
        shortcut=_batch_norm,
        refuse=_batch_statistics,
    ),
    "aten._native_batch_norm_legit_no_training.default": _FIRST,
    "aten.neg.default": _SCALED,
    "aten.nan_to_num.default": _SCALED,  # of finite numbers: the identity
    "aten.positive.default": _SCALED,
    "aten.mul.Scalar": _SCALED,
    "aten.div.Scalar": _SCALED,
    "aten.rsub.Scalar": _SCALED,
    "aten.add.Scalar": _SCALED,
    "aten.sub.Scalar": _SCALED,
    "aten.masked_fill.Scalar": Rule(Kind.AFFINE, linear_in=(0,), shortcut=pointwise),
    "aten.avg_pool2d.default": Rule(Kind.AFFINE, shortcut=_average_pool),
    **{
        f"aten.{name}": _PLAIN
        for name in (
            "avg_pool1d.default", "avg_pool3d.default",
            "adaptive_avg_pool1d.default", "adaptive_avg_pool2d.default",
            "adaptive_avg_pool3d.default", "mean.dim", "mean.default", "sum.dim_IntList",
            "sum.default", "cumsum.default", "diff.default", "constant_pad_nd.default",
            "pad.default", "reflection_pad1d.default", "reflection_pad2d.default",
            "replication_pad1d.default", "replication_pad2d.default", "tril.default",
            "triu.default", "upsample_nearest1d.vec", "upsample_nearest2d.vec",
            "upsample_nearest3d.vec", "upsample_nearest2d.default", "upsample_linear1d.vec",
            "upsample_bilinear2d.vec", "upsample_bilinear2d.default", "upsample_bicubic2d.vec",
            "upsample_trilinear3d.vec", "_upsample_bilinear2d_aa.default", "col2im.default",
        )
    },
}  # fmt: skip
