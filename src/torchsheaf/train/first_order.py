"""The first-order rule: the nudged limit of the equilibrium rule; equals back-propagation."""

from dataclasses import dataclass
from typing import final

from torch import Tensor

from torchsheaf.network.parameters import pull_parameters
from torchsheaf.train.rule import Batch, LocalGradients, LocalRule, adjoint_substitution


def add_gradients(
    total: dict[str, Tensor], batch: Batch, node_name: str, cotangent: Tensor
) -> None:
    """Add the local derivative of one edge to the sums (shared weights meet several edges)."""
    network = batch.sheaf.network
    node = batch.sheaf.edges[node_name].node
    for name, grad in pull_parameters(network, node, batch.values, cotangent).items():
        total[name] = total[name] + grad if name in total else grad


@final
@dataclass(frozen=True)
class FirstOrderRule(LocalRule):
    """dΦ/dθ_e = (∂f_e/∂θ)ᵀ λ_e with λ from one adjoint substitution.

    Equals the gradient of the mean loss by back-propagation, with the same data flow in the
    reverse sweep; what is local is the arithmetic. Source: docs/theory.md, T5 and T6.
    """

    name: str = "first-order"

    def gradients(self, batch: Batch) -> LocalGradients:
        arriving = adjoint_substitution(batch)
        total: dict[str, Tensor] = {}
        for edge in batch.sheaf.edges.values():
            if edge.parameters and edge.name in arriving:
                add_gradients(total, batch, edge.name, arriving[edge.name])
        return LocalGradients(total, {n: float(batch.size) for n in total})
