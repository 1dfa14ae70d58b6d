"""How spectrum and discord evolve over training: the dashboard's data."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from torchsheaf.diagnose.discord import DiscordEdge
from torchsheaf.diagnose.findings import Finding


@dataclass(eq=False)
class Evolution:
    """What was seen at each look, in order.

    `steps` counts epochs (or whatever the loop counts). `gap` and `top` are three quartiles over
    samples, (looks, 3); `fiedler` the mean share of the slowest mode per vertex; `discord` is
    (edges, samples, looks); `findings` those of each look. Reading them raises ValueError
    before the first look, and for spectra that were not watched.
    """

    edges: tuple[DiscordEdge, ...] = ()
    steps: list[int] = field(default_factory=list)
    gaps: list[Tensor] = field(default_factory=list)
    tops: list[Tensor] = field(default_factory=list)
    fiedler: list[dict[str, float]] = field(default_factory=list)
    tables: list[Tensor] = field(default_factory=list)
    findings: list[tuple[Finding, ...]] = field(default_factory=list)

    @property
    def gap(self) -> Tensor:
        """Quartiles of λ₁ over samples, (looks, 3); the median is column 1."""
        return torch.stack(self._seen(self.gaps))

    @property
    def top(self) -> Tensor:
        """Quartiles of λ_max over samples, (looks, 3)."""
        return torch.stack(self._seen(self.tops))

    @property
    def discord(self) -> Tensor:
        """‖λ_e‖² as edges × samples × looks, for the same samples at every look."""
        return torch.stack([t.mT for t in self._seen(self.tables)], 2)

    @property
    def failing(self) -> tuple[Finding, ...]:
        """What is wrong at the last look."""
        return tuple(f for f in self.findings[-1] if not f.holds) if self.findings else ()

    def scalars(self) -> dict[str, float]:
        """The last look as named numbers, for a logger."""
        found = {
            "sheaf/gap": float(self.gaps[-1][1]),
            "sheaf/top": float(self.tops[-1][1]),
            "sheaf/condition": float(self.tops[-1][1] / self.gaps[-1][1]),
        } if self.gaps else {}  # fmt: skip
        mean = self._seen(self.tables)[-1].mean(0)
        found |= {f"discord/{e.name}": float(d) for e, d in zip(self.edges, mean, strict=True)}
        found |= {f"finding/{f.name}": f.value for f in self.findings[-1]}
        return found

    def _seen(self, looks: list[Tensor]) -> list[Tensor]:
        if not self.steps:
            raise ValueError("no look has been taken yet; call the monitor first")
        if not looks:
            raise ValueError("no spectrum was watched; write watch(..., spectral=16)")
        return looks

    def log_to(self, writer: Any) -> None:
        """Send the last look to anything with TensorBoard's `add_scalar(tag, value, step)`."""
        for tag, value in self.scalars().items():
            writer.add_scalar(tag, value, self.steps[-1])
