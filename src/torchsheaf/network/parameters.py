"""The local derivative of one node in its own parameters: all that a local learning rule needs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn

from torchsheaf.network.layout import Layout
from torchsheaf.network.network import Network, Node
from torchsheaf.network.operation import Operation, State, Value, evaluate

_CONVOLUTIONS = {f"aten.conv{n}d.default": n for n in (1, 2, 3)}


@dataclass(frozen=True)
class WeightEdge:
    """A linear or convolution node seen as a least-squares problem y = W a (+ b).

    `weight` and `bias` are parameter names; `rows(values)` gives the activations that the weight
    meets, one row per sample and position, and `spread(g)` the matching rows of a cotangent.
    """

    node: Node
    weight: str
    bias: str | None
    spatial: tuple[Any, ...] | None
    """(stride, padding, dilation) of a convolution; None for a linear layer."""
    operation: Operation
    """The one that meets the weight; relabellings may stand around it."""
    transposed: bool = False
    """Whether the weight is stored `(n_in, n_out)`, as addmm takes it."""

    def rows(
        self, network: Network, values: Mapping[str, Tensor], *, ones: bool = False
    ) -> Tensor:  # fmt: skip
        """A, `(batch · positions, n_in)`, patches for a convolution; `ones`: a last column of ones.

        The columns of a patch are those of its kernel with the channel last; `stored` puts a
        step back into the order of the weight. Cost: one copy.
        """
        x = self._operand(network, values)
        if self.spatial is not None:
            patches = _patches(x, network.state(self.weight).shape[2:], *self.spatial)
            return _table(patches, ones=ones)
        rows = x.reshape(-1, x.shape[-1])
        return torch.nn.functional.pad(rows, (0, 1), value=1.0) if ones else rows

    def spread(self, g: Tensor) -> Tensor:
        """G, `(batch · positions, n_out)`, row for row as in `rows`."""
        if self.spatial is None:
            return g.reshape(-1, g.shape[-1])
        return g.movedim(1, -1).reshape(-1, g.shape[1])

    def stored(self, step: Tensor, network: Network) -> Tensor:
        """`(n_out, n_in)`, columns as in `rows`, in the shape of the weight; a view."""
        if self.spatial is None:
            return step.mT if self.transposed else step
        shape = network.state(self.weight).shape
        return step.reshape(shape[0], *shape[2:], shape[1]).movedim(-1, 1)

    def _operand(self, network: Network, values: Mapping[str, Tensor]) -> Tensor:
        """The activation that enters the operation, after the folded relabellings."""
        parents = {p: values[p] for p in self.node.parents}
        batch = values[self.node.parents[0]].shape[0]
        before = takewhile(lambda op: op is not self.operation, self.node.operations)
        return evaluate(before, parents, network.state, batch)[self.operation.operands[0]]

    def pull(
        self, network: Network, values: Mapping[str, Tensor], cotangent: Tensor
    ) -> dict[str, Tensor]:
        """Σ_samples (∂f/∂W)ᵀ g, and the same for b."""
        if self.spatial is None:
            g = self.spread(cotangent)
            grads = {self.weight: self.stored(g.mT @ self.rows(network, values), network)}
            if self.bias is not None:
                grads[self.bias] = g.sum(0)
            return grads
        x, weight = self._operand(network, values), network.state(self.weight)
        stride, padding, dilation = self.spatial
        none = [0] * (weight.ndim - 2)
        wanted = [False, True, self.bias is not None]
        _, dw, db = torch.ops.aten.convolution_backward.default(
            cotangent, x, weight, [weight.shape[0]], stride, padding, dilation, False, none, 1,
            wanted,
        )  # fmt: skip
        return {self.weight: dw} | ({} if self.bias is None else {self.bias: db})


def weight_edge(node: Node) -> WeightEdge | None:
    """The node as a least-squares problem, or None when it is not linear in one weight matrix."""
    op = _before_relabelling(node)
    if op is None:
        return None
    name = str(op.target)
    if name == "aten.addmm.default":
        return _addmm_edge(node, op)
    if name != "aten.linear.default" and name not in _CONVOLUTIONS:
        return None
    a, w, *rest = op.args
    bias = rest[0] if rest else None
    if not isinstance(a, Value) or not isinstance(w, State) or op.kwargs or len(op.operands) != 1:
        return None
    if bias is not None and not isinstance(bias, State):
        return None
    bias_name = bias.name if isinstance(bias, State) else None
    if name == "aten.linear.default":
        return WeightEdge(node, w.name, bias_name, None, op)
    if op is not node.operations[-1]:
        return None
    n = _CONVOLUTIONS[name]
    defaults: tuple[Any, ...] = (None, [1] * n, [0] * n, [1] * n, 1)
    _, stride, padding, dilation, groups = (*rest, *defaults[len(rest) :])
    if groups != 1:
        return None
    return WeightEdge(node, w.name, bias_name, (stride, padding, dilation), op)


def _patches(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:  # fmt: skip
    """`(batch, *positions, *kernel, channels)`, a view of the padded input.

    Channels lie together in memory where that makes longer runs than positions do.
    """
    margins = [p for width in reversed(padding) for p in (width, width)]
    x = torch.nn.functional.pad(x, margins).movedim(1, -1)
    if kernel[-1] * x.shape[-1] > x.shape[-2]:
        x = x.contiguous()
    batch, *sizes, channels = x.shape
    first, *steps, last = x.stride()
    axes = list(zip(sizes, steps, kernel, stride, dilation, strict=True))
    positions = [(size - d * (k - 1) - 1) // s + 1 for size, _, k, s, d in axes]
    return x.as_strided(
        (batch, *positions, *kernel, channels),
        (first, *(t * s for _, t, _, s, _ in axes), *(t * d for _, t, _, _, d in axes), last),
    )


def _table(patches: Tensor, *, ones: bool) -> Tensor:
    """A copy, one patch per row, and a last column of ones; stored as the patches lie in memory."""
    shape, lead = patches.shape, patches.ndim // 2
    rows, width = math.prod(shape[:lead]), math.prod(shape[lead:])
    if patches.stride(-1) == 1:
        out = patches.new_empty(rows, width + ones)
    else:
        out = patches.new_empty(width + ones, rows).mT
    out[:, :width].view(shape).copy_(patches)
    out[:, width:] = 1
    return out


def _before_relabelling(node: Node) -> Operation | None:
    """The last operation, or the one before it when that only splits rows off the batch axis."""
    *others, last = node.operations
    layout = getattr(last.target, "__self__", None)
    if not isinstance(layout, Layout):
        return last
    # sample by sample, so that rows of the operation are rows of the stalk in their order
    in_order = last.target == layout.forth and layout.axis == 0 and layout.outer == 1
    if not in_order or not others or last.operands != (others[-1].name,):
        return None
    return others[-1]


def _addmm_edge(node: Node, op: Operation) -> WeightEdge | None:
    """b + a W, as GPT-2 writes its linear layers."""
    bias, a, w = op.args
    states = isinstance(bias, State) and isinstance(w, State)
    if not states or not isinstance(a, Value) or op.kwargs:
        return None
    return WeightEdge(node, w.name, bias.name, None, op, transposed=True)


@torch.no_grad()
def pull_parameters(
    network: Network,
    node: Node,
    values: Mapping[str, Tensor],
    cotangent: Tensor,
    edge: WeightEdge | None = None,
) -> dict[str, Tensor]:
    """θ ↦ Σ_samples (∂f_v/∂θ)ᵀ g for the node's own learnable parameters.

    Local: reads the parents' values and the cotangent at this node, nothing else. Cost: that of
    this node's share of a backward pass. `edge` is `weight_edge(node)` where the caller has it.
    """
    edge = weight_edge(node) if edge is None else edge
    if edge is not None:
        found = edge.pull(network, values, cotangent)
        return {n: g for n, g in found.items() if learns(network.state(n))}
    names = [n for n in node.states if learns(network.state(n))]
    if not names:
        return {}
    parents = {p: values[p] for p in node.parents}
    batch = values[node.parents[0]].shape[0]

    def function(*states: Tensor) -> Tensor:
        given = dict(zip(names, states, strict=True))

        def lookup(name: str) -> Tensor:
            return given[name] if name in given else network.state(name)

        return evaluate(node.operations, parents, lookup, batch)[node.operations[-1].name]

    pull = torch.func.vjp(function, *(network.state(n).detach() for n in names))[1]
    return dict(zip(names, pull(cotangent), strict=True))


def learns(tensor: Tensor) -> bool:
    """Whether it is a parameter that is not frozen."""
    return isinstance(tensor, nn.Parameter) and tensor.requires_grad
