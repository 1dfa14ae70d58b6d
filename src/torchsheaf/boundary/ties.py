"""Ties of max-pooling: which entries share a maximum, and how a force divides among them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from torchsheaf.boundary.windows import Windows
from torchsheaf.cochain import coordinates
from torchsheaf.network import Composition

MAX_SWEEPS = 2000
"""Projected gradient steps of a division where windows overlap."""
KNUTH = 2654435761
"""Odd, hence k ↦ k · KNUTH mod 2³² takes no value twice (Knuth, TAOCP 3, 6.4)."""


@dataclass(frozen=True)
class Maxima:
    """Maxima of one block of N coordinates, W windows of at most K entries: who ties, the pulls.

    `inside` (W, K) are coordinates of the block where `valid`; `sign` (W, 1) is −1 for minima;
    `tied` and `selected` (batch, W, K) say which entries attain the maximum and which one the
    gate took; `pull` (batch, W) is positive where E pulls the maximum down (the minimum up);
    `rank` (W, K) orders a block's coordinates as if at random, always in the same way.
    """

    inside: Tensor
    valid: Tensor
    sign: Tensor
    tied: Tensor
    selected: Tensor
    pull: Tensor
    rank: Tensor

    @classmethod
    def of(
        cls, windows: Windows, z: Tensor, selection: Tensor, force: Tensor,
        numbers: Tensor | None, first: int = 0,
    ) -> "Maxima":  # fmt: skip
        """Those of one gate with operand z; `numbers` (N,) names the coordinates it reads.

        `force` is the derivative of E at the gate's output, `first` where the block begins.
        """
        inside = windows.inside if numbers is None else numbers[windows.inside]
        sign = force.new_full((len(inside), 1), windows.sign)
        tied, selected = windows.tied(z), windows.chosen(selection)
        pull = windows.sign * coordinates(force)
        rank = inside * KNUTH % 2**32
        return cls(inside + first, windows.valid, sign, tied, selected, pull, rank)

    @classmethod
    def beside(cls, parts: "Sequence[Maxima]") -> "Maxima":
        """Several gates that read one block, as one."""
        if len(parts) == 1:
            return parts[0]
        width = max(p.inside.shape[1] for p in parts)

        return cls(
            torch.cat([widened(p.inside, width) for p in parts]),
            torch.cat([widened(p.valid, width) for p in parts]),
            torch.cat([p.sign for p in parts]),
            torch.cat([widened(p.tied, width) for p in parts], 1),
            torch.cat([widened(p.selected, width) for p in parts], 1),
            torch.cat([p.pull for p in parts], 1),
            torch.cat([widened(p.rank, width) for p in parts]),
        )

    @property
    def several(self) -> Tensor:
        """Windows with a tie and a pull on it, `(batch, W, 1)`."""
        return ((self.tied.sum(-1) > 1) & (self.pull != 0))[..., None]

    @property
    def choices(self) -> Tensor:
        """Per sample, how many turns there are in `shares`; 1 where no upward pull has a choice."""
        return 1 + self._turns[1]

    @cached_property
    def _turns(self) -> tuple[Tensor, Tensor]:
        """Takers (turns, batch, W) of the upward pulls, and how many turns each sample has.

        In its turn an entry takes the pulls of all windows in which it ties: windows that overlap
        choose it together. Entries that have had their turn give way to those that have not.
        """
        members = self.tied & self.several & (self.pull < 0)[..., None]
        batch, n = members.shape[0], int(self.inside.max()) + 1
        where = self.inside.flatten().expand(batch, -1)

        def anywhere(mask: Tensor) -> Tensor:
            found = torch.zeros(batch, n, dtype=torch.uint8, device=mask.device)
            return found.scatter_reduce(1, where, mask.flatten(1).byte(), "amax").bool()

        waiting, takers = anywhere(members), []
        turns = torch.zeros(batch, dtype=torch.long, device=members.device)
        while bool(waiting.any()):
            first = self.rank + 2**32 * waiting[:, self.inside].long()
            first = torch.where(members, first, -1)
            takers.append(first.argmax(-1))
            turns += waiting.any(1)
            # the entry that ranks highest is left out nowhere, so every round ends some waiting
            waiting = waiting & anywhere(members & (first < first.amax(-1, keepdim=True)))
        return torch.stack([torch.zeros_like(members[..., 0], dtype=torch.long), *takers]), turns

    def gather(self, block: Tensor) -> Tensor:
        """Coordinates (batch, N) as the windows see them, signed, `(batch, W, K)`."""
        return self.sign * block[:, self.inside]

    def scatter(self, block: Tensor, share: Tensor) -> Tensor:
        """Σ of what the windows give their entries, like `block` (batch, N)."""
        where = self.inside.flatten().expand(block.shape[0], -1)
        return torch.zeros_like(block).scatter_add(1, where, (self.sign * share).flatten(1))

    def shares(
        self, total: Tensor, fixed: Tensor, *, turn: Tensor | int = 0, tol: float | None = None
    ) -> tuple[Tensor, Tensor]:
        """How tied entries share the pulls on their maxima: (shares, what they replace).

        `total` (batch, N) is the derivative of E when the selected entries take all; `fixed`
        (batch, N) marks coordinates that cannot move, whose derivative does not count. Downward
        pulls are divided (`divide`). An upward one, a downward kink, goes as a whole to the entry
        that it brings nearest to rest, at `turn` t (per sample) to an entry whose turn it is; it is
        given away first, since the division must know it. Both are `(batch, W, K)`, 0 where
        nothing ties.
        """
        several, pull = self.several, self.pull[..., None]
        given = torch.where(self.selected & several, pull, 0)
        own = total - self.scatter(total, given)
        taker = self.gather(own).masked_fill(~self.tied, -torch.inf).argmax(-1)
        turns = torch.as_tensor(turn, device=total.device).expand(total.shape[0])
        if bool(turns.any()):
            chosen = self._turns[0][turns, torch.arange(len(turns), device=turns.device)]
            taker = torch.where(turns[:, None] == 0, taker, chosen)
        alone = torch.zeros_like(given).scatter(2, taker[..., None], 1) * pull
        alone = torch.where(several & (pull < 0), alone, 0)
        own = own + self.scatter(own, alone)
        return alone + self.divide(own, fixed, several & (pull > 0), tol=tol), given

    def divide(
        self, own: Tensor, fixed: Tensor, which: Tensor, *, tol: float | None = None
    ) -> Tensor:
        """Shares λ_wk ≥ 0, Σ_k λ_wk = pull_w, that bring own + Σ_w λ_w nearest to 0 off `fixed`.

        `own` (batch, N) are the derivatives without the pulls of the windows `which`
        (batch, W, 1); returns λ `(batch, W, K)`. Where no two of them share a tied entry, and none
        is fixed, this is one projection onto simplices; else projected gradients with momentum and
        restarts (O'Donoghue & Candès 2015) until a step changes no λ by more than `tol` (default:
        100 unit roundoffs) of the largest pull; after `MAX_SWEEPS` the shares reached so far.
        """
        share = torch.zeros_like(self.tied, dtype=own.dtype)
        sample, window = which[..., 0].nonzero(as_tuple=True)
        if not len(sample):
            return share
        rows = _Rows(
            own.flatten(), fixed.flatten(), self.inside[window] + own.shape[1] * sample[:, None],
            self.sign[window], self.tied[sample, window], self.pull[sample, window],
        )  # fmt: skip
        tol = 100 * torch.finfo(own.dtype).eps if tol is None else tol
        share[sample, window] = rows.divide(tol)
        return share


@dataclass(frozen=True)
class _Rows:
    """The tied windows alone: entries `where` (R, K) of the flattened derivatives `own`."""

    own: Tensor
    fixed: Tensor
    where: Tensor
    sign: Tensor
    valid: Tensor
    total: Tensor

    def divide(self, tol: float) -> Tensor:
        count = self.valid.to(self.own.dtype).flatten()
        cover = float(torch.zeros_like(self.own).scatter_add(0, self.where.flatten(), count).max())
        zero = torch.zeros_like(self.own[self.where])
        rows = project_to_simplex(-self.slope(zero), self.valid, self.total)
        if cover == 1 and not bool((self.fixed[self.where] & self.valid).any()):
            return rows
        return self.accelerate(rows, cover, tol * float(self.total.max()))

    def slope(self, rows: Tensor) -> Tensor:
        """Derivatives at the entries when they carry `rows`."""
        carried = self.own.scatter_add(0, self.where.flatten(), (self.sign * rows).flatten())
        return self.sign * carried.masked_fill(self.fixed, 0)[self.where]

    def accelerate(self, rows: Tensor, cover: float, small: float) -> Tensor:
        """Projected gradients from `rows`; at most `cover` windows share an entry."""
        ahead, weight = rows, 1.0
        for _ in range(MAX_SWEEPS):
            fresh = project_to_simplex(ahead - self.slope(ahead) / cover, self.valid, self.total)
            step = fresh - ahead
            if float(step.abs().max()) <= small:
                return fresh
            if float((step * (fresh - rows)).sum()) < 0:
                weight = 1.0
            nearer = 0.5 * (1 + (1 + 4 * weight * weight) ** 0.5)
            ahead = fresh + (weight - 1) / nearer * (fresh - rows)
            rows, weight = fresh, nearer
        return rows


def widened(entries: Tensor, width: int) -> Tensor:
    """Windows with `width` entries each; the new ones are 0."""
    return torch.nn.functional.pad(entries, (0, width - entries.shape[-1]))


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


def coordinates_read(
    maps: Composition, operand: str, z: Tensor, vertices: Mapping[str, tuple[int, ...]]
) -> tuple[str, Tensor] | None:
    """(vertex, its coordinate at each entry of the operand); None if z is no plain relabelling.

    `vertices` are the shapes of the vertices that may move.
    """
    if len(maps.parents) != 1 or maps.parents[0] not in vertices:
        return None
    (parent,) = maps.parents
    shape = torch.Size(vertices[parent])
    numbers = torch.arange(shape.numel(), device=z.device).to(torch.float64).reshape(1, *shape)
    seen = maps.push_into(operand, {parent: numbers.to(z.dtype).expand(z.shape[0], *shape)})
    whole = seen.round()
    if seen.shape != z.shape or not bool((whole == seen).all()):
        return None
    return parent, coordinates(whole[:1])[0].long()
