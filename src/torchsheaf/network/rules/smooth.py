"""Smooth operations: linearised at the state, by their diagonal where they act pointwise."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from torchsheaf.network.differential import Differential, LayerNorm
from torchsheaf.network.gates import CurvedGate
from torchsheaf.network.rules.affine import pointwise
from torchsheaf.network.rules.rule import Kind, Rule, Site

_POINTWISE = (
    "sigmoid.default", "tanh.default", "gelu.default", "silu.default", "mish.default",
    "celu.default", "softplus.default", "log_sigmoid.default",
    "exp.default", "exp2.default", "expm1.default", "log.default",
    "log2.default", "log1p.default", "sin.default", "cos.default", "tan.default", "atan.default",
    "asinh.default", "sinh.default", "cosh.default", "erf.default", "square.default",
    "sqrt.default", "rsqrt.default", "reciprocal.default", "pow.Tensor_Scalar", "asin.default",
    "acos.default", "acosh.default", "atanh.default", "erfc.default", "erfinv.default",
    "log10.default", "logit.default", "sinc.default", "lgamma.default", "digamma.default",
)  # fmt: skip

_DENSE = (
    "softmax.int",
    "_softmax.default",
    "log_softmax.int",
    "_log_softmax.default",
    "logsumexp.default",
    "rms_norm.default",
    "group_norm.default",
    "var.correction",
    "var.dim",
    "std.dim",
    "std.correction",
    "var_mean.correction",
    "linalg_vector_norm.default",
    "norm.ScalarOpt_dim",
    "prod.dim_int",
    "glu.default",
    "pow.Tensor_Tensor",
    "pow.Scalar",
    "atan2.default",
    "hypot.default",
    "logaddexp.default",
    "gru_cell.default",
    "lstm_cell.default",
    "rnn_tanh_cell.default",
    "rnn_relu_cell.default",
    "cumprod.default",
    "logcumsumexp.default",
    "logaddexp2.default",
    "xlogy.Tensor",
    "scatter_reduce.two",
    "linalg_inv.default",
    "linalg_det.default",
    "linalg_cholesky.default",
    "linalg_solve.default",
    "matrix_exp.default",
    "huber_loss.default",
    "smooth_l1_loss.default",
)

# (values, indices): the values are continuous and take entries of x, another choice of them where
# two are equal. As smooth edges they have no pattern that could be frozen; indices are refused.
_SORTED = (
    "topk.default", "sort.default", "sort.stable", "kthvalue.default", "median.dim",
    "cummax.default", "cummin.default", "msort.default",
)  # fmt: skip


def _recurrent_dropout(rate: int, train: int) -> Any:
    def refuse(args: tuple[Any, ...], kwargs: Any) -> str | None:
        if len(args) > train and args[rate] and args[train]:
            return "a recurrent layer with dropout draws random numbers: call model.eval() first"
        return None

    return refuse


def _instance_norm(args: tuple[Any, ...], kwargs: Any) -> str | None:
    if args[3] is not None and args[5]:
        return "instance-norm in training mode changes its statistics: call model.eval() first"
    return None


def _nearest(args: tuple[Any, ...], kwargs: Any) -> str | None:
    if args[2] != 1:
        return None
    return 'the nearest entry jumps with the grid: sample with mode="bilinear" or "bicubic"'


def _layer_norm(site: Site) -> Differential | None:
    name = site.name_at(0)
    if name is None or len(site.operands) != 1:
        return None
    weight, bias = site.argument(2, "weight"), site.argument(3, "bias")
    eps = site.argument(4, "eps", 1e-5)
    return LayerNorm(name, site.args[0], site.args[1], weight, bias, eps)


def _kinks_of_elu(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> CurvedGate | None:
    """Slope `scale` above 0, alpha · scale · rate · exp(rate · z) below."""
    given = dict(zip(("alpha", "scale", "input_scale"), args[1:], strict=False)) | dict(kwargs)
    alpha, scale, rate = (float(given.get(n, 1)) for n in ("alpha", "scale", "input_scale"))
    below = alpha * scale * rate
    if below == scale:
        return None

    def slope(z: Tensor) -> Tensor:
        return torch.where(z >= 0, scale, below * (rate * z.clamp_max(0)).exp())

    return CurvedGate((0.0,), (scale - below,), slope)


def _kink_of_selu(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> CurvedGate | None:
    return _kinks_of_elu((None, _SELU_ALPHA, _SELU_SCALE), {})


def _kinks_of_hardswish(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> CurvedGate | None:
    """z · clamp(z + 3, 0, 6) / 6."""

    def slope(z: Tensor) -> Tensor:
        middle = torch.where(z < 3, (2 * z + 3) / 6, torch.ones_like(z))
        return torch.where(z < -3, 0, middle)

    return CurvedGate((-3.0, 3.0), (-0.5, -0.5), slope)


_SELU_ALPHA, _SELU_SCALE = 1.6732632423543772848170429916717, 1.0507009873554804934193349852946

SMOOTH: dict[str, Rule] = {
    "aten.elu.default": Rule(Kind.SMOOTH, shortcut=pointwise, kinks=_kinks_of_elu),
    "aten.selu.default": Rule(Kind.SMOOTH, shortcut=pointwise, kinks=_kink_of_selu),
    "aten.hardswish.default": Rule(Kind.SMOOTH, shortcut=pointwise, kinks=_kinks_of_hardswish),
    **{f"aten.{name}": Rule(Kind.SMOOTH, shortcut=pointwise) for name in _POINTWISE},
    **{f"aten.{name}": Rule(Kind.SMOOTH) for name in (*_DENSE, *_SORTED)},
    "aten.grid_sampler.default": Rule(Kind.SMOOTH, linear_in=(0,), refuse=_nearest),
    "aten.layer_norm.default": Rule(Kind.SMOOTH, shortcut=_layer_norm),
    "aten.instance_norm.default": Rule(Kind.SMOOTH, refuse=_instance_norm),
    **{
        f"aten.{name}.input": Rule(Kind.SMOOTH, refuse=_recurrent_dropout(5, 6))
        for name in ("gru", "lstm", "rnn_tanh", "rnn_relu")
    },
}
