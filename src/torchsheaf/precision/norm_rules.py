"""Bounds for layer, group and instance normalisation: rules as those of `bound_rules`."""

import math
from typing import Any

import torch
from torch import Tensor

Bound = tuple[Any, Any]  # (value, bound); numbers have bound 0


def layer_norm(
    x: Bound, shape: list[int], weight: Any, bias: Any, eps: float
) -> tuple[Tensor, Tensor]:
    """(x − m)/σ·w + b with σ² = var + eps.

    σ moves by at most ρ = rms(E) because √(mean c² + eps) is 1-Lipschitz in the rms of c, and the
    normalised vector is at most √n in every coordinate whatever the variance does. So the bound
    is finite where an interval for the variance would reach 0.
    """
    z, bound, reach = _normalise(x, list(range(-len(shape), 0)), eps)
    one = torch.ones_like(z)
    w, ew = weight if weight is not None else (one, 0.0)
    return _scaled(z, bound, reach, w, ew, bias[1] if bias is not None else 0.0)


def instance_norm(
    x: Bound, weight: Any, bias: Any, training: bool, momentum: float, eps: float
) -> tuple[Tensor, Tensor]:
    """(x − m)/σ·w + b over the batch and the positions of every channel (axis 1)."""
    value = x[0]
    z, bound, reach = _normalise(x, [d for d in range(value.ndim) if d != 1], eps)
    shape = [1, -1] + [1] * (value.ndim - 2)
    one = torch.ones(value.shape[1], dtype=value.dtype, device=value.device)
    w, ew = weight if weight is not None else (one, 0.0 * one)
    eb = bias[1] if bias is not None else 0.0 * one
    return _scaled(z, bound, reach, w.view(shape), ew.view(shape), eb.view(shape))


def group_norm(
    x: Bound, weight: Any, bias: Any, batch: int, channels: int, positions: int, groups: int,
    eps: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(x − m)/σ·w + b over the channels and positions of every group.

    Where channels come last in memory, CPU kernels take the variance as mean(x²) − m², or 0 where
    that is negative. With γ for a float32 sum it errs by d = 4γ·mean(x²) at most, so 1/σ grows by
    a factor of at most 1 + s·d: s is the slope (1/√(1 − t) − 1)/(tσ²) at t = min(d, σ² − eps)/σ²,
    which no smaller d, hence no float64 kernel, exceeds.
    """
    value, e = (part.reshape(batch, groups, -1) for part in x)
    z, bound, reach = _normalise((value, e), [-1], eps)
    steps = (value.shape[-1] + 8.0) * 2.0**-24
    gamma = steps / (1.0 - steps) if steps < 1.0 else math.inf
    squares = (value.abs() + torch.nan_to_num(e, posinf=0.0)).square().mean(-1, keepdim=True)
    _, _, _, least = _deviation((value, e), [-1], eps)
    ratio = 4.0 * squares / least.square()
    t = torch.minimum(gamma * ratio, 1.0 - eps / least.square()).clamp_min(1e-9)
    grown = ratio * ((1.0 - t).rsqrt() - 1.0) / t
    reach = reach * (1.0 + gamma * grown) + (z.abs() + bound) * grown
    z, bound, reach = (part.reshape(x[0].shape) for part in (z, bound, reach))
    shape = [1, -1] + [1] * (z.ndim - 2)
    one = torch.ones(channels, dtype=z.dtype, device=z.device)
    w, ew = weight if weight is not None else (one, 0.0 * one)
    eb = bias[1] if bias is not None else 0.0 * one
    return _scaled(z, bound, reach, w.view(shape), ew.view(shape), eb.view(shape))


def _deviation(x: Bound, dims: list[int], eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """m, σ, how far σ moves, and how small it may then be."""
    value, e = x
    mean = value.mean(dims, keepdim=True)
    sigma = ((value - mean).square().mean(dims, keepdim=True) + eps).sqrt()
    rho = e.square().mean(dims, keepdim=True).sqrt()
    return mean, sigma, rho, (sigma - rho).clamp_min(math.sqrt(eps))


def _normalise(x: Bound, dims: list[int], eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """(x − m)/σ over `dims`, the bound of its error, and the absolute terms behind it over σ."""
    value, e = x
    n = math.prod(value.shape[d] for d in dims)
    mean, sigma, rho, least = _deviation(x, dims, eps)
    centred = value - mean
    moved = e + e.mean(dims, keepdim=True)
    z = centred / sigma
    far = torch.clamp((centred.abs() + moved) / least, max=math.sqrt(n))
    bound = torch.minimum((far * rho + moved) / sigma, math.sqrt(n) + z.abs())
    bound = torch.nan_to_num(bound, nan=math.inf)
    bound = torch.minimum(bound, math.sqrt(n) + z.abs())
    # What may have overflowed may make the whole row NaN.
    bound = torch.where(torch.isinf(rho), math.inf, bound)
    reach = (value.abs() + mean.abs() + torch.nan_to_num(e, posinf=0.0)) / least
    return z, bound, reach


def _scaled(
    z: Tensor, bound: Tensor, reach: Tensor, w: Tensor, ew: Any, eb: Any
) -> tuple[Tensor, Tensor]:
    """z·w + b with their bounds."""
    total = bound * (w.abs() + ew) + z.abs() * ew + eb
    inside = reach + z.abs() + bound
    return total, inside * (w.abs() + ew)
