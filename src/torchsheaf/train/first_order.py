"""The first-order rule: the nudged limit of the equilibrium rule; equals back-propagation."""

from dataclasses import dataclass
from typing import ClassVar, final

from torchsheaf.train.rule import Batch, LocalGradients, LocalRule, adjoint_substitution


@final
@dataclass(frozen=True)
class FirstOrderRule(LocalRule):
    """dΦ/dθ_e = (∂f_e/∂θ)ᵀ λ_e with λ from one adjoint substitution.

    Equals the gradient of the mean loss by back-propagation, with the same data flow in the
    reverse sweep; what is local is the arithmetic. Source: docs/theory.md, T5 and T6.
    """

    name: str = "first-order"
    solves: ClassVar[bool] = False
    descends: ClassVar[bool] = True

    def gradients(self, batch: Batch) -> LocalGradients:
        arriving = adjoint_substitution(batch)
        total = LocalGradients(batch.size, {})
        for edge in batch.sheaf.edges.values():
            if edge.parameters and edge.name in arriving:
                total.add_edge(batch, edge, arriving[edge.name])
        return total
