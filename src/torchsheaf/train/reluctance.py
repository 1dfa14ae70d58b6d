"""Regularisation as sheaf augmentation: reluctance edges from weights to an anchor."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from torchsheaf.arguments import nonnegative_number


@dataclass(frozen=True, eq=False)
class Reluctance:
    """An edge of weight λ from every weight vertex to a held anchor: energy λ/2 ‖θ − θ₀‖².

    `anchor=None` anchors at zero (weight decay); a state dict anchors at a reference (reluctance
    to change). Acts in the slow phase only: it adds λ(θ − θ₀) to `.grad`. The fast phase does not
    move weights, so putting it there (as Lab 12 says) has no effect (docs/errata.md).
    """

    strength: float
    anchor: Mapping[str, Tensor] | None = None

    def __post_init__(self) -> None:
        nonnegative_number("strength", self.strength)
        if not isinstance(self.anchor, Mapping | None):
            raise TypeError(f"anchor is a {type(self.anchor).__name__}; write a state dict or None")

    def check(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Raise ValueError unless the anchor has a tensor of its shape for every parameter."""
        for name, p in parameters.items():
            self._find(name, p)

    @torch.no_grad()
    def energy(self, parameters: Mapping[str, nn.Parameter]) -> Tensor:
        """λ/2 Σ ‖θ − θ₀‖²."""
        terms = [(p - self._anchor(n, p)).square().sum() for n, p in parameters.items()]
        return 0.5 * self.strength * torch.stack(terms).sum()

    @torch.no_grad()
    def add_to(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Add λ(θ − θ₀) to the gradients that are there."""
        for name, p in parameters.items():
            if p.grad is not None:
                p.grad.add_(p - self._anchor(name, p), alpha=self.strength)

    def _anchor(self, name: str, p: Tensor) -> Tensor | float:
        found = self._find(name, p)
        return 0.0 if found is None else found.to(p)

    def _find(self, name: str, p: Tensor) -> Tensor | None:
        if self.anchor is None:
            return None
        if name not in self.anchor:
            raise ValueError(f"the anchor has no tensor for parameter {name!r}")
        found = self.anchor[name]
        if found.shape != p.shape:
            raise ValueError(
                f"the anchor of {name!r} has shape {tuple(found.shape)}; write {tuple(p.shape)}"
            )
        return found
