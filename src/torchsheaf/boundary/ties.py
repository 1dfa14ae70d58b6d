"""Ties of max-pooling: which inputs share a maximum, and how a force divides among them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from torchsheaf.network import Gate, WindowGate
from torchsheaf.network.gates import ExtremeGate


@dataclass(frozen=True)
class Windows:
    """The windows of a gate that selects one input each: read, leave out and write by index."""

    gate: WindowGate | ExtremeGate
    sign: float

    @classmethod
    def of(cls, gate: Gate) -> "Windows | None":
        """The windows of a max-pool or of a maximum (or minimum, with sign −1) along an axis."""
        if isinstance(gate, WindowGate):
            return cls(gate, 1.0)
        if isinstance(gate, ExtremeGate):
            return cls(gate, 1.0 if gate.largest else -1.0)
        return None

    def top(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """(extreme values, their indices), each of the output's shape."""
        if isinstance(self.gate, WindowGate):
            return self.gate.pool(z)
        index = self.gate.select(z)
        return self.take(z, index), index

    def take(self, z: Tensor, index: Tensor) -> Tensor:
        """z at one index per window."""
        return self.gate.push(index, z)

    def scatter(self, z: Tensor, index: Tensor, value: Tensor) -> Tensor:
        """A copy of z with `value` written at the indices."""
        if isinstance(self.gate, WindowGate):
            lead = z.ndim - self.gate.spatial
            flat = z.flatten(lead).scatter(-1, index.flatten(lead), value.flatten(lead))
            return flat.reshape(z.shape)
        axis = self.gate.dims[0]
        if not self.gate.keepdim:
            index, value = index.unsqueeze(axis), value.unsqueeze(axis)
        return z.scatter(axis, index, value)

    def members(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Indices of the inputs that attain each window's extreme value, the selected one first.

        Returns `(members, valid)`, both `(k, *output shape)`; `valid` marks the entries that
        count. Found by selecting again with the inputs found so far left out. Where windows
        overlap, an input left out for one window is left out for its neighbours too, so only the
        ties seen this way are reported.
        """
        top, index = self.top(z)
        members, valid = [index], [torch.ones_like(index, dtype=torch.bool)]
        rest = z
        while True:
            gone = torch.full_like(top, -self.sign * torch.inf)
            rest = self.scatter(rest, index, gone)
            value, index = self.top(rest)
            tied = (value == top) & valid[-1]
            if not bool(tied.any()):
                return torch.stack(members), torch.stack(valid)
            members.append(index)
            valid.append(tied)


def divide(own: Tensor, valid: Tensor, force: Tensor) -> Tensor:
    """Multipliers λ ≥ 0, Σλ = force, over the k tied members that bring own + λ nearest to 0.

    `own` (k, …) are the derivatives without the window's pull, `force` (…) > 0 its pull on the
    maximum: the projection of −own onto a simplex. Reference: Held, Wolfe & Crowder 1974.

    >>> own = torch.tensor([[-1.0], [-2.0]])
    >>> share = divide(own, torch.ones_like(own, dtype=torch.bool), torch.tensor([3.0]))
    >>> bool((own + share).abs().max() == 0)
    True
    """
    wanted = torch.where(valid, -own, -torch.inf)
    ordered = wanted.sort(0, descending=True).values
    count = torch.arange(1, own.shape[0] + 1, device=own.device, dtype=own.dtype)
    count = count.reshape(-1, *([1] * force.ndim))
    excess = torch.where(ordered.isfinite(), ordered, 0).cumsum(0) - force
    threshold = excess / count
    active = ordered > threshold
    last = active.sum(0, keepdim=True).clamp_min(1) - 1
    level = threshold.gather(0, last)
    return torch.where(valid, (wanted - level).clamp_min(0), 0)
