"""What each kernel does to an error: its kind, its arithmetic work and its rounding model."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from torchsheaf.network.aten import AtenCall, AtenGraph
from torchsheaf.network.errors import Offender, UnsupportedModel
from torchsheaf.precision.formats import Format

# Exact and one floating operand: the result is on the grid of the operand.
STRUCTURAL = set(
    """view permute transpose t reshape _unsafe_view expand slice select squeeze unsqueeze clone
    alias detach getitem relu max_pool2d_with_indices max_pool1d max_pool2d neg abs split
    split_with_sizes unbind chunk amax amin flip repeat roll contiguous as_strided diagonal unfold
    im2col lift_fresh_copy max min pixel_shuffle tril triu constant_pad_nd upsample_nearest2d
    topk sort max_pool3d_with_indices adaptive_max_pool1d adaptive_max_pool2d
    adaptive_max_pool3d""".split()
)
# Exact, several operands: they must agree on a format, and that format is a choice.
SELECT = set(
    """cat where embedding index gather stack maximum minimum index_select masked_fill
    index_put scatter slice_scatter select_scatter copy""".split()
)
CONTRACTION = {"mm", "addmm", "bmm", "baddbmm", "convolution", "mv", "dot", "linear", "matmul"}


@dataclass(frozen=True, slots=True)
class KernelModel:
    """|fl(f(x)) − f(x)| ≤ c·u·|f(x)| + δ, with u the unit roundoff of the format.

    narrow, wide: c for 16 bits and fewer, where the kernel computes in float32 and rounds once,
    and for float32 and float64. floor16, floor32: δ beyond the half subnormal spacing, found by
    enumerating all inputs; floor_units: a part of δ in units of u, where an intermediate sum is
    kept in the format. Reductions take `wide` per accumulated term instead. gain: an intermediate
    of the kernel is that much larger than its operands, and overflows that much earlier. stepwise:
    every partial sum may be rounded to the format, not only the last. drifts: on CPUs every one is,
    so that the estimate counts them all.
    """

    narrow: float = 1.01
    wide: float = 1.01
    floor16: float = 0.0
    floor32: float = 0.0
    floor_units: float = 0.0
    gain: float = 1.0
    accumulates: bool = False
    stepwise: bool = False
    drifts: bool = False

    def relative(self, form: Format, terms: int = 1) -> float:
        """c for this format; `terms` is the length of the sum that the kernel accumulates.

        A kernel that accumulates n terms in float32 adds n·u₃₂ at most, in any order of summation.
        """
        if form.result.bits >= 24:
            return self.wide + (1.01 * terms if self.accumulates else 0.0)
        inner = 1.01 * terms * 2.0**-24 / form.unit if self.accumulates else 0.0
        return self.narrow + inner

    def local(self, form: Format, terms: int, size: Tensor, inside: Tensor) -> Tensor:
        """c·u·size + γₙ·inside + δ: the kernel's own error.

        size ≥ |f(x)|; inside: the sum of absolute terms that the kernel accumulates. γₙ = nv/(1−nv)
        for n = terms + 8 roundings in float32 (float64 for fp64), or in the format, stepwise.
        """
        narrow = form.result.bits < 24
        inner = 2.0**-24 if form.result.bits <= 24 else 2.0**-53
        if self.stepwise and not form.is_emulated:
            inner = form.unit
        steps = (terms + 8.0) * inner
        gamma = steps / (1.0 - steps) if steps < 1.0 else math.inf
        own = (self.narrow if narrow else self.wide) * form.result.unit * size + self.floor(form)
        # Where nothing is accumulated there is nothing to round, however many steps there are.
        return own + torch.where(inside == 0, 0.0, gamma * inside)

    def floor(self, form: Format) -> float:
        """δ for this format."""
        extra = self.floor32 if form.result.bits >= 24 else self.floor16
        if form.result.bits > 24:
            extra *= 2.0**-29
        return form.result.spacing / 2 + extra + self.floor_units * form.result.unit


_EXACT_ROUNDING = KernelModel()
_ACCUMULATES = KernelModel(accumulates=True, wide=4.0)
_STEPWISE = KernelModel(narrow=2.02, wide=4.0, accumulates=True, stepwise=True)
_DRIFTS = replace(_STEPWISE, drifts=True)
# Every number below was found by `torchsheaf precision conformance`: all 65,536 inputs per format.
MODELS: dict[str, KernelModel] = {
    **dict.fromkeys(["add", "sub", "mul", "div"], _EXACT_ROUNDING),
    **dict.fromkeys(["_to_copy", "round", "floor", "ceil", "trunc", "sign"], _EXACT_ROUNDING),
    **dict.fromkeys(["clamp", "hardtanh", "fill", "rsub"], _EXACT_ROUNDING),
    # The vectorised float32 square root is not correctly rounded on every machine.
    **dict.fromkeys(["sqrt", "reciprocal", "leaky_relu"], KernelModel(wide=2.02)),
    "square": _EXACT_ROUNDING,
    "rsqrt": KernelModel(narrow=1.51, wide=3.0),
    **dict.fromkeys(["exp", "exp2", "expm1", "tanh", "atan", "atan2"], KernelModel(wide=4.0)),
    **dict.fromkeys(["log", "log2", "log10", "log1p"], KernelModel(wide=4.0)),
    **dict.fromkeys(["sin", "cos"], KernelModel(wide=4.0)),
    "erf": KernelModel(wide=4.0, floor16=3e-7, floor32=3e-7),
    "sigmoid": KernelModel(wide=4.0, floor16=1.2e-38, floor32=1.2e-38),
    "silu": KernelModel(wide=6.0, floor16=2.0e-36, floor32=2.0e-36),
    "gelu": KernelModel(wide=8.0, floor16=2.0e-6, floor32=2.0e-6, gain=2.0),
    "mish": KernelModel(narrow=1.1, wide=32.0, floor16=2e-36, floor32=2e-36),
    "softplus": KernelModel(wide=8.0, floor16=1e-44, floor32=1e-44),
    "elu": KernelModel(wide=8.0, floor16=1e-7, floor32=1e-7),
    "hardswish": KernelModel(wide=6.0, gain=6.0),
    "hardsigmoid": KernelModel(wide=6.0, floor32=1e-7, floor16=1e-7),
    # x³ is two products, each rounded to the format.
    "pow": KernelModel(narrow=2.02, wide=8.0),
    "_softmax": KernelModel(wide=16.0, accumulates=True),
    # The sum of exponentials and its logarithm are kept in the format: absolute errors of u.
    "_log_softmax": KernelModel(narrow=2.02, wide=16.0, accumulates=True, floor_units=2.02),
    "native_layer_norm": KernelModel(wide=16.0, accumulates=True, floor16=2e-6, floor32=2e-6),
    "native_group_norm": KernelModel(wide=16.0, accumulates=True, floor16=2e-6, floor32=2e-6),
    "_native_batch_norm_legit_no_training": KernelModel(narrow=2.1, wide=8.0),
    "_native_batch_norm_legit": KernelModel(
        narrow=2.1, wide=16.0, accumulates=True, stepwise=True, floor16=2e-6, floor32=2e-6
    ),
    **dict.fromkeys(["mean", "sum", "cumsum", "cumprod", "prod"], _ACCUMULATES),
    **dict.fromkeys(["var", "var_mean"], _ACCUMULATES),
    **dict.fromkeys(["avg_pool3d", "upsample_bilinear2d"], _ACCUMULATES),
    **dict.fromkeys(["avg_pool2d", "avg_pool1d", "_adaptive_avg_pool2d"], _ACCUMULATES),
    **dict.fromkeys(["_embedding_bag", "_trilinear"], _STEPWISE),
    "_adaptive_avg_pool3d": _DRIFTS,
    **dict.fromkeys(["_adaptive_avg_pool2d_backward", "linalg_vector_norm"], _ACCUMULATES),
    **dict.fromkeys(sorted(CONTRACTION), _ACCUMULATES),
    **dict.fromkeys(sorted(SELECT), KernelModel(narrow=0.0, wide=0.0)),
    # The others only move numbers; this one adds where it is told to accumulate.
    "scatter_add": _STEPWISE,
    "index_put": _DRIFTS,
}


_ALONG = {"_softmax", "_log_softmax", "cumsum", "cumprod"}
_NORMALISING = {"_softmax", "_log_softmax", "native_layer_norm", "native_group_norm"}
_NORMALISING |= {"_native_batch_norm_legit"}


def model_of(c: AtenCall) -> KernelModel:
    """The model of a call's kernel, with what depends on its arguments."""
    model = MODELS[c.packet]
    if c.packet == "_softmax" and c.shape and c.args[1] % len(c.shape) < len(c.shape) - 1:
        # Along any other axis than the last the exponentials are rounded to the format too, those
        # below its normal range by half its spacing.
        return replace(model, narrow=2.02, floor16=3.1e-8)
    return model


