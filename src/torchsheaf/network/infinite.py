"""Values that are infinite by construction, such as attention scores behind a mask of −∞."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.fx import Graph
from torch.fx import Node as FxNode
from torch.utils._pytree import tree_leaves

from torchsheaf.network.rules import Kind, operation_called, rule_for

_SCALED = {"aten.mul.Tensor", "aten.div.Tensor", "aten.baddbmm.default", "aten.addmm.default"}
"""Operations beside the affine ones whose value is infinite where an operand is."""


def infinite_values(graph: Graph, states: Mapping[FxNode, Tensor]) -> frozenset[FxNode]:
    """The calls whose values hold a number that has no finite square in their type.

    −∞ and the least number of the type are what masks write into attention scores. No vertex can
    hold them: there is no distance to such a value, and its norm is no number. So they are folded
    into the call that makes finite numbers of them (a softmax, a maximum). `states` are the tensors
    behind the placeholders. Literals and tensors that the model holds are looked at, and what they
    are written into, added to or multiplied by; values computed from the input are not.

    Cost: one pass over the graph and over the buffers.
    """
    found = {n for n, t in states.items() if t.is_floating_point() and _huge_entry(t)}
    for node in graph.nodes:
        value = node.meta.get("val")
        if node.op != "call_function" or not isinstance(value, Tensor):
            continue
        if not value.is_floating_point() or not _keeps(node):
            continue
        literals = (a for a in tree_leaves((node.args, node.kwargs)) if isinstance(a, float))
        if any(_is_huge(a, value.dtype) for a in literals) or found & set(node.all_input_nodes):
            found.add(node)
    return frozenset(n for n in found if n.op == "call_function")


def _keeps(node: FxNode) -> bool:
    """Whether an infinite operand leaves an infinite value behind.

    Calls without a rule are those that make masks, or are refused later.
    """
    name = operation_called(node.target)
    rule = rule_for(name)
    return rule is None or rule.kind in (Kind.AFFINE, Kind.RESHAPE) or name in _SCALED


def _is_huge(number: float, dtype: torch.dtype) -> bool:
    return abs(number) > math.sqrt(torch.finfo(dtype).max)


def _huge_entry(tensor: Tensor) -> bool:
    if not tensor.numel():
        return False
    least, greatest = torch.aminmax(tensor.detach())
    return any(_is_huge(float(v), tensor.dtype) for v in (least, greatest))
