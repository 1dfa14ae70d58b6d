"""Restriction maps whose kinks are turned over a thin layer: a slide becomes a stiff stretch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from torchsheaf.boundary import Problem
from torchsheaf.boundary.windows import Windows
from torchsheaf.cochain import coordinates
from torchsheaf.network.differential import Differential, Selected
from torchsheaf.sheaf import Coboundary

Geometry = dict[str, Windows | None]
"""By gate operation its windows, which are the same at every state; filled as they are met."""


def selects_among_several(problem: Problem) -> bool:
    """Whether some gate takes one of several entries: a max-pool, an extreme along an axis."""
    network, zeros = problem.sheaf.network, problem.start("zeros")
    return any(
        gate.selects
        for node in network.nodes if node.gates
        for gate, _ in network.gate_operands(node, zeros).values()
    )  # fmt: skip


def regularised(coboundary: Coboundary, layer: float, geometry: Geometry) -> Coboundary:
    """δ with slopes and shares that are continuous in the state at which it was linearised.

    Within `layer` of a breakpoint a gate's slope turns linearly from one piece to the next; entries
    of a pooling window within `layer` of its maximum share it. Elsewhere δ is as it was. Cost:
    elementwise on the gates.
    """

    def part(operation: str, plain: Differential) -> Differential:
        if not isinstance(plain, Selected):
            return plain
        if kinks := plain.gate.kinks(plain.z):
            return replace(plain, selection=_turned(plain, kinks, layer))
        if operation not in geometry:
            geometry[operation] = Windows.of(plain.gate, plain.z)
        windows = geometry[operation]
        return plain if windows is None else Shared.near(plain, windows, layer)

    maps = {
        name: replace(edge, parts={op: part(op, plain) for op, plain in edge.parts.items()})
        for name, edge in coboundary.maps.items()
    }
    return replace(coboundary, maps=maps)


def _turned(plain: Selected, kinks: Sequence[tuple[float, Tensor]], layer: float) -> Tensor:
    z, slope = plain.z, plain.selection
    for t, rise in kinks:
        across = ((z - t + layer) / (2 * layer)).clamp(0, 1)
        slope = slope + rise * (across - (z >= t).to(z.dtype))
    return slope


@final
@dataclass(frozen=True)
class Shared(Differential):
    """y_w = Σ_k s_wk z_wk: the extreme entry of a window, shared by those near it.

    `inside` (W, K) as in `Windows`; `share` (batch, W, K), Σ_k s_wk = 1; z (batch, …) and the
    `shape` (batch, …) of y.
    """

    operand: str
    inside: Tensor
    share: Tensor
    z: Tensor
    shape: torch.Size

    @classmethod
    def near(cls, plain: Selected, windows: Windows, layer: float) -> "Shared":
        """Shares that fall linearly to 0 at the distance `layer` from the extreme entry."""
        seen = windows.sign * plain.z.flatten(1)[:, windows.inside]
        seen = seen.masked_fill(~windows.valid, -torch.inf)
        weight = (1 + (seen - seen.amax(-1, keepdim=True)) / layer).clamp_min(0)
        share = weight / weight.sum(-1, keepdim=True)
        return cls(plain.operand, windows.inside, share, plain.z, plain.selection.shape)

    def push(self, tangents: Mapping[str, Tensor]) -> Tensor:
        taken = self.share * tangents[self.operand].flatten(1)[:, self.inside]
        return taken.sum(-1).reshape(self.shape)

    def pull(self, cotangent: Tensor) -> dict[str, Tensor]:
        given = (self.share * coordinates(cotangent)[..., None]).flatten(1)
        where = self.inside.flatten().expand(len(given), -1)
        out = torch.zeros_like(self.z).flatten(1).scatter_add(1, where, given)
        return {self.operand: out.reshape(self.z.shape)}
