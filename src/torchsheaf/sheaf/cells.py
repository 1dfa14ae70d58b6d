"""The cells of a sheaf: vertices that carry values, edges that carry operations."""

import math
from dataclasses import dataclass
from functools import cached_property

from torchsheaf.network import Kind, Node
from torchsheaf.network.parameters import WeightEdge, weight_edge


@dataclass(frozen=True)
class Vertex:
    """A cell that carries a value; its stalk is R^dim, laid out as `shape` (without the batch)."""

    name: str
    shape: tuple[int, ...]
    is_input: bool
    module: str

    @property
    def dim(self) -> int:
        """Dimension of the stalk."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Edge:
    """The edge of one non-input vertex (its head), incident to it and to all its parents.

    Its stalk is the head's; the head's restriction map is the identity, the tails' are the blocks
    of df. Several parents make a join: one edge that a plain graph draws as a product vertex.
    """

    node: Node
    parameters: tuple[str, ...]

    @property
    def name(self) -> str:
        """The edge is named after its head vertex."""
        return self.node.name

    @property
    def head(self) -> str:
        """The vertex that the operation computes."""
        return self.node.name

    @property
    def parents(self) -> tuple[str, ...]:
        """The vertices it is computed from."""
        return self.node.parents

    @property
    def kind(self) -> Kind:
        """affine, gate, join or smooth."""
        return self.node.kind

    @property
    def op(self) -> str:
        """The ATen operation."""
        return self.node.op

    @property
    def operation(self) -> str:
        """The operation for readers: "linear", not "aten.linear.default"."""
        return self.node.operation

    @property
    def module(self) -> str:
        """Path of the module that runs it."""
        return self.node.module

    @cached_property
    def weights(self) -> WeightEdge | None:
        """The edge as a least-squares problem in its weight matrix; None when it is not one."""
        return weight_edge(self.node)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the edge stalk, without the batch axis."""
        return self.node.shape

    @property
    def dim(self) -> int:
        """Dimension of the edge stalk."""
        return math.prod(self.shape)
