"""Named blocks of tensors, batch first: cochains and the spaces they live in."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from torchsheaf.draws import standard_normal


class Cochain(Mapping[str, Tensor]):
    """One tensor `(batch, *shape)` per named cell, in topological order.

    Arithmetic is block by block. Inner products and norms are per sample, shape `(batch,)`.

    >>> c = Cochain({"a": torch.ones(2, 3), "b": torch.ones(2, 1)})
    >>> bool(((2 * c - c).norm() == 2).all())
    True
    """

    __slots__ = ("_blocks",)

    def __init__(self, blocks: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]]) -> None:
        self._blocks = dict(blocks)

    def __getitem__(self, name: str) -> Tensor:
        try:
            return self._blocks[name]
        except KeyError:
            known = ", ".join(self._blocks)
            raise KeyError(f"no cell named {name!r}; this cochain has: {known}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._blocks)

    def __len__(self) -> int:
        return len(self._blocks)

    def __contains__(self, name: object) -> bool:
        return name in self._blocks

    def __repr__(self) -> str:
        cells = ", ".join(f"{n}: {tuple(t.shape)}" for n, t in self._blocks.items())
        return f"Cochain({cells})"

    @property
    def names(self) -> tuple[str, ...]:
        """Cell names in topological order."""
        return tuple(self._blocks)

    @property
    def batch(self) -> int:
        """Number of samples."""
        return next(iter(self._blocks.values())).shape[0]

    @property
    def dtype(self) -> torch.dtype:
        """Element type of the first block of real numbers; token numbers have one of their own."""
        blocks = self._blocks.values()
        real = (t for t in blocks if t.is_floating_point())
        return next(real, next(iter(blocks))).dtype

    @property
    def device(self) -> torch.device:
        """Device of the blocks."""
        return next(iter(self._blocks.values())).device

    def map(self, function: Callable[[Tensor], Tensor]) -> "Cochain":
        """Apply a function to every block."""
        return Cochain({n: function(t) for n, t in self._blocks.items()})

    def combine(self, other: "Cochain", function: Callable[[Tensor, Tensor], Tensor]) -> "Cochain":
        """Combine two cochains block by block; both must have the same cells."""
        if self._blocks.keys() != other._blocks.keys():
            missing = self._blocks.keys() ^ other._blocks.keys()
            raise ValueError(f"cochains live on different cells: {sorted(missing)} are in one only")
        return Cochain({n: function(t, other._blocks[n]) for n, t in self._blocks.items()})

    def __add__(self, other: "Cochain") -> "Cochain":
        return self.combine(other, torch.add)

    def __sub__(self, other: "Cochain") -> "Cochain":
        return self.combine(other, torch.sub)

    def __neg__(self) -> "Cochain":
        return self.map(torch.neg)

    def __mul__(self, factor: float | Tensor) -> "Cochain":
        if isinstance(factor, Tensor) and factor.ndim == 1:
            return self.map(lambda t: t * per_sample(factor, t))
        return self.map(lambda t: t * factor)

    __rmul__ = __mul__

    def where(self, condition: Tensor, other: "Cochain") -> "Cochain":
        """Per sample: this cochain where `condition` (batch,) holds, else the other one."""
        return self.combine(other, lambda s, o: torch.where(per_sample(condition, s), s, o))

    def dot(self, other: "Cochain") -> Tensor:
        """Inner product per sample, `(batch,)`."""
        return self.combine(other, lambda s, o: coordinates(s * o).sum(1)).total()

    def total(self) -> Tensor:
        """Sum of the blocks, which must have equal shapes (after `dot`, say)."""
        return torch.stack(list(self._blocks.values())).sum(0)

    def square_norm(self) -> Tensor:
        """‖c‖² per sample, `(batch,)`."""
        return self.dot(self)

    def norm(self) -> Tensor:
        """‖c‖ per sample, `(batch,)`."""
        return self.square_norm().sqrt()

    def samples(self, index: Tensor | slice) -> "Cochain":
        """The chosen samples, by integer index, boolean mask or slice."""
        return self.map(lambda t: t[index])

    def select(self, names: Iterable[str]) -> "Cochain":
        """The chosen cells only."""
        return Cochain({n: self[n] for n in names})

    def is_finite(self) -> bool:
        """Whether no block has a NaN or an infinity."""
        return all(is_finite(t) for t in self._blocks.values())

    def first_nonfinite(self) -> str | None:
        """Name of the first cell in topological order that holds a NaN or an infinity."""
        return next((n for n, t in self._blocks.items() if not is_finite(t)), None)


def is_finite(values: Tensor) -> bool:
    """Whether no entry is a NaN or an infinity. Cost: one pass, no temporary, one wait."""
    if not values.is_floating_point() or not values.numel():
        return True
    least, largest = values.detach().aminmax()  # a NaN comes through
    return bool(least.isfinite() & largest.isfinite())


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """Reshape `(batch,)` so that it broadcasts over the stalk axes of `like`."""
    return values.reshape(-1, *([1] * (like.ndim - 1)))


def coordinates(values: Tensor) -> Tensor:
    """`(batch, *shape)` → `(batch, dim)`; a scalar stalk, of shape (), has one coordinate."""
    return values if values.ndim == 2 else values.reshape(values.shape[0], -1)


@dataclass(frozen=True, eq=False)
class Space:
    """A vector space of cochains: ordered named blocks, some restricted to chosen coordinates.

    `shapes[name]` is the stalk's shape without the batch axis; `where[name]`, if present, is a
    boolean tensor of that shape: only its True coordinates count (the others are held). One of
    shape (batch, *shape) chooses for each sample: the space has the coordinates that count in any
    sample, and is zero where they do not count.
    """

    shapes: Mapping[str, tuple[int, ...]]
    where: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """Block names in order."""
        return tuple(self.shapes)

    @cached_property
    def differs(self) -> bool:
        """Whether samples differ in the coordinates that count."""
        return any(m.ndim > len(self.shapes[n]) for n, m in self.where.items())

    @cached_property
    def columns(self) -> dict[str, Tensor]:
        """Per restricted block, the flat coordinates that count in any sample, `(dim,)`."""
        return {n: m.reshape(-1, math.prod(self.shapes[n])).any(0) for n, m in self.where.items()}

    @cached_property
    def dims(self) -> dict[str, int]:
        """Number of coordinates per block."""
        return {
            n: int(self.columns[n].sum()) if n in self.where else math.prod(s)
            for n, s in self.shapes.items()
        }

    @cached_property
    def dim(self) -> int:
        """Number of coordinates in all."""
        return sum(self.dims.values())

    @cached_property
    def slices(self) -> dict[str, slice]:
        """Where each block lies in the flat vector."""
        out, start = {}, 0
        for name, size in self.dims.items():
            out[name] = slice(start, start + size)
            start += size
        return out

    def project(self, c: Mapping[str, Tensor]) -> Cochain:
        """Keep this space's blocks and set coordinates outside `where` to zero."""
        return Cochain(
            {n: c[n] * self.where[n].to(c[n]) if n in self.where else c[n] for n in self.shapes}
        )

    def flatten(self, c: Mapping[str, Tensor]) -> Tensor:
        """Cochain → `(batch, dim)`; a space without blocks takes the batch from any of c's."""
        if not self.shapes:
            return coordinates(next(iter(c.values())))[:, :0]
        blocks = []
        for name in self.shapes:
            flat = coordinates(c[name])
            if name in self.where:
                flat = flat[:, self.columns[name].to(flat.device)]
            blocks.append(flat)
        return torch.cat(blocks, 1)

    def unflatten(self, flat: Tensor) -> Cochain:
        """`(batch, dim)` → cochain, zero outside `where`."""
        blocks = {}
        for name, shape in self.shapes.items():
            part = flat[:, self.slices[name]]
            if name in self.where:
                index = self.columns[name].nonzero().squeeze(1).to(flat.device)
                full = part.new_zeros(part.shape[0], math.prod(shape))
                part = full.index_copy(1, index, part)
            blocks[name] = part.reshape(-1, *shape)
        return self.project(blocks) if self.differs else Cochain(blocks)

    def zeros(self, batch: int, like: Tensor) -> Cochain:
        """The zero cochain."""
        return Cochain({n: like.new_zeros(batch, *s) for n, s in self.shapes.items()})

    def random(self, batch: int, like: Tensor, generator: torch.Generator | None) -> Cochain:
        """Standard normal in every counted coordinate, zero elsewhere."""
        return self.unflatten(
            standard_normal((batch, self.dim), generator, like.dtype, like.device)
        )
