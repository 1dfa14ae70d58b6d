"""Ties of max-pooling: which inputs share a maximum, and how a force divides among them."""

from dataclasses import dataclass, field
from itertools import accumulate

import torch
from torch import Tensor

from torchsheaf.network import Gate, WindowGate
from torchsheaf.network.gates import ExtremeGate

MAX_SWEEPS = 2000
"""Projected gradient steps of a division where windows overlap."""


@dataclass(frozen=True)
class Windows:
    """The windows of a gate that selects one input each: W of them, at most K inputs in each.

    `inside` (W, K) holds positions in one sample's flattened operand, 0 where `valid` is False;
    `sign` is −1 where the least entry is taken. Windows may overlap.
    """

    inside: Tensor
    valid: Tensor
    sign: float
    spatial: int | None = field(default=None)

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
            return cls(inside, valid, 1.0 if gate.largest else -1.0)
        return None

    def read(self, z: Tensor) -> Tensor:
        """The windows' entries of an operand, `(batch, W, K)`."""
        return z.flatten(1)[:, self.inside]

    def tied(self, z: Tensor) -> Tensor:
        """Which entries attain their window's extreme value, `(batch, W, K)`."""
        seen = (self.sign * self.read(z)).masked_fill(~self.valid, -torch.inf)
        return (seen == seen.amax(-1, keepdim=True)) & self.valid

    def position(self, selection: Tensor) -> Tensor:
        """Positions in the flattened operand of what a gate selects, `(batch, W)`."""
        chosen = selection.flatten(1)
        if self.spatial is None:
            return self.inside.expand(chosen.shape[0], -1, -1).gather(2, chosen[..., None])[..., 0]
        return chosen + (self.inside[:, 0] // self.spatial) * self.spatial

    def selection(self, member: Tensor, like: Tensor) -> Tensor:
        """The gate's selection that takes entry `member` (batch, W) of each window."""
        if self.spatial is None:
            return member.reshape(like.shape)
        taken = self.inside.expand(member.shape[0], -1, -1).gather(2, member[..., None])[..., 0]
        return (taken % self.spatial).reshape(like.shape)

    def scatter(self, z: Tensor, share: Tensor) -> Tensor:
        """Σ of what every window gives its entries, in the operand's shape."""
        where = self.inside.flatten().expand(z.shape[0], -1)
        given = share.masked_fill(~self.valid, 0).flatten(1)
        return torch.zeros_like(z).flatten(1).scatter_add(1, where, given).reshape(z.shape)


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


def project_to_simplex(wanted: Tensor, valid: Tensor, total: Tensor) -> Tensor:
    """The nearest λ ≥ 0 with Σλ = total to `wanted`, per row. Held, Wolfe & Crowder 1974.

    `wanted` (…, k), `valid` (…, k) the entries that may be positive, `total` (…) > 0.

    >>> wanted = torch.tensor([1.0, 2.0])
    >>> share = project_to_simplex(wanted, torch.tensor([True, True]), torch.tensor(3.0))
    >>> bool((share == wanted).all())
    True
    """
    wanted = wanted.masked_fill(~valid, -torch.inf)
    ordered = wanted.sort(-1, descending=True).values
    count = torch.arange(1, wanted.shape[-1] + 1, device=wanted.device, dtype=wanted.dtype)
    excess = torch.where(ordered.isfinite(), ordered, 0).cumsum(-1) - total[..., None]
    threshold = excess / count
    last = (ordered > threshold).sum(-1, keepdim=True).clamp_min(1) - 1
    level = threshold.gather(-1, last)
    return torch.where(valid, (wanted - level).clamp_min(0), 0)


def settle(
    total: Tensor, windows: Windows, selected: Tensor, tied: Tensor, pull: Tensor,
    *, turn: Tensor | int = 0, tol: float | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """How tied entries share the pulls on their maxima: (shares, what they replace).

    `total` is the derivative of E at the operand, signed like the windows, when the `selected`
    entries take all of `pull` (batch, W). Downward pulls are divided (`divide`). An upward one,
    a downward kink, goes as a whole to the entry that it brings nearest to rest (to the one
    after it at `turn` 1, and so on, per sample); it is given away first, since the division must
    know it. Both results are `(batch, W, K)`, 0 without ties.
    """
    several = ((tied.sum(-1) > 1) & (pull != 0))[..., None]
    given = windows.inside == windows.position(selected)[..., None]
    given = torch.where(given & tied & several, pull[..., None], 0)
    own = total - windows.scatter(total, given)
    up = several & (pull < 0)[..., None]
    order = windows.read(own).masked_fill(~tied, -torch.inf).argsort(-1, descending=True)
    turns = torch.as_tensor(turn, device=total.device).expand(total.shape[0])[:, None]
    taker = order.gather(2, (turns % tied.sum(-1).clamp_min(1))[..., None])
    alone = torch.zeros_like(given).scatter(2, taker, 1) * pull[..., None]
    alone = torch.where(up, alone, 0)
    own = own + windows.scatter(own, alone)
    share = divide(own.flatten(1), windows, tied & several & ~up, pull.clamp_min(0), tol=tol)
    return share + alone, given


def choices(tied: Tensor, pull: Tensor) -> Tensor:
    """Per sample, among how many entries an upward pull may choose at most; 1 without ties."""
    return torch.where(pull < 0, tied.sum(-1), 1).amax(-1)


def divide(
    own: Tensor, windows: Windows, tied: Tensor, force: Tensor, *, tol: float | None = None
) -> Tensor:
    """Multipliers λ_wk ≥ 0, Σ_k λ_wk = force_w, that bring own + Σ_w λ_w nearest to 0.

    `own` (batch, N) are the derivatives without the windows' pulls, `tied` (batch, W, K) who may
    take a share, `force` (batch, W) ≥ 0 the pulls on the maxima; returns λ `(batch, W, K)`. Where
    no two windows share a tied entry this is one projection onto simplices; else projected
    gradients with momentum and restarts (O'Donoghue & Candès 2015) until a step changes no λ by
    more than `tol` (default: 100 unit roundoffs) of the largest force.
    """
    share = torch.where(tied, force[..., None], 0)
    several = (tied.sum(-1) > 1) & (force > 0)
    if not bool(several.any()):
        return share
    fixed = own + windows.scatter(own, torch.where(several[..., None], 0, share))
    sample, window = several.nonzero(as_tuple=True)
    valid, total = tied[sample, window], force[sample, window]
    where = windows.inside[window] + own.shape[1] * sample[:, None]
    flat = fixed.flatten()

    cover = torch.zeros_like(flat).scatter_add(0, where.flatten(), valid.flatten().to(own.dtype))
    most = float(cover.max())
    rows = project_to_simplex(-flat[where], valid, total)
    if most > 1:
        tol = 100 * torch.finfo(own.dtype).eps if tol is None else tol
        rows = _accelerate(rows, flat, where, valid, total, most, tol * float(total.max()))
    share[sample, window] = rows
    return share


def _accelerate(
    rows: Tensor, own: Tensor, where: Tensor, valid: Tensor, total: Tensor, cover: float,
    small: float,
) -> Tensor:  # fmt: skip
    """Windows `where` (R, k) of `own` that share entries, at most `cover` of them one entry."""
    ahead, weight = rows, 1.0
    for _ in range(MAX_SWEEPS):
        slope = own.scatter_add(0, where.flatten(), ahead.flatten())[where]
        fresh = project_to_simplex(ahead - slope / cover, valid, total)
        step = fresh - ahead
        if float(step.abs().max()) <= small:
            return fresh
        if float((step * (fresh - rows)).sum()) < 0:
            weight = 1.0
        nearer = 0.5 * (1 + (1 + 4 * weight * weight) ** 0.5)
        ahead = fresh + (weight - 1) / nearer * (fresh - rows)
        rows, weight = fresh, nearer
    return rows
