"""The windows of max-pooling and of extremes along an axis: which entries each one reads."""

from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from torchsheaf.cochain import coordinates
from torchsheaf.network import Gate, WindowGate
from torchsheaf.network.gates import ExtremeGate


@dataclass(frozen=True)
class Windows:
    """The windows of a gate that selects one input each: W of them, at most K inputs in each.

    `inside` (W, K) holds positions in one sample's flattened operand, 0 where `valid` is False;
    `sign` is −1 where the least entry is taken; `spatial` is the size of a pooled channel, None
    for an extreme along an axis. Windows may overlap.
    """

    inside: Tensor
    valid: Tensor
    sign: float
    spatial: int | None

    @classmethod
    def of(cls, gate: Gate, z: Tensor) -> "Windows | None":
        """The windows of a max-pool or of a maximum (or minimum, with sign −1) along an axis.

        A pooling window is a box: which entries of an axis it reads is found by pooling planes.
        """
        if isinstance(gate, WindowGate):
            axes = [_axis_members(gate, z, axis) for axis in range(-gate.spatial, 0)]
            inside, valid = _boxes(axes, z.shape[z.ndim - gate.spatial :])
            size = z.shape[z.ndim - gate.spatial :].numel()
            lead = z.shape[1 : z.ndim - gate.spatial].numel()
            shift = size * torch.arange(lead, device=z.device)[:, None, None]
            inside = (inside + shift).flatten(0, 1)
            valid = valid.expand(lead, *valid.shape).flatten(0, 1)
            return cls(inside.where(valid, 0), valid, 1.0, size)
        if isinstance(gate, ExtremeGate):
            index = torch.arange(z[0].numel(), device=z.device).reshape(1, *z.shape[1:])
            inside = index.movedim(gate.dims[0], -1).flatten(0, -2)
            valid = torch.ones_like(inside, dtype=torch.bool)
            return cls(inside, valid, 1.0 if gate.largest else -1.0, None)
        return None

    def tied(self, z: Tensor) -> Tensor:
        """Which entries attain their window's extreme value, `(batch, W, K)`."""
        seen = (self.sign * z.flatten(1)[:, self.inside]).masked_fill(~self.valid, -torch.inf)
        return (seen == seen.amax(-1, keepdim=True)) & self.valid

    def chosen(self, selection: Tensor) -> Tensor:
        """Which entry a gate's selection takes, as a mask `(batch, W, K)`."""
        if self.spatial is None:
            entries = torch.arange(self.inside.shape[1], device=self.inside.device)
            return coordinates(selection)[..., None] == entries
        position = selection.flatten(1) + self.inside[:, 0] // self.spatial * self.spatial
        return (self.inside == position[..., None]) & self.valid

    def selection(self, member: Tensor, like: Tensor) -> Tensor:
        """The gate's selection that takes entry `member` (batch, W) of each window."""
        if self.spatial is None:
            return member.reshape(like.shape)
        taken = self.inside.expand(member.shape[0], -1, -1).gather(2, member[..., None])[..., 0]
        return (taken % self.spatial).reshape(like.shape)


def _axis_members(gate: WindowGate, z: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """(out, k) entries of one axis that each output along it reads, and which of them count."""
    sizes = z.shape[z.ndim - gate.spatial :]
    n = sizes[axis]
    shape = [1] * gate.spatial
    shape[axis] = n
    planes = torch.eye(n, dtype=z.dtype, device=z.device).reshape(n, 1, *shape)
    pooled = gate.pool(planes.expand(n, 1, *sizes).contiguous())[0]
    reads = pooled.movedim(axis, -1).flatten(1, -2).amax(1).mT > 0
    order = reads.to(torch.uint8).argsort(dim=1, descending=True, stable=True)
    width = int(reads.sum(1).max())
    return order[:, :width], reads.gather(1, order[:, :width])


def _boxes(axes: list[tuple[Tensor, Tensor]], sizes: torch.Size) -> tuple[Tensor, Tensor]:
    """Products of the axes' entries: (W, K) positions in the flattened axes."""
    strides = list(accumulate([*sizes[:0:-1]], lambda a, b: a * b, initial=1))[::-1]
    inside, valid = torch.zeros(1, 1, dtype=torch.long, device=axes[0][0].device), None
    for (entries, counts), stride in zip(axes, strides, strict=True):
        w, k = inside.shape
        inside = (inside[:, None, :, None] + stride * entries[None, :, None, :]).reshape(
            w * entries.shape[0], k * entries.shape[1]
        )
        both = counts if valid is None else valid[:, None, :, None] & counts[None, :, None, :]
        valid = both.reshape(inside.shape)
    assert valid is not None
    return inside, valid
