"""Arguments for rules that have no example network: operation → (args, kwargs).

Floating tensors are activations; `P(...)` marks one that is a parameter or a constant.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


def t(*shape: int) -> Tensor:
    """Positive numbers off every breakpoint."""
    count = torch.arange(1, 1 + torch.Size(shape).numel(), dtype=torch.float64)
    return (0.3 + (count * 0.6180339887) % 1.0 * 1.3).reshape(shape)


def s(*shape: int) -> Tensor:
    """Numbers of both signs."""
    return 2 * t(*shape) - 1.93


def P(*shape: int) -> nn.Parameter:
    return nn.Parameter(s(*shape), requires_grad=False)


def i(*values: int) -> Tensor:
    return torch.tensor(values)


MASK = torch.tensor([[True, False, True], [False, True, True]])
Call = tuple[tuple[Any, ...], Mapping[str, Any]]


def call(*args: Any, **kwargs: Any) -> Call:
    return args, kwargs


_UNARY = (
    "positive asinh atan celu cosh erf exp2 expm1 hardsigmoid hardswish log_sigmoid mish selu "
    "sinh square tan softshrink"
).split()

ARGUMENTS: dict[str, Call] = {
    **{f"aten.{name}.default": call(s(2, 3)) for name in _UNARY},
    **{
        f"aten.{name}.default": call(t(2, 3))
        for name in ("log1p", "log2", "log10", "reciprocal", "sinc", "lgamma", "digamma")
    },
    **{
        f"aten.{name}.default": call(0.3 * t(2, 3))
        for name in ("asin", "acos", "atanh", "erfc", "erfinv", "logit")
    },
    "aten.elu.default": call(s(2, 3), 2.0),
    "aten.acosh.default": call(1.5 + t(2, 3)),
    "aten.logcumsumexp.default": call(s(2, 4), 1),
    "aten.huber_loss.default": call(s(2, 3), t(2, 3), 0, 0.8),
    "aten.smooth_l1_loss.default": call(s(2, 3), t(2, 3), 0, 0.8),
    "aten.logaddexp2.default": call(s(2, 3), t(2, 3)),
    "aten.xlogy.Tensor": call(s(2, 3), t(2, 3)),
    "aten.linalg_inv.default": call(s(2, 3, 3)),
    "aten.linalg_det.default": call(s(2, 3, 3)),
    "aten.linalg_solve.default": call(s(2, 3, 3), t(2, 3, 2)),
    "aten.matrix_exp.default": call(s(2, 3, 3)),
    # values taken in an order
    "aten.topk.default": call(s(2, 5), 2),
    "aten.sort.default": call(s(2, 5), 1, True),
    "aten.sort.stable": call(s(2, 5), stable=True),
    "aten.kthvalue.default": call(s(2, 5), 2, 1),
    "aten.median.dim": call(s(2, 5), 1),
    "aten.cummax.default": call(s(2, 5), 1),
    "aten.cummin.default": call(s(2, 5), 1),
    "aten.msort.default": call(s(5, 2)),
    "aten.rrelu.default": call(s(2, 5), 0.1, 0.5),
    "aten.adaptive_max_pool1d.default": call(s(2, 2, 7), [3]),
    "aten.adaptive_max_pool3d.default": call(s(1, 2, 3, 4, 3), [2, 2, 1]),
    "aten.max_pool1d_with_indices.default": call(s(2, 2, 7), [3], [2]),
    "aten.max_pool2d_with_indices.default": call(s(1, 2, 5, 4), [2, 2]),
    "aten.max_pool3d_with_indices.default": call(s(1, 1, 3, 4, 4), [2, 2, 2]),
    "aten.scatter.value": call(s(2, 3), 1, torch.tensor([[0], [2]]), 2.0),
    "aten.grid_sampler.default": call(s(2, 1, 4, 4), 0.5 * s(2, 3, 2, 2), 0, 0, False),
    "aten.scatter_reduce.two": call(
        s(2, 3), 1, torch.tensor([[0, 0, 2], [2, 1, 2]]), t(2, 3), "amax"
    ),
    "aten._log_softmax.default": call(s(2, 3), -1, False),
    "aten._softmax.default": call(s(2, 3), -1, False),
    "aten.add.Scalar": call(s(2, 3), 2.0),
    "aten.sub.Scalar": call(s(2, 3), 2.0),
    "aten.rsub.Tensor": call(s(2, 3), t(2, 3)),
    "aten.addcdiv.default": call(s(2, 3), s(2, 3), t(2, 3)),
    "aten.addcmul.default": call(s(2, 3), s(2, 3), t(2, 3)),
    "aten.addmm.default": call(P(4), s(2, 3), P(3, 4)),
    "aten.baddbmm.default": call(s(2, 3, 4), s(2, 3, 2), s(2, 2, 4)),
    "aten.bilinear.default": call(s(2, 3), s(2, 4), P(2, 3, 4), P(2)),
    "aten.mm.default": call(s(2, 3), s(3, 4)),
    "aten.mv.default": call(s(2, 3), P(3)),
    "aten.outer.default": call(s(2), t(3)),
    "aten.einsum.default": call("bij,bjk->bik", [s(2, 3, 2), t(2, 2, 3)]),
    "aten.lerp.Scalar": call(s(2, 3), t(2, 3), 0.3),
    "aten.lerp.Tensor": call(s(2, 3), t(2, 3), P(3)),
    "aten.pow.Scalar": call(2.0, s(2, 3)),
    "aten.pow.Tensor_Tensor": call(t(2, 3), s(2, 3)),
    "aten.atan2.default": call(s(2, 3), t(2, 3)),
    "aten.logaddexp.default": call(s(2, 3), t(2, 3)),
    "aten.cosine_similarity.default": call(s(2, 3), t(2, 3), 1),
    "aten.scaled_dot_product_attention.default": call(
        s(2, 2, 3, 4), t(2, 2, 3, 4), s(2, 2, 3, 4), is_causal=True
    ),
    "aten.glu.default": call(s(2, 4), -1),
    "aten.cumprod.default": call(t(2, 3), 1),
    "aten.prod.dim_int": call(t(2, 3), 1),
    "aten.logsumexp.default": call(s(2, 3), [1]),
    "aten.linalg_vector_norm.default": call(s(2, 3), 2, [1]),
    "aten.norm.ScalarOpt_dim": call(s(2, 3), 2, [1]),
    "aten.std.correction": call(s(2, 3), [1]),
    "aten.std.dim": call(s(2, 3), [1]),
    "aten.var.correction": call(s(2, 3), [1]),
    "aten.var.dim": call(s(2, 3), [1]),
    "aten.var_mean.correction": call(s(2, 3), [1]),
    "aten.rms_norm.default": call(s(2, 3), [3], P(3), 1e-5),
    "aten.instance_norm.default": call(
        s(2, 3, 4), P(3), P(3), None, None, True, 0.1, 1e-5, False
    ),
    "aten.gru_cell.default": call(s(2, 3), s(2, 2), P(6, 3), P(6, 2), P(6), P(6)),
    "aten.lstm_cell.default": call(s(2, 3), [s(2, 2), t(2, 2)], P(8, 3), P(8, 2), P(8), P(8)),
    "aten.rnn_tanh_cell.default": call(s(2, 3), s(2, 2), P(2, 3), P(2, 2), P(2), P(2)),
    "aten.rnn_relu_cell.default": call(s(2, 3), s(2, 2), P(2, 3), P(2, 2), P(2), P(2)),
    **{
        f"aten.{name}.input": call(
            s(3, 2, 3), P(1, 2, 2), [P(2 * n, 3), P(2 * n, 2), P(2 * n), P(2 * n)],
            True, 1, 0.0, False, False, False,
        )
        for name, n in (("gru", 3), ("rnn_tanh", 1), ("rnn_relu", 1))
    },
    "aten.lstm.input": call(
        s(3, 2, 3), [P(1, 2, 2), P(1, 2, 2)], [P(8, 3), P(8, 2), P(8), P(8)],
        True, 1, 0.0, False, False, False,
    ),
    # gates
    "aten.clamp.default": call(s(2, 3), -0.5, 0.4),
    "aten.clamp_min.default": call(s(2, 3), 0.1),
    "aten.clamp_max.default": call(s(2, 3), 0.1),
    "aten.threshold.default": call(s(2, 3), 0.0, 0.0),
    "aten.prelu.default": call(s(2, 3, 2), P(3)),
    "aten.amax.default": call(s(2, 3), [1]),
    "aten.hypot.default": call(s(2, 3), t(2, 3)),
    "aten.nan_to_num.default": call(s(2, 3)),
    "aten.rot90.default": call(s(2, 3, 3), 1, [1, 2]),
    "aten.amin.default": call(s(2, 3), [-1], True),
    # affine
    "aten.embedding.default": call(s(5, 3), i(1, 4, 1)),
    "aten.convolution.default": call(
        s(2, 2, 5), P(4, 1, 3), None, [2], [1], [1], False, [0], 2
    ),
    "aten._native_batch_norm_legit_no_training.default": call(
        s(2, 3, 4), P(3), P(3), P(3), nn.Parameter(t(3), requires_grad=False), 0.1, 1e-5
    ),
    "aten.conv3d.padding": call(s(1, 2, 3, 3, 3), P(2, 2, 2, 2, 2), None, [1] * 3, "same"),
    "aten.conv_transpose1d.default": call(s(2, 2, 4), P(2, 3, 2), P(3), [2], [1], [1], 1, [1]),
    "aten.conv_transpose2d.input": call(
        s(2, 2, 3, 3), P(2, 3, 2, 2), P(3), [2, 1], [1, 0], [1, 0], 1, [2, 1]
    ),
    "aten.conv_transpose3d.input": call(s(1, 2, 2, 2, 2), P(2, 1, 2, 2, 2), None, [2, 2, 2]),
    "aten.avg_pool3d.default": call(s(1, 1, 4, 4, 4), [2, 2, 2]),
    "aten.adaptive_avg_pool3d.default": call(s(1, 1, 4, 4, 4), [2, 2, 2]),
    "aten.masked_fill.Scalar": call(s(2, 3), MASK, 0.5),
    "aten.mean.default": call(s(2, 3)),
    "aten.sum.default": call(s(2, 3)),
    "aten.cumsum.default": call(s(2, 3), 1),
    "aten.diff.default": call(s(2, 3)),
    "aten.tril.default": call(s(3, 3)),
    "aten.triu.default": call(s(3, 3), 1),
    "aten.reflection_pad1d.default": call(s(2, 2, 4), [1, 2]),
    "aten.reflection_pad2d.default": call(s(2, 2, 4, 4), [1, 2, 1, 1]),
    "aten.replication_pad1d.default": call(s(2, 2, 4), [1, 2]),
    "aten.replication_pad2d.default": call(s(2, 2, 4, 4), [1, 2, 1, 1]),
    "aten.upsample_nearest1d.vec": call(s(2, 2, 3), None, [2.0]),
    "aten.upsample_nearest2d.vec": call(s(2, 2, 3, 3), None, [2.0, 2.0]),
    "aten.upsample_nearest2d.default": call(s(2, 2, 3, 3), [5, 5]),
    "aten.upsample_nearest3d.vec": call(s(1, 1, 2, 2, 2), None, [2.0, 2.0, 2.0]),
    "aten.upsample_linear1d.vec": call(s(2, 2, 3), None, False, [2.0]),
    "aten.upsample_bilinear2d.vec": call(s(2, 2, 3, 3), None, False, [2.0, 2.0]),
    "aten.upsample_bilinear2d.default": call(s(2, 2, 3, 3), [5, 5], True),
    "aten._upsample_bilinear2d_aa.default": call(s(2, 2, 4, 4), [2, 2], False),
    "aten.upsample_bicubic2d.vec": call(s(2, 2, 3, 3), None, False, [2.0, 2.0]),
    "aten.upsample_trilinear3d.vec": call(s(1, 1, 2, 2, 2), None, False, [2.0, 2.0, 2.0]),
    "aten.col2im.default": call(s(2, 8, 4), [4, 4], [2, 2], [1, 1], [0, 0], [2, 2]),
    # joins that are affine in all activations together
    "aten.where.self": call(MASK, s(2, 3), t(2, 3)),
    "aten.where.ScalarSelf": call(MASK, 0.5, t(2, 3)),
    "aten.where.ScalarOther": call(MASK, t(2, 3), 0.5),
    "aten.masked_fill.Tensor": call(s(2, 3), MASK, torch.tensor(0.5, dtype=torch.float64)),
    "aten.masked_scatter.default": call(s(2, 3), MASK, t(2, 3)),
    "aten.index_put.default": call(s(2, 3), [i(0, 1)], t(2, 3)),
    "aten.index_add.default": call(s(2, 3), 1, i(0, 2), t(2, 2)),
    "aten.index_copy.default": call(s(2, 3), 1, i(0, 2), t(2, 2)),
    "aten.scatter.src": call(s(2, 3), 1, torch.tensor([[0], [2]]), t(2, 1)),
    "aten.scatter_add.default": call(s(2, 3), 1, torch.tensor([[0], [2]]), t(2, 1)),
    "aten.slice_scatter.default": call(s(2, 3), t(2, 2), 1, 0, 2),
    "aten.select_scatter.default": call(s(2, 3), t(2), 1, 1),
    "aten.diagonal_scatter.default": call(s(3, 3), t(3)),
    "aten.copy.default": call(s(2, 3), t(3)),
    # relabellings
    "aten.broadcast_to.default": call(s(2, 1), [2, 3]),
    "aten.atleast_1d.default": call(s(2, 3)),
    "aten.channel_shuffle.default": call(s(2, 4, 2, 2), 2),
    "aten.diagonal.default": call(s(2, 3, 3), 0, 1, 2),
    "aten.expand_as.default": call(s(2, 1), P(2, 3)),
    "aten.flip.default": call(s(2, 3), [1]),
    "aten.gather.default": call(s(2, 3), 1, torch.tensor([[0, 2], [1, 1]])),
    "aten.take_along_dim.default": call(s(2, 3), torch.tensor([[0, 2], [1, 1]]), 1),
    "aten.im2col.default": call(s(2, 2, 4, 4), [2, 2], [1, 1], [0, 0], [2, 2]),
    "aten.index.Tensor": call(s(2, 3), [None, i(2, 0)]),
    "aten.index_select.default": call(s(2, 3), 1, i(2, 0)),
    "aten.lift_fresh_copy.default": call(s(2, 3)),
    "aten.mT.default": call(s(2, 3, 4)),
    "aten.movedim.intlist": call(s(2, 3, 4), [0, 1], [1, 0]),
    "aten.narrow.default": call(s(2, 3), 1, 1, 2),
    "aten.pixel_shuffle.default": call(s(2, 4, 2, 2), 2),
    "aten.pixel_unshuffle.default": call(s(2, 1, 4, 4), 2),
    "aten.repeat.default": call(s(2, 3), [1, 2]),
    "aten.repeat_interleave.self_int": call(s(2, 3), 2, 1),
    "aten.reshape_as.default": call(s(2, 3), P(3, 2)),
    "aten.view_as.default": call(s(2, 3), P(3, 2)),
    "aten.roll.default": call(s(2, 3), [1], [1]),
    "aten.split.sizes": call(s(2, 3), [1, 2], 1),
    "aten.swapaxes.default": call(s(2, 3, 4), 1, 2),
    "aten.tensor_split.sections": call(s(2, 4), 2, 1),
    "aten.tile.default": call(s(2, 3), [1, 2]),
    "aten.to.device": call(s(2, 3), "cpu", torch.float64),
    "aten.to.dtype_layout": call(s(2, 3), dtype=torch.float64),
    "aten.to.other": call(s(2, 3), P(1)),
    "aten.type_as.default": call(s(2, 3), P(1)),
    "aten.unfold.default": call(s(2, 6), 1, 3, 2),
    "aten.unsafe_chunk.default": call(s(2, 4), 2, 1),
    "aten.unsafe_split.Tensor": call(s(2, 4), 2, 1),
    **{
        f"aten.{name}.default": call(s(2, 3), 0.5, False)
        for name in ("alpha_dropout", "feature_alpha_dropout")
    },
    # of the shape alone
    "aten.zeros_like.default": call(s(2, 3)),
    "aten.ones_like.default": call(s(2, 3)),
    "aten.full_like.default": call(s(2, 3), 2.0),
    "aten.new_zeros.default": call(s(2, 3), [2]),
    "aten.new_ones.default": call(s(2, 3), [2]),
    "aten.new_full.default": call(s(2, 3), [2], 2.0),
}  # fmt: skip
