"""What every local learning rule offers."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from torchsheaf.cochain import Cochain
from torchsheaf.network import Composition
from torchsheaf.network.parameters import WeightEdge, learns, pull_parameters
from torchsheaf.sheaf import Edge, Sheaf
from torchsheaf.train.losses import Loss


@dataclass(frozen=True, eq=False)
class Batch:
    """One batch after its forward pass: the sheaf, the values, the target, and Φ per sample.

    `maps` are the restriction maps there, for rules that make a reverse sweep.
    """

    sheaf: Sheaf
    values: Cochain
    target: Tensor
    potential: Tensor
    loss: Loss
    output: str
    maps: Mapping[str, Composition]

    @property
    def size(self) -> int:
        """Number of samples."""
        return self.potential.shape[0]

    @cached_property
    def force(self) -> Tensor:
        """∂Φ/∂z at the output of the forward pass."""
        return self.loss.gradient(self.values[self.output], self.target)


@dataclass(eq=False)
class LocalGradients:
    """What a rule hands back: per parameter the gradient summed over `count` samples.

    `.grad` becomes `sums[name] / count`. Sums and counts of data-parallel processes add up.
    """

    count: float
    sums: dict[str, Tensor]

    def add(self, name: str, part: Tensor) -> None:
        """Add one edge's part; a shared parameter meets several edges."""
        part = part.to_dense() if part.is_sparse else part  # of a sparse embedding
        self.sums[name] = self.sums[name] + part if name in self.sums else part

    def add_edge(self, batch: Batch, edge: Edge, cotangent: Tensor) -> None:
        """Add the first-order derivative of one edge, (∂f_e/∂θ)ᵀ cotangent."""
        network = batch.sheaf.network
        found = pull_parameters(network, edge.node, batch.values, cotangent, edge.weights)
        for name, grad in found.items():
            self.add(name, grad)


class LocalRule(ABC):
    """Turns a batch into one gradient per parameter, each from its own edge only."""

    name: str
    parallel: bool = True
    """Whether sums over the processes of a data-parallel group mean anything."""
    sweeps_back: ClassVar[bool] = True
    """Whether it carries cotangents through the maps of the forward pass (`Batch.maps`)."""
    solves: ClassVar[bool] = True
    """Whether it solves linear systems, which torch cannot in half precision."""

    descends: ClassVar[bool] = False
    """Whether `.grad` is the gradient of the loss, as an optimiser that searches along it needs."""

    @abstractmethod
    def gradients(self, batch: Batch) -> LocalGradients:
        """Gradient sums of every learnable parameter."""

    def state_dict(self) -> dict[str, Tensor]:
        """Memory of the rule (empty for rules without memory), for checkpoints."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore the memory."""
        if state:
            raise ValueError(f"rule {self.name!r} has no memory, but {len(state)} tensors came")


def weight_edges(batch: Batch, total: LocalGradients) -> Iterator[tuple[WeightEdge, Tensor]]:
    """Every edge that is a least-squares problem in a learnable weight, with its cotangent.

    The other edges (norm layers, embeddings, grouped convolutions, frozen weights beside a live
    bias) give their first-order derivative to `total`. Cost: one reverse pass.
    """
    arriving = adjoint_substitution(batch)
    for edge in batch.sheaf.edges.values():
        if not edge.parameters or edge.name not in arriving:
            continue
        problem = edge.weights
        if problem is not None and learns(batch.sheaf.network.state(problem.weight)):
            yield problem, arriving[edge.name]
        else:
            total.add_edge(batch, edge, arriving[edge.name])


def has_live_bias(batch: Batch, edge: WeightEdge) -> bool:
    """Whether the problem has a column of ones: a bias that is not frozen."""
    return edge.bias is not None and learns(batch.sheaf.network.state(edge.bias))


@torch.no_grad()
def adjoint_substitution(batch: Batch) -> dict[str, Tensor]:
    """Cotangents ∂Φ/∂c_v for every vertex that the output depends on, by one reverse sweep.

    λ_out = ∂Φ/∂z, λ_v = Σ_{children e} R_{e,v}ᵀ λ_e: Gauss–Seidel order over vertices, each reading
    its child edges only. What `detach` or `no_grad` cuts off is absent. These are minus the forces
    on the edges in the nudged limit, and equal the back-propagated errors (docs/theory.md, T5).
    Cost: one reverse pass.
    """
    inputs = set(batch.sheaf.inputs)
    arriving = {batch.output: batch.force}
    for name in reversed(list(batch.maps)):
        if name not in arriving:
            continue
        for parent, pulled in batch.maps[name].backpropagate(arriving[name]).items():
            if parent not in inputs:
                arriving[parent] = arriving[parent] + pulled if parent in arriving else pulled
    return arriving
