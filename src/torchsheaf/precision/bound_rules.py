"""How far a kernel's result can move when its operands move by at most E, kernel by kernel.

Every rule takes operand values x and bounds E (float64, elementwise) and returns (P, S): P bounds
|f(x̂) − f(x)| for every x̂ with |x̂ − x| ≤ E; S is the sum of absolute terms that the kernel
accumulates, on which its internal float32 rounding acts (0 where it does not accumulate). An
infinite E stands for a number that may have overflowed, to ±∞ or NaN: then P is infinite too.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from torchsheaf.precision.norm_rules import Bound, group_norm, instance_norm, layer_norm
from torchsheaf.precision.operators import CONTRACTION

Rule = Callable[..., tuple[Tensor, Tensor]]


def _value(pair: Any) -> Any:
    return pair[0] if isinstance(pair, tuple) else pair


def _bound(pair: Any) -> Any:
    return pair[1] if isinstance(pair, tuple) else 0.0


def _zero(x: Tensor) -> Tensor:
    return torch.zeros_like(x)


def _minus(total: Tensor, part: Tensor) -> Tensor:
    """total − part for non-negative sums, rounded upward; infinite where the total is."""
    difference = total - part + 4e-16 * total
    return torch.nan_to_num(difference, nan=math.inf, posinf=math.inf).clamp_min(0.0)


def multilinear(call: Callable[..., Any]) -> Rule:
    """Sums of products of operands: S = K(|A| + E_A, |B| + E_B, …), P = S − K(|A|, |B|, …).

    The factors alpha and beta of the terms count with their absolute values.
    """

    def rule(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        sizes = [a[0].abs() if isinstance(a, tuple) else a for a in args]
        most = [a[0].abs() + a[1] if isinstance(a, tuple) else a for a in args]
        factors = {k: abs(v) if k in ("alpha", "beta") else v for k, v in kwargs.items()}
        total = call(*most, **factors)
        return _minus(total, call(*sizes, **factors)), total

    return rule


def summing(call: Callable[..., Tensor]) -> Rule:
    """Sums and means of one or several operands: S = |K(|A| + E_A, …)|, P = |K(E_A, …)|.

    The sums themselves are negative where the divisor of a pool is.
    """

    def rule(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        moved = [a[1] if isinstance(a, tuple) else a for a in args]
        terms = [a[0].abs() + a[1] if isinstance(a, tuple) else a for a in args]
        return call(*moved, **kwargs).abs(), call(*terms, **kwargs).abs()

    return rule


def monotone(f: Callable[..., Tensor], low: float = -math.inf, strict: bool = False) -> Rule:
    """Increasing or decreasing functions: the ends of the interval; infinite past the domain."""

    def rule(x: Bound, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        y, below = f(x[0], *args, **kwargs), x[0] - x[1]
        outside = below <= low if strict else torch.zeros_like(below, dtype=torch.bool)
        left = (f(below.clamp_min(low), *args, **kwargs) - y).abs()
        right = (f(x[0] + x[1], *args, **kwargs) - y).abs()
        worst = torch.maximum(left, right)
        worst = torch.where((outside & (x[1] > 0)) | torch.isinf(x[1]), math.inf, worst)
        return torch.where(x[1] == 0, 0.0, torch.nan_to_num(worst, nan=math.inf)), _zero(y)

    return rule


def lipschitz(constant: float) -> Rule:
    """|f(x̂) − f(x)| ≤ constant·E."""

    def rule(x: Bound, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return constant * x[1], _zero(x[1])

    return rule


def leaky(x: Bound, slope: float = 0.01) -> tuple[Tensor, Tensor]:
    """Leaky ReLU."""
    return max(1.0, abs(slope)) * x[1], _zero(x[1])


def softplus(x: Bound, beta: float = 1.0, threshold: float = 20.0) -> tuple[Tensor, Tensor]:
    """log(1 + e^βx)/β up to βx = threshold, where it jumps to x."""
    jump = math.log1p(math.exp(-threshold)) / abs(beta)
    near = (beta * x[0] - threshold).abs() <= abs(beta) * x[1]
    return x[1] + torch.where(near & (x[1] > 0), jump, 0.0), _zero(x[1])


def clamping(x: Bound, *limits: Any) -> tuple[Tensor, Tensor]:
    """A number, or the limit that it is beyond: as far as the one of them that moves most."""
    bound = x[1]
    for limit in limits:
        bound = torch.maximum(bound, torch.as_tensor(_bound(limit), dtype=bound.dtype))
    return bound, _zero(bound)


def elu(x: Bound, alpha: float = 1.0, scale: float = 1.0, inner: float = 1.0) -> Any:
    """ELU."""
    return max(1.0, abs(alpha * inner)) * abs(scale) * x[1], _zero(x[1])


def addition(a: Any, b: Any, alpha: Any = 1.0) -> tuple[Tensor, Tensor]:
    """a ± alpha·b."""
    bound = _bound(a) + abs(_value(alpha)) * _bound(b)
    bound = bound + _bound(alpha) * (abs(_value(b)) + _bound(b))
    shape = torch.broadcast_shapes(*(p[0].shape for p in (a, b) if isinstance(p, tuple)))
    bound = torch.as_tensor(bound, dtype=torch.float64).expand(shape)
    return bound, _zero(bound)


def product(a: Any, b: Any) -> tuple[Tensor, Tensor]:
    """a·b."""
    x, y = (torch.as_tensor(_value(p), dtype=torch.float64).abs() for p in (a, b))
    bound = x * _bound(b) + y * _bound(a) + _bound(a) * _bound(b)
    bound = torch.as_tensor(bound, dtype=torch.float64)
    return torch.nan_to_num(bound, nan=math.inf, posinf=math.inf), _zero(bound)


def quotient(a: Any, b: Any, rounding_mode: str | None = None) -> tuple[Tensor, Tensor]:
    """a/b; infinite where the divisor's interval reaches 0, and where the result is rounded to a
    whole number.
    """
    x, y = (torch.as_tensor(_value(p), dtype=torch.float64).abs() for p in (a, b))
    floor = y - _bound(b)
    bound = (_bound(a) * y + x * _bound(b)) / (y * floor)
    certain = torch.as_tensor(floor > 0) & (rounding_mode is None)
    bound = torch.where(certain, bound, math.inf)
    return torch.nan_to_num(bound, nan=math.inf), _zero(bound)


def power(x: Any, exponent: Any) -> tuple[Tensor, Tensor]:
    """x^p: binomial growth for a whole number p ≥ 1; otherwise the corners of the box where no
    x̂ is below 0, as p·ln x is linear in either; infinite elsewhere, and at 0 unless all p̂ > 0.
    """
    p = _value(exponent)
    if not isinstance(exponent, tuple) and float(p).is_integer() and p >= 1:
        size = x[0].abs()
        return _minus((size + x[1]) ** p, size**p), _zero(x[0])
    if not isinstance(exponent, tuple):
        return monotone(lambda t: t**p, 0.0, strict=p < 0)(x)
    base, p = (torch.as_tensor(v, dtype=torch.float64) for v in (_value(x), p))
    e, ep = (torch.as_tensor(_bound(v), dtype=torch.float64) for v in (x, exponent))
    y = base**p
    corners = [((base + s * e) ** (p + t * ep) - y).abs() for s in (1, -1) for t in (1, -1)]
    worst = torch.nan_to_num(torch.stack(corners).amax(0), nan=math.inf)
    outside = (base < e) | ((base == e) & (p <= ep)) | torch.isinf(e) | torch.isinf(ep)
    worst = torch.where(outside, math.inf, worst)
    return torch.where((e == 0) & (ep == 0), 0.0, worst), _zero(y)


def reciprocal(x: Bound) -> tuple[Tensor, Tensor]:
    """1/x."""
    return quotient(1.0, x)


def _others(x: Tensor, dim: int) -> Tensor:
    """Σ_{j≠i} x_j for x ≥ 0, without cancellation: what precedes i and what follows it."""
    before = x.cumsum(dim).roll(1, dim)
    after = x.flip(dim).cumsum(dim).roll(1, dim).flip(dim)
    before.select(dim, 0).zero_()
    after.select(dim, -1).zero_()
    return before + after


def softmax(x: Bound, dim: int, half: bool = False) -> tuple[Tensor, Tensor]:
    """The largest and smallest value that softmax can take on the box, coordinate by coordinate.

    S carries y·(|x − max x| + E): the float32 rounding of the exponent's argument.
    """
    value, e = x
    if value.ndim == 0:
        bound, inside = softmax((value[None], e[None]), 0)
        return bound[0], inside[0]
    top = value.amax(dim, keepdim=True)
    weight = torch.exp(value - top)
    y = weight / weight.sum(dim, keepdim=True)
    # With the other coordinates moved against i: s e^{±2E}-like growth, but never past 1 or 0.
    up, down = torch.exp(value - top + e), torch.exp(value - top - e)
    rest_down, rest_up = _others(down, dim), _others(up, dim)
    highest = torch.where(up + rest_down > 0, up / (up + rest_down), 1.0)
    lowest = torch.where(down + rest_up > 0, down / (down + rest_up), 0.0)
    bound = torch.maximum(highest - y, y - lowest).clamp(0.0, 1.0) + 1e-15 * value.shape[dim]
    bound = torch.nan_to_num(bound, nan=1.0)
    bound = torch.where(torch.isinf(e).any(dim, keepdim=True), math.inf, bound)
    reach = torch.nan_to_num((value - top).abs(), posinf=0.0) + torch.nan_to_num(e, posinf=1e3)
    # What underflows to 0 however the operands move has no exponent to round.
    return bound, torch.where(highest == 0, 0.0, (y + bound) * (reach + 4.0))


def log_softmax(x: Bound, dim: int, half: bool = False) -> tuple[Tensor, Tensor]:
    """x_i − log Σ e^x moves by at most E_i + max E."""
    bound = x[1] + x[1].amax(dim, keepdim=True)
    reach = (x[0] - x[0].amax(dim, keepdim=True)).abs()
    return bound, torch.nan_to_num(reach, posinf=0.0) + bound + 4.0


def batch_norm(
    x: Bound, weight: Any, bias: Any, mean: Bound, var: Bound, momentum: float, eps: float
) -> tuple[Tensor, Tensor]:
    """(x − m)·s·w + b with s = (var + eps)^−½ from the (rounded) running statistics."""
    shape = [1, -1] + [1] * (x[0].ndim - 2)
    s = (var[0] + eps).rsqrt()
    es = torch.maximum(
        ((var[0] - var[1]).clamp_min(0.0) + eps).rsqrt() - s,
        s - (var[0] + var[1] + eps).rsqrt(),
    )
    one = torch.ones_like(s)
    w, ew = (weight[0], weight[1]) if weight is not None else (one, 0.0 * one)
    gain, most = (s * w.abs()).view(shape), ((s + es) * (w.abs() + ew)).view(shape)
    centred = (x[0] - mean[0].view(shape)).abs()
    reach = centred + x[1] + mean[1].view(shape)
    bound = _minus(reach * most, centred * gain)
    total = (x[0].abs() + x[1] + (mean[0].abs() + mean[1]).view(shape)) * most
    if bias is not None:
        bound = bound + bias[1].view(shape)
        total = total + (bias[0].abs() + bias[1]).view(shape)
    return bound, total


def angle(y: Bound, x: Bound) -> tuple[Tensor, Tensor]:
    """atan2: a point at distance r that moves by ρ < r turns by asin(ρ/r), unless it may cross
    the negative x axis, where the angle jumps by 2π.
    """
    r = torch.hypot(y[0], x[0])
    rho = torch.hypot(y[1], x[1])
    turn = torch.where(rho < r, torch.asin((rho / r).clamp_max(1.0)), 2 * math.pi)
    jumps = (y[0].abs() <= y[1]) & (y[1] > 0) & (x[0] - x[1] <= 0)
    turn = torch.where(jumps, 2 * math.pi, torch.nan_to_num(turn, nan=2 * math.pi))
    return torch.where(rho == 0, 0.0, turn), _zero(turn)


def interpolation(call: Callable[..., Tensor]) -> Rule:
    """Means of neighbours with weights that are differences of positions up to H and W.

    The positions are rounded, so that a weight errs by some H (or W) units in absolute terms, and
    a neighbour of weight 0 counts too.
    """

    def rule(x: Bound, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        moved = call(x[1], *args, **kwargs)
        top = (x[0].abs() + x[1]).amax((-2, -1), keepdim=True)
        return moved, (2.0 * sum(x[0].shape[-2:]) * top).expand_as(moved)

    return rule


def bag(call: Callable[..., Any]) -> Rule:
    """Embedding bags: sums (0), means (1) or maxima (2), or sums with a weight per entry."""
    products = multilinear(lambda *args, **kwargs: call(*args, **kwargs)[0])

    def rule(table: Bound, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        bound, total = products(table, *args, **kwargs)
        if len(args) > 3 and args[3] == 2:
            return table[1].amax(0).expand_as(total).clone(), _zero(total)
        return bound, total

    return rule


def rule_of(packet: str, call: Callable[..., Any]) -> Rule | None:
    """The rule of an operator, made for the very overload where it needs one; None without one."""
    made = _BY_CALL.get(packet)
    return RULES.get(packet) if made is None else made(call)


_BY_CALL: dict[str, Callable[[Callable[..., Any]], Rule]] = {
    **dict.fromkeys([*sorted(CONTRACTION), "_trilinear", "cumprod"], multilinear),
    **dict.fromkeys(["mean", "sum", "cumsum", "scatter_add", "index_put"], summing),
    **dict.fromkeys(["avg_pool1d", "avg_pool2d", "avg_pool3d"], summing),
    **dict.fromkeys(["_adaptive_avg_pool2d", "_adaptive_avg_pool3d"], summing),
    "upsample_bilinear2d": interpolation,
    "_embedding_bag": bag,
}
RULES: dict[str, Rule] = {
    "add": addition,
    "sub": addition,
    "rsub": addition,
    "mul": product,
    "div": quotient,
    "reciprocal": reciprocal,
    "square": lambda x: power(x, 2),
    "pow": power,
    "exp": monotone(torch.exp),
    "exp2": monotone(torch.exp2),
    "expm1": monotone(torch.expm1),
    "log": monotone(torch.log, 0.0, strict=True),
    "log2": monotone(torch.log2, 0.0, strict=True),
    "log10": monotone(torch.log10, 0.0, strict=True),
    "log1p": monotone(torch.log1p, -1.0, strict=True),
    "sqrt": monotone(torch.sqrt, 0.0),
    "rsqrt": monotone(torch.rsqrt, 0.0, strict=True),
    "tanh": monotone(torch.tanh),
    "sigmoid": monotone(torch.sigmoid),
    "erf": monotone(torch.erf),
    "atan": monotone(torch.atan),
    "softplus": softplus,
    "sin": lipschitz(1.0),
    "cos": lipschitz(1.0),
    "gelu": lipschitz(1.13),
    "silu": lipschitz(1.1),
    "mish": lipschitz(1.1),
    "elu": elu,
    "leaky_relu": leaky,
    "hardtanh": lipschitz(1.0),
    "clamp": clamping,
    "hardswish": lipschitz(1.5),
    "hardsigmoid": lipschitz(0.17),
    "_to_copy": lipschitz(1.0),
    "_softmax": softmax,
    "_log_softmax": log_softmax,
    "native_layer_norm": layer_norm,
    "native_group_norm": group_norm,
    "_native_batch_norm_legit_no_training": batch_norm,
    "_native_batch_norm_legit": instance_norm,
    "atan2": angle,
    "copy": lambda held, given: (_zero(held[0]), _zero(held[0])),
}
