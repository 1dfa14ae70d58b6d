"""Normalisations that a model writes out, such as x · rsqrt(mean(x²) + ε), and quotients."""

from collections.abc import Mapping
from operator import getitem

from torch import Tensor
from torch.fx import Graph
from torch.fx import Node as FxNode

from torchsheaf.network.rules import Kind, operation_called, rule_for

MOST = 16
"""Calls of one normalisation; a longer chain is something else."""
_ENDS = {"aten.mul.Tensor": (0, 1), "aten.div.Tensor": (1,)}
"""What applies the scale, and the argument that is the scale."""
_ROOTS = {"aten.sqrt.default", "aten.rsqrt.default"}
_SUMS = {"aten.mean.dim", "aten.sum.dim_IntList"}
_VARIANCES = {"aten.var.dim", "aten.var.correction"}
_DEVIATIONS = {"aten.std.dim", "aten.std.correction"}
_NORMS = {"aten.linalg_vector_norm.default", "aten.norm.ScalarOpt_dim"}
_ABS = "aten.abs.default"
_BETWEEN = _ROOTS | _SUMS | _VARIANCES | _DEVIATIONS | _NORMS | {
    "aten.square.default", "aten.pow.Tensor_Scalar", "aten.mul.Tensor", "aten.mul.Scalar",
    "aten.add.Tensor", "aten.add.Scalar", "aten.sub.Tensor", "aten.div.Tensor", "aten.div.Scalar",
    "aten.reciprocal.default", _ABS,
}  # fmt: skip
_ENTRYWISE = _BETWEEN - _SUMS - _VARIANCES - _DEVIATIONS - _NORMS


def normalisations(graph: Graph) -> Mapping[FxNode, frozenset[FxNode]]:
    """The calls that end a normalisation, and those before it whose values are steps of it.

    A normalisation is a product or quotient of x, or of x − mean(x), and a scale, a root of a mean
    of squares, where everything in between is made from x alone and used by nothing else. As one
    map of x it is smooth wherever that root is positive; as vertices of their own its steps could
    leave the domain of the root, and a scale that is free would multiply a whole layer at the price
    of one number. A quotient of x by anything made from x alone in this way, such as x/(1 + |x|) or
    x/Σx, is one map too: a divisor of its own could pass through 0, where the energy has a pole.
    """
    found: dict[FxNode, frozenset[FxNode]] = {}
    for end in graph.nodes:
        for place in _ENDS.get(_name(end), ()):
            steps = _steps(end, place)
            if steps is not None:
                found[end] = steps
                break
    return found


def _steps(end: FxNode, place: int) -> frozenset[FxNode] | None:
    if len(end.args) != 2 or not all(isinstance(a, FxNode) for a in end.args):
        return None
    scale, scaled = end.args[place], end.args[1 - place]
    assert isinstance(scale, FxNode)
    assert isinstance(scaled, FxNode)
    divides = _name(end) == "aten.div.Tensor"
    if not divides and _shape(scale) == _shape(scaled):  # a scale belongs to many entries
        return None
    origins = [scaled]
    if _name(scaled) == "aten.sub.Tensor" and isinstance(scaled.args[0], FxNode):
        origins.insert(0, scaled.args[0])
    for x in origins:
        steps = _between(end, x)
        if steps and (_is_scale(scale, steps) or (divides and _is_divisor(steps))):
            return steps
    return None


def _between(end: FxNode, x: FxNode) -> frozenset[FxNode] | None:
    """The calls between x and `end`, if they read x alone and nothing else reads them."""
    steps: set[FxNode] = set()
    waiting = [n for n in end.all_input_nodes if n is not x]
    while waiting:
        node = waiting.pop()
        if node in steps:
            continue
        if not _may_be_inside(node) or len(steps) == MOST:
            return None
        steps.add(node)
        waiting += [n for n in node.all_input_nodes if n is not x]
    used_inside = all(
        user is end or user in steps or not _computes(user) for n in steps for user in n.users
    )
    return frozenset(steps) if used_inside else None


def _may_be_inside(node: FxNode) -> bool:
    rule = rule_for(_name(node))
    return _name(node) in _BETWEEN or (
        rule is not None
        and rule.kind is Kind.RESHAPE
        and not rule.constant
        and node.target is not getitem
    )


def _is_divisor(steps: frozenset[FxNode]) -> bool:
    """Whether a quotient of x and these steps has no kink that is not one of its own at x = 0.

    |x| is smooth enough behind x, entry by entry: the slope of x/(1 + |x|) does not jump.
    """
    names = {_name(n) for n in steps}
    if any(_name(n) in _NORMS and (*n.args, 2)[1] != 2 for n in steps):
        return False
    return _ABS not in names or names <= _ENTRYWISE


def _is_scale(scale: FxNode, steps: frozenset[FxNode]) -> bool:
    """Whether the scale is one of the steps: a root of a mean of squares, made from them."""
    chain, waiting = set[FxNode](), [scale]
    while waiting:
        node = waiting.pop()
        if node in steps and node not in chain:
            chain.add(node)
            waiting += node.all_input_nodes
    if any(_name(n) in _NORMS and (*n.args, 2)[1] != 2 for n in chain):
        return False  # of another order: with kinks
    names = {_name(n) for n in chain}
    if _ABS in names:
        return False
    if names & (_NORMS | _DEVIATIONS):
        return True
    squares = any(_name(n) in _SUMS and _is_square(n.all_input_nodes[0]) for n in chain)
    root = any(_name(n) in _ROOTS or _is_power(n, (0.5, -0.5)) for n in chain)
    return root and (squares or bool(names & _VARIANCES))


def _is_square(node: FxNode) -> bool:
    product = _name(node) == "aten.mul.Tensor" and node.args[0] is node.args[1]
    return product or _name(node) == "aten.square.default" or _is_power(node, (2, 2.0))


def _is_power(node: FxNode, exponents: tuple[float, ...]) -> bool:
    return _name(node) == "aten.pow.Tensor_Scalar" and node.args[1] in exponents


def _computes(node: FxNode) -> bool:
    """Whether anything uses a call; assertions of the trace compute nothing."""
    return bool(node.users) or node.op == "output"


def _name(node: FxNode) -> str:
    return operation_called(node.target) if node.op == "call_function" else ""


def _shape(node: FxNode) -> tuple[object, ...] | None:
    """As expressions: comparing the traced batch size itself with a number would fix it there."""
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        return None
    return tuple(s if isinstance(s, int) else s.node.expr for s in value.shape)
