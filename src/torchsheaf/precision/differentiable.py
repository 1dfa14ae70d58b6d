"""Kernels written again, where torch has no derivative or not the one that a rounding asks for."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def _batch_norm(
    x: Tensor, weight: Any, bias: Any, mean: Tensor, var: Tensor, momentum: float, eps: float
) -> tuple[Tensor]:
    """Batch norm in evaluation, differentiable in its running statistics too: they are weights."""
    shape = [1, -1] + [1] * (x.ndim - 2)
    y = (x - mean.view(shape)) * torch.rsqrt(var + eps).view(shape)
    y = y if weight is None else y * weight.view(shape)
    return (y if bias is None else y + bias.view(shape),)


def _softmax(x: Tensor, dim: int, half_to_float: bool) -> Tensor:
    """Softmax; a row of −∞ alone gives 0 and no gradient.

    Its NaN is passed over by the model, or the model is NaN and was refused.
    """
    hidden = (x == -torch.inf).all(dim, keepdim=True)
    return torch.softmax(x.masked_fill(hidden, 0.0), dim).masked_fill(hidden, 0.0)


def _copy(held: Tensor, given: Tensor) -> Tensor:
    """What is written over `held`; torch has no derivative of the call itself."""
    return given.to(held.dtype).expand_as(held)


DIFFERENTIABLE: dict[str, Callable[..., Any]] = {
    "_native_batch_norm_legit_no_training": _batch_norm,
    "_softmax": _softmax,
    "copy": _copy,
}
