"""Traced calls rewritten so that they mean the same at every batch size and without autograd."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node as FxNode


_VIEWS = (torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default)


def settled(target: Any, args: tuple[Any, ...], node: FxNode) -> tuple[Any, tuple[Any, ...]]:
    """Calls whose meaning hangs on autograd or on the batch size, written so that it does not."""
    if target is torch.ops.aten.detach.default:
        return torch.ops.aten.alias.default, args  # a restriction map is not cut by it
    if target is torch.ops.aten.squeeze.default:
        shape = node.all_input_nodes[0].meta["val"].shape
        single = [i for i, s in enumerate(shape) if i > 0 and isinstance(s, int) and s == 1]
        return torch.ops.aten.squeeze.dims, (args[0], single)  # a batch of one keeps its axis
    if target in _VIEWS:
        return torch.ops.aten.reshape.default, args  # tangents need not share the value's strides
    if target is torch.ops.aten.copy.default:
        return overwritten, args[:2]
    return target, args


def overwritten(destination: Tensor, source: Tensor) -> Tensor:
    """What `destination.copy_(source)` leaves behind; aten::copy itself has no forward mode."""
    return source.expand_as(destination)


def first_of(target: Callable[..., Any]) -> Callable[..., Any]:
    """The operation whose value is the first of the values of `target`."""

    def first(*args: Any, **kwargs: Any) -> Any:
        return target(*args, **kwargs)[0]

    first.__name__ = str(target)
    return first
