"""What every local learning rule offers."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from torchsheaf.cochain import Cochain
from torchsheaf.sheaf import Sheaf
from torchsheaf.train.losses import Loss


@dataclass(frozen=True)
class Batch:
    """One batch after its forward pass: the sheaf, the values, the target, and Φ per sample."""

    sheaf: Sheaf
    values: Cochain
    target: Tensor
    potential: Tensor
    loss: Loss
    output: str

    @property
    def size(self) -> int:
        """Number of samples."""
        return self.potential.shape[0]


@dataclass(frozen=True)
class LocalGradients:
    """What a rule hands back: a descent direction per parameter, summed over `count` units.

    `.grad` becomes −direction-style gradients: `gradients[name] / count`. Units are samples, or
    groups of samples for the edge rule; sums and counts add up over data-parallel processes.
    """

    gradients: Mapping[str, Tensor]
    counts: Mapping[str, float]


class LocalRule(ABC):
    """Turns a batch into one gradient per parameter, each from its own edge only."""

    name: str

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


@torch.no_grad()
def adjoint_substitution(batch: Batch) -> dict[str, Tensor]:
    """Cotangents ∂Φ/∂c_v for every vertex that the output depends on, by one reverse sweep.

    λ_out = ∂Φ/∂z, λ_v = Σ_{children e} R_{e,v}ᵀ λ_e: Gauss–Seidel order over vertices, each reading
    its child edges only. These are minus the forces on the edges in the nudged limit, and equal
    the back-propagated errors (docs/theory.md, T5). Cost: one reverse pass.
    """
    sheaf, network = batch.sheaf, batch.sheaf.network
    inputs = set(sheaf.inputs)
    arriving = {batch.output: batch.loss.gradient(batch.values[batch.output], batch.target)}
    for node in reversed(network.nodes):
        g = arriving.get(node.name)
        if g is None or inputs.issuperset(node.parents):
            continue
        for parent, pulled in network.linearise(node, batch.values, {}).pull(g).items():
            if parent not in inputs:
                arriving[parent] = arriving[parent] + pulled if parent in arriving else pulled
    return arriving
