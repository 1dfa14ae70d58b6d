"""Traced calls rewritten so that they mean the same at every batch size and without autograd."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import GraphModule
from torch.fx import Node as FxNode

from torchsheaf.network.rules import Kind, Rule, functional, operation_called, rule_for


def writes_into_views(program: ExportedProgram) -> bool:
    """Whether some in-place call writes into a view of another value (x[:, 0] = y, say)."""
    for node in program.graph.nodes:
        if node.op != "call_function" or functional(node.target) is node.target:
            continue
        written = node.args[0] if node.args else None
        if not isinstance(written, FxNode) or written.op != "call_function":
            continue
        rule = rule_for(operation_called(written.target))
        if rule is not None and rule.kind is Kind.RESHAPE and not rule.constant:
            return True
    return False


def casts_by_region(program: ExportedProgram) -> bool:
    """Whether a part of the model runs under an autocast of its own, which no operation says."""
    return any(
        node.op == "call_function" and _is_region(node, "wrap_with_autocast") and node.args[2]
        for module in program.graph_module.modules() if isinstance(module, GraphModule)
        for node in module.graph.nodes
    )  # fmt: skip


def _is_region(node: FxNode, of: str) -> bool:
    """Whether a node is the body of a context manager of that name."""
    return isinstance(node.target, torch._ops.HigherOrderOperator) and of in str(node.target)


def restore_batch_norm(program: ExportedProgram) -> None:
    """Write batch norms as the models do, in place: decompositions leave another name of theirs."""
    graph = program.graph_module.graph
    for node in list(graph.nodes):
        if node.target is not torch.ops.aten._native_batch_norm_legit_no_training.default:
            continue
        *given, momentum, eps = node.args
        with graph.inserting_before(node):
            args = (*given, False, momentum, eps, True)
            norm = graph.call_function(torch.ops.aten.batch_norm.default, args)
        norm.meta = {**node.meta, "val": node.meta["val"][0]}
        for taken in list(node.users):
            if taken.args[1] == 0:
                taken.replace_all_uses_with(norm)
                graph.erase_node(taken)
        if not node.users:
            graph.erase_node(node)


def close_no_grad(program: ExportedProgram) -> None:
    """Let what leaves a `no_grad` region inside a model leave it through a detach, in place.

    So its meaning outlives the region, which decompositions inline. A model that is such a region
    as a whole (a decorated forward) is left as it is.
    """
    for owner in [m for m in program.graph_module.modules() if isinstance(m, GraphModule)]:
        for node in list(owner.graph.nodes):
            if not _is_region(node, "set_grad_enabled") or node.args[0]:
                continue
            for result in list(node.users):
                value = result.meta.get("val")
                used = any(user.op != "output" for user in result.users)
                if not used or not isinstance(value, Tensor) or not value.is_floating_point():
                    continue
                with owner.graph.inserting_after(result):
                    cut = owner.graph.call_function(torch.ops.aten.detach.default, (result,))
                cut.meta = dict(result.meta)
                result.replace_all_uses_with(cut, lambda user, cut=cut: user is not cut)


def is_aside(node: FxNode) -> bool:
    """Whether a value is no real number and returned at most: predictions beside logits, say."""
    value = node.meta.get("val")
    if not isinstance(value, Tensor) or value.is_floating_point() or value.is_complex():
        return False
    used = any(user.op != "output" for user in node.users)
    return not used and functional(node.target) is node.target


_VIEWS = (torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default)


def settled(target: Any, args: tuple[Any, ...], node: FxNode) -> tuple[Any, tuple[Any, ...]]:
    """Calls whose meaning hangs on autograd or on the batch size, written so that it does not."""
    if target is torch.ops.aten.detach.default:
        return torch.ops.aten.alias.default, args  # cuts no restriction map; see Rule.stops
    if target is torch.ops.aten.squeeze.default:
        shape = node.all_input_nodes[0].meta["val"].shape
        dynamic = any(not isinstance(s, int) for s in shape)  # then no 1 is a batch of one
        ones = [i for i, s in enumerate(shape) if isinstance(s, int) and s == 1]
        single = [i for i in ones if dynamic or i > 0]
        return torch.ops.aten.squeeze.dims, (args[0], single)  # a batch of one keeps its axis
    if target in _VIEWS:
        return torch.ops.aten.reshape.default, args  # tangents need not share the value's strides
    if target is torch.ops.aten.slice_scatter.default:
        return written, args
    if target is torch.ops.aten.copy.default:
        return overwritten, args[:2]
    if target is torch.ops.aten.lstm.input:
        return recurrent, args
    return target, args


def written(
    destination: Tensor,
    source: Tensor,
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> Tensor:
    """slice_scatter, whose own derivative overflows on an open end under vmap."""
    places = torch.arange(destination.shape[dim], device=destination.device)[start:end:step]
    return destination.index_copy(dim, places, source.to(destination.dtype))


def overwritten(destination: Tensor, source: Tensor) -> Tensor:
    """What `destination.copy_(source)` leaves behind; aten::copy itself has no forward mode."""
    return source.to(destination.dtype).expand_as(destination)


def recurrent(*args: Any) -> Any:
    """aten::lstm without oneDNN, whose float32 kernel on CPUs keeps nothing for `torch.func`."""
    before = torch.backends.mkldnn.enabled
    # `torch.backends.mkldnn.flags` sets TF32 too, and warns of it
    torch.backends.mkldnn.enabled = False  # type: ignore[assignment]
    try:
        return torch.ops.aten.lstm.input(*args)
    finally:
        torch.backends.mkldnn.enabled = before


def rewriting(target: Any, kwargs: Mapping[str, Any]) -> str | None:
    """Why a call that writes into the model's own tensors, or draws numbers, cannot be read."""
    if torch.Tag.nondeterministic_seeded in getattr(target, "tags", ()):
        return "it draws random numbers at every call; pass them as an input, or draw them once"
    if str(target) == "aten.embedding_renorm.default":
        return "max_norm rewrites weights at every call; build the embedding without max_norm"
    if "out" in kwargs:
        return "it rewrites a buffer at every call: call model.eval() first"
    return None


def chooses(rule: Rule, value: Any) -> bool:
    """Whether a call returns (values, indices), as maxima and sorts do."""
    if not isinstance(value, tuple | list):
        return False
    indices = [v for v in value[1:] if isinstance(v, Tensor) and not v.is_floating_point()]
    return rule.gate is not None or (len(value) > 1 and len(indices) == len(value) - 1)


def first_of(target: Callable[..., Any]) -> Callable[..., Any]:
    """The operation whose value is the first of the values of `target`."""

    def first(*args: Any, **kwargs: Any) -> Any:
        return target(*args, **kwargs)[0]

    first.__name__ = str(target)
    return first
