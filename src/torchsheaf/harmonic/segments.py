"""The segments along which a line search looks: where samples are, and the steps they try."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from torchsheaf.harmonic.reduced_energy import Forces, forces
from torchsheaf.harmonic.reduction import Reduction


@dataclass(frozen=True)
class Segments:
    """From (C, M) to (C + dC, M + dM), one per sample; all maps affine, so that M is linear in t.

    `index` says which samples these are; `energy` and `slope` are φ(0) and φ′(0).
    """

    index: Tensor
    part: Reduction
    c: Tensor
    m: Tensor
    dc: Tensor
    dm: Tensor
    energy: Tensor
    slope: Tensor

    def samples(self, keep: Tensor) -> "Segments":
        """The samples of a mask; no copy where it chooses all."""
        chosen = keep.nonzero().squeeze(1)
        if len(chosen) == len(keep):
            return self
        columns = (self.index, self.c, self.m, self.dc, self.dm, self.energy, self.slope)
        index, *rest = (t.index_select(0, chosen) for t in columns)
        part = replace(self.part, holds=self.part.holds.samples(chosen))
        return Segments(index, part, *rest)

    def point(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        """C and M after t of the way."""
        if isinstance(t, float):
            return torch.add(self.c, self.dc, alpha=t), torch.add(self.m, self.dm, alpha=t)
        return torch.addcmul(self.c, t, self.dc), torch.addcmul(self.m, t, self.dm)

    def at(self, t: Tensor | float) -> Forces:
        """Energy and forces there. Cost: elementwise, no sweep."""
        return forces(self.part, *self.point(t))

    def slopes(self, there: Forces) -> tuple[Tensor, Tensor]:
        """φ and φ′ there."""
        return there.energy, there.slope(self.dc, self.dm)