def kind_of(c: AtenCall) -> str:
    """`rounding`, `select`, `structural` (exact, one operand) or `discrete` (not floating)."""
    if c.dtype is not None and c.dtype.is_complex:
        return "unknown"
    if not c.is_floating:
        return "discrete"
    if c.packet == "index_put" and len(c.args) > 3 and c.args[3]:
        return "rounding"
    if c.packet == "_native_batch_norm_legit" and c.target.endswith("default"):
        return "unknown"  # moves running statistics: training
    if c.packet in SELECT:
        return "select"
    if c.packet in STRUCTURAL:
        return "structural"
    if c.packet == "_to_copy":
        return "cast"
    return "rounding" if c.packet in MODELS else "unknown"


def refuse_unknown(graph: AtenGraph) -> None:
    """`UnsupportedModel` with every floating kernel that has no error model."""
    found = [
        Offender(c.name, c.module, c.source, f"no rounding model for {c.target}")
        for c in graph.calls
        if kind_of(c) == "unknown"
    ]
    if found:
        raise UnsupportedModel("these kernels have no rounding model", found)


def terms_of(c: AtenCall, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Length of the longest sum that the kernel accumulates for one number of its result."""
    names = [n for n in c.operands if n in shapes]
    size = math.prod(c.shape or (1,))
    if c.packet == "addmm":
        return shapes[c.operands[1]][-1] + 1 if len(c.operands) > 1 else 1
    if c.packet in {"mm", "bmm", "mv", "dot", "matmul", "linear", "baddbmm"}:
        first = c.operands[1 if c.packet == "baddbmm" else 0]
        return shapes[first][-1]
    if c.packet == "convolution":
        return math.prod(shapes[c.operands[1]][1:]) + 1
    if c.packet in _ALONG:
        return shapes[c.operands[0]][c.args[1]] if shapes[c.operands[0]] else 1
    if c.packet == "native_layer_norm":
        return math.prod(c.args[1])
    if c.packet == "native_group_norm":
        return math.prod(c.args[4:6]) // c.args[6]
    if c.packet == "_native_batch_norm_legit":
        return size // max(1, shapes[c.operands[0]][1])
    if c.packet in {"scatter_add", "index_put"}:  # all of them may go to one place
        return math.prod(shapes[c.operands[-1]]) + 1
    if c.packet == "_embedding_bag":
        return math.prod(shapes[c.operands[1]]) + 1
    if c.packet == "_trilinear":
        return math.prod(shapes[c.operands[1]][1:]) + 3
    if MODELS.get(c.packet, _EXACT_ROUNDING).accumulates and names:
        return max(1, round(math.prod(shapes[names[0]]) / max(1, size)))
    return 1


def usual_terms_of(c: AtenCall, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """`terms_of`, but where an index says what goes where, the mean over the places.

    1 for what divides a row by a sum over it: that sum errs by less than the row's own roundings.
    """
    if c.packet in {"scatter_add", "index_put"}:
        given = math.prod(shapes[c.operands[-1]])
        return max(1, round(given / max(1, math.prod(c.shape or (1,)))))
    if c.packet in _NORMALISING:
        return 1
    return terms_of(c, shapes)


def flops_of(c: AtenCall, shapes: Mapping[str, tuple[int, ...]]) -> tuple[float, float]:
    """(multiply-adds counted as two flops, elementwise operations) of one call."""
    size = float(math.prod(c.shape or ()))
    if c.packet in CONTRACTION:
        return 2.0 * size * terms_of(c, shapes), 0.0
    biggest = max((math.prod(shapes[n]) for n in c.operands if n in shapes), default=0)
    if c.packet == "embedding" or c.packet in SELECT:
        return 0.0, 0.0
    return 0.0, float(max(size, biggest))
