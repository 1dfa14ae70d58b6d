"""Random computation graphs in torch, one residual per node: the general case of docs/theory.md."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Map = Callable[[Sequence[Tensor]], Tensor]
PIECEWISE = ("affine", "relu", "leaky", "hardtanh", "maxpool", "add")
SMOOTH = ("affine", "tanh", "mul", "softmax", "norm", "add")


@dataclass(frozen=True)
class Node:
    """A non-input node: which nodes it reads (0 is the input) and its map."""

    kind: str
    parents: tuple[int, ...]
    rule: Map


@dataclass(frozen=True)
class Graph:
    """Nodes in topological order, every stalk R^width; node i of `nodes` has index i + 1."""

    nodes: tuple[Node, ...]
    width: int

    @property
    def dimension(self) -> int:
        return len(self.nodes) * self.width

    def residual(self, c: Tensor, x: Tensor) -> Tensor:
        values = [x, *c.reshape(-1, self.width)]
        return torch.cat(
            [
                values[i + 1] - node.rule([values[p] for p in node.parents])
                for i, node in enumerate(self.nodes)
            ]
        )

    def substitute(self, x: Tensor, injected: Tensor) -> Tensor:
        values = [x]
        for node, rho in zip(self.nodes, injected.reshape(-1, self.width), strict=True):
            values.append(node.rule([values[p] for p in node.parents]) + rho)
        return torch.cat(values[1:])

    def jacobian(self, c: Tensor, x: Tensor) -> Tensor:
        return torch.func.jacrev(lambda s: self.residual(s, x))(c)


def rule_of(kind: str, weight: Tensor, bias: Tensor) -> Map:
    """One node map R^width (x R^width) -> R^width; joins read two parents."""
    table: dict[str, Map] = {
        "affine": lambda p: weight @ p[0] + bias,
        "relu": lambda p: torch.relu(p[0]),
        "leaky": lambda p: torch.nn.functional.leaky_relu(p[0], 0.2),
        "hardtanh": lambda p: torch.nn.functional.hardtanh(p[0]),
        "maxpool": lambda p: p[0].max().expand(p[0].shape[0]) + bias,
        "add": lambda p: p[0] + p[1],
        "mul": lambda p: p[0] * p[1],
        "tanh": lambda p: torch.tanh(p[0]),
        "softmax": lambda p: torch.softmax(p[0], dim=0),
        "norm": lambda p: torch.nn.functional.layer_norm(p[0], p[0].shape, eps=1e-2),
    }
    return table[kind]


def random_graph(seed: int, kinds: Sequence[str], size: int = 7, width: int = 2) -> Graph:
    """A DAG with fan-out, skips and joins; affine nodes draw from two weights: some are shared."""
    gen = torch.Generator().manual_seed(seed)
    shared = [torch.randn(width, width, generator=gen, dtype=torch.float64) for _ in range(2)]
    nodes = []
    for index in range(1, size + 1):
        kind = kinds[int(torch.randint(len(kinds), (1,), generator=gen))]
        weight = shared[int(torch.randint(2, (1,), generator=gen))]
        bias = torch.randn(width, generator=gen, dtype=torch.float64)
        count = 2 if kind in ("add", "mul") else 1
        parents = tuple(int(torch.randint(index, (1,), generator=gen)) for _ in range(count))
        nodes.append(Node(kind, parents, rule_of(kind, weight, bias)))
    return Graph(tuple(nodes), width)


def randn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
