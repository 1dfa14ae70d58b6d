"""The table of rules: what each ATen operation is, and how to linearise it cheaply.

Adding an operation is one entry. An operation without an entry makes the model unsupported.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from torchsheaf.network.differential import Combination, Convolution, Differential, Linear
from torchsheaf.network.gates import Gate, GateFactory, ScalarGate, WindowGate


class Kind(StrEnum):
    """What an operation is; of an edge: the kind of the operation at its head."""

    AFFINE = "affine"
    GATE = "gate"
    JOIN = "join"
    SMOOTH = "smooth"
    RESHAPE = "reshape"


Shortcut = Callable[[Mapping[str, Any], tuple[Any, ...], tuple[Any, ...]], Differential | None]
"""(operands by name, symbolic args, resolved args) → a cheap differential, or None."""


@dataclass(frozen=True)
class Rule:
    """How to read one ATen operation.

    `kind` holds when one activation enters. `linear_in`: the argument positions in which it is
    affine on its own (a single activation there makes it affine). `additive`: it is jointly affine
    in all activations (add, cat), so a join of this kind has constant blocks. `refuse` returns a
    reason when these arguments cannot be read (dropout in training mode, say).
    """

    kind: Kind
    linear_in: tuple[int, ...] = ()
    additive: bool = False
    gate: GateFactory | None = None
    shortcut: Shortcut | None = None
    refuse: Callable[[tuple[Any, ...]], str | None] | None = None


def _linear(
    operands: Mapping[str, Any], names: tuple[Any, ...], args: tuple[Any, ...]
) -> Differential | None:
    if len(operands) == 1 and not isinstance(args[1], str) and names[0].name in operands:
        return Linear(names[0].name, args[1])
    return None


def _convolution(spatial: int) -> Shortcut:
    def shortcut(
        operands: Mapping[str, Any], names: tuple[Any, ...], args: tuple[Any, ...]
    ) -> Differential | None:
        if len(operands) != 1 or getattr(names[0], "name", None) not in operands:
            return None
        defaults: tuple[Any, ...] = (None, [1] * spatial, [0] * spatial, [1] * spatial, 1)
        _, stride, padding, dilation, groups = (*args[2:], *defaults[len(args) - 2 :])
        options = (stride, padding, dilation, False, [0] * spatial, groups)
        return Convolution(names[0].name, args[0], args[1], options)

    return shortcut


def _sum(sign: float) -> Shortcut:
    def shortcut(
        operands: Mapping[str, Any], names: tuple[Any, ...], args: tuple[Any, ...]
    ) -> Differential | None:
        pair = [str(getattr(n, "name", "")) for n in names[:2]]
        if pair[0] not in operands:
            return None
        if not isinstance(args[1], Tensor):
            return Combination({pair[0]: 1.0})
        if pair[1] not in operands or pair[0] == pair[1] or args[0].shape != args[1].shape:
            return None
        return Combination({pair[0]: 1.0, pair[1]: sign})

    return shortcut


def _scalar(breakpoints: tuple[float, ...], slopes: tuple[float, ...]) -> GateFactory:
    gate = ScalarGate(breakpoints, slopes)
    return lambda args, kwargs: gate


def _leaky(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Gate:
    slope = args[1] if len(args) > 1 else kwargs.get("negative_slope", 0.01)
    return ScalarGate((0.0,), (float(slope), 1.0))


def _hardtanh(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Gate:
    low = args[1] if len(args) > 1 else -1.0
    high = args[2] if len(args) > 2 else 1.0
    return ScalarGate((float(low), float(high)), (0.0, 1.0, 0.0))


def _max_pool(spatial: int) -> GateFactory:
    pool = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}[spatial]

    def build(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Gate:
        names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
        options = dict(zip(names, args[1:], strict=False)) | kwargs
        if options.get("stride") == []:
            options["stride"] = None
        return WindowGate(lambda z: pool(z, return_indices=True, **options), spatial)

    return build


def _adaptive_max_pool2d(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Gate:
    return WindowGate(lambda z: F.adaptive_max_pool2d(z, args[1], return_indices=True), 2)


def _training_flag(position: int, what: str) -> Callable[[tuple[Any, ...]], str | None]:
    def refuse(args: tuple[Any, ...]) -> str | None:
        if len(args) > position and args[position] is True:
            return (
                f"{what} in training mode is not a function of its input: call model.eval() first"
            )
        return None

    return refuse


_AFFINE = Rule(Kind.AFFINE)
_SMOOTH = Rule(Kind.SMOOTH)
_RESHAPE = Rule(Kind.RESHAPE)
_ADDITIVE = Rule(Kind.AFFINE, linear_in=(0, 1), additive=True)
_DROPOUT = Rule(Kind.RESHAPE, refuse=_training_flag(2, "dropout"))


def _conv(spatial: int) -> Rule:
    return Rule(Kind.AFFINE, linear_in=(0,), shortcut=_convolution(spatial))


_TABLE: dict[str, Rule] = {
    # affine
    "aten.linear.default": Rule(Kind.AFFINE, linear_in=(0,), shortcut=_linear),
    "aten.conv1d.default": _conv(1),
    "aten.conv2d.default": _conv(2),
    "aten.conv3d.default": _conv(3),
    "aten.conv1d.padding": Rule(Kind.AFFINE, linear_in=(0,)),
    "aten.conv2d.padding": Rule(Kind.AFFINE, linear_in=(0,)),
    "aten.batch_norm.default": Rule(
        Kind.AFFINE, linear_in=(0,), refuse=_training_flag(5, "batch-norm")
    ),
    "aten.avg_pool1d.default": _AFFINE,
    "aten.avg_pool2d.default": _AFFINE,
    "aten.adaptive_avg_pool1d.default": _AFFINE,
    "aten.adaptive_avg_pool2d.default": _AFFINE,
    "aten.mean.dim": _AFFINE,
    "aten.sum.dim_IntList": _AFFINE,
    "aten.neg.default": _AFFINE,
    "aten.constant_pad_nd.default": _AFFINE,
    "aten.pad.default": _AFFINE,
    "aten.mul.Tensor": Rule(Kind.SMOOTH, linear_in=(0, 1)),
    "aten.mul.Scalar": _AFFINE,
    "aten.div.Tensor": Rule(Kind.SMOOTH, linear_in=(0,)),
    "aten.div.Scalar": _AFFINE,
    "aten.matmul.default": Rule(Kind.SMOOTH, linear_in=(0, 1)),
    "aten.bmm.default": Rule(Kind.SMOOTH, linear_in=(0, 1)),
    # joins that are affine in all parents together
    "aten.add.Tensor": Rule(Kind.AFFINE, additive=True, shortcut=_sum(1.0)),
    "aten.sub.Tensor": Rule(Kind.AFFINE, additive=True, shortcut=_sum(-1.0)),
    "aten.rsub.Scalar": _AFFINE,
    "aten.cat.default": _ADDITIVE,
    "aten.stack.default": _ADDITIVE,
    # gates
    "aten.relu.default": Rule(Kind.GATE, gate=_scalar((0.0,), (0.0, 1.0))),
    "aten.leaky_relu.default": Rule(Kind.GATE, gate=_leaky),
    "aten.hardtanh.default": Rule(Kind.GATE, gate=_hardtanh),
    "aten.relu6.default": Rule(Kind.GATE, gate=_scalar((0.0, 6.0), (0.0, 1.0, 0.0))),
    "aten.abs.default": Rule(Kind.GATE, gate=_scalar((0.0,), (-1.0, 1.0))),
    "aten.max_pool1d.default": Rule(Kind.GATE, gate=_max_pool(1)),
    "aten.max_pool2d.default": Rule(Kind.GATE, gate=_max_pool(2)),
    "aten.max_pool3d.default": Rule(Kind.GATE, gate=_max_pool(3)),
    "aten.adaptive_max_pool2d.default": Rule(Kind.GATE, gate=_adaptive_max_pool2d),
    # smooth
    **{
        f"aten.{name}": _SMOOTH
        for name in (
            "sigmoid.default", "tanh.default", "softmax.int", "log_softmax.int", "gelu.default",
            "silu.default", "elu.default", "softplus.default", "exp.default", "log.default",
            "sin.default", "cos.default", "pow.Tensor_Scalar", "sqrt.default", "rsqrt.default",
            "layer_norm.default", "group_norm.default",
        )
    },
    # exact relabellings, folded into the edge that uses them
    "aten.dropout.default": _DROPOUT,
    "aten.feature_dropout.default": _DROPOUT,
    **{
        f"aten.{name}": _RESHAPE
        for name in (
            "view.default", "reshape.default", "_unsafe_view.default", "flatten.using_ints",
            "unflatten.int", "permute.default", "transpose.int", "t.default", "squeeze.dim",
            "squeeze.dims", "squeeze.default", "unsqueeze.default", "slice.Tensor", "select.int",
            "expand.default", "contiguous.default", "clone.default", "alias.default",
            "detach.default", "movedim.int", "split.Tensor", "split_with_sizes.default",
            "chunk.default", "unbind.int", "_to_copy.default", "to.dtype",
        )
    },
    "getitem": _RESHAPE,
}  # fmt: skip


def rule_for(op: str) -> Rule | None:
    """The rule of an operation such as "aten.relu.default", or None."""
    return _TABLE.get(op)


def known_operations() -> tuple[str, ...]:
    """Names of all operations with a rule."""
    return tuple(_TABLE)


def functional(target: Any) -> Any:
    """The out-of-place twin of an in-place ATen overload; the target itself otherwise."""
    packet, _, overload = str(target).removeprefix("aten.").partition(".")
    if not packet.endswith("_") or packet.endswith("__"):
        return target
    return getattr(getattr(torch.ops.aten, packet[:-1]), overload)
