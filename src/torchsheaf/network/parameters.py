"""The local derivative of one node in its own parameters: all that a local learning rule needs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from torchsheaf.network.network import Network, Node
from torchsheaf.network.operation import State


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
    """(stride, padding, dilation) of a 2-d convolution; None for a linear layer."""

    def rows(self, network: Network, values: Mapping[str, Tensor]) -> Tensor:
        """A, `(batch · positions, n_in)`: unfolded patches for a convolution."""
        x = operand(network, self.node, values)
        if self.spatial is None:
            return x.reshape(-1, x.shape[-1])
        stride, padding, dilation = self.spatial
        kernel = network.state(self.weight).shape[2:]
        patches = torch.nn.functional.unfold(
            x, kernel, dilation=dilation, padding=padding, stride=stride
        )
        return patches.transpose(1, 2).reshape(-1, patches.shape[1])

    def spread(self, g: Tensor) -> Tensor:
        """G, `(batch · positions, n_out)`, row for row as in `rows`."""
        if self.spatial is None:
            return g.reshape(-1, g.shape[-1])
        return g.flatten(2).transpose(1, 2).reshape(-1, g.shape[1])


def weight_edge(network: Network, node: Node) -> WeightEdge | None:
    """The node as a least-squares problem, or None when it is not linear in one weight matrix."""
    op = node.operations[-1]
    name = str(op.target)
    if len(op.operands) != 1 or not isinstance(op.args[1], State) or op.kwargs:
        return None
    bias = op.args[2] if len(op.args) > 2 else None
    if bias is not None and not isinstance(bias, State):
        return None
    bias_name = bias.name if isinstance(bias, State) else None
    if name == "aten.linear.default":
        return WeightEdge(node, op.args[1].name, bias_name, None)
    if name == "aten.conv2d.default":
        defaults: tuple[Any, ...] = ([1, 1], [0, 0], [1, 1], 1)
        stride, padding, dilation, groups = (*op.args[3:], *defaults[len(op.args) - 3 :])
        if groups == 1:
            return WeightEdge(node, op.args[1].name, bias_name, (stride, padding, dilation))
    return None


def operand(network: Network, node: Node, values: Mapping[str, Tensor]) -> Tensor:
    """The activation that enters the node's own operation, after the folded relabellings."""
    batch = next(iter(values.values())).shape[0]
    scope: dict[str, Any] = dict(values)
    for op in node.operations[:-1]:
        args, kwargs = op.resolve(scope, network.state, batch)
        scope[op.name] = op.target(*args, **kwargs)
    return scope[node.operations[-1].operands[0]]


@torch.no_grad()
def pull_parameters(
    network: Network, node: Node, values: Mapping[str, Tensor], cotangent: Tensor
) -> dict[str, Tensor]:
    """θ ↦ Σ_samples (∂f_v/∂θ)ᵀ g for the node's own learnable parameters.

    Local: reads the parents' values and the cotangent at this node, nothing else. Cost: that of
    this node's share of a backward pass.
    """
    names = [n for n in node.states if _learns(network.state(n))]
    if not names:
        return {}
    edge = weight_edge(network, node)
    if edge is not None and edge.spatial is None:
        x = edge.rows(network, values)
        g = edge.spread(cotangent)
        grads = {edge.weight: g.mT @ x}
        if edge.bias is not None:
            grads[edge.bias] = g.sum(0)
        return {n: grads[n] for n in names}
    batch = next(iter(values.values())).shape[0]

    def function(*states: Tensor) -> Tensor:
        given = dict(zip(names, states, strict=True))

        def lookup(name: str) -> Tensor:
            return given[name] if name in given else network.state(name)

        scope: dict[str, Any] = dict(values)
        for op in node.operations:
            args, kwargs = op.resolve(scope, lookup, batch)
            scope[op.name] = op.target(*args, **kwargs)
        return scope[node.operations[-1].name]

    pull = torch.func.vjp(function, *(network.state(n).detach() for n in names))[1]
    return dict(zip(names, pull(cotangent), strict=True))


def _learns(tensor: Tensor) -> bool:
    return isinstance(tensor, nn.Parameter) and tensor.requires_grad
