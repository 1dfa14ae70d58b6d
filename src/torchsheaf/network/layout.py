"""Where the batch lies in a traced value, and the relabellings to and from batch first.

The batch axis may stand anywhere, or be merged with others (`view(-1, n)`). Shapes alone do not
say which part of a merged axis counts samples, so the operation is asked: one sample of its
parents is made NaN, and the entries that turn NaN show where that sample lies.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch import Tensor

from torchsheaf.draws import standard_normal
from torchsheaf.network.operation import Operation, Value, evaluate
from torchsheaf.network.rules import Kind, Rule

PROBE_BATCH = 3
"""Samples in the probe of a dynamic batch: a prime that few stalks are a multiple of."""

Stalk = tuple[tuple[int, ...], torch.dtype, torch.device]
"""A vertex's shape without the batch axis, its element type, and the device it was traced on."""


@dataclass(frozen=True)
class Layout:
    """The batch is the middle factor of axis `axis`, of size outer · batch · inner."""

    axis: int
    outer: int
    inner: int

    @property
    def is_batch_first(self) -> bool:
        """Whether no relabelling is needed."""
        return (self.axis, self.outer, self.inner) == (0, 1, 1)

    def shape(self, sizes: list[Any]) -> tuple[int, ...]:
        """The stalk's shape: the other axes, with what the batch was merged with split off."""
        merged = [n for n in (self.outer, self.inner) if n > 1]
        return tuple(map(int, [*sizes[: self.axis], *merged, *sizes[self.axis + 1 :]]))

    def forth(self, y: Tensor) -> Tensor:
        """From the traced layout to batch first."""
        parts = [n for n in (self.outer, -1, self.inner) if n != 1]
        split = y.unflatten(self.axis, parts) if len(parts) > 1 else y
        return split.movedim(self.axis + int(self.outer > 1), 0)

    def back(self, c: Tensor) -> Tensor:
        """From batch first to the traced layout."""
        moved = c.movedim(0, self.axis + int(self.outer > 1))
        last = self.axis + int(self.outer > 1) + int(self.inner > 1)
        return moved.flatten(self.axis, last) if last > self.axis else moved

    def moved(self, axis: int) -> int:
        """Where another axis of the traced layout stands in batch first."""
        split = int(self.outer > 1) + int(self.inner > 1)
        return axis + 1 if axis < self.axis else axis + split

    def operations(self, vertex: str, traced: str) -> tuple[Operation, Operation]:
        """The relabelling that ends a vertex's map, and the one that begins its uses."""
        rule = Rule(Kind.RESHAPE)
        forth = Operation(f"{traced}:in", self.forth, (Value(traced),), {}, (traced,), rule)
        back = Operation(f"{traced}:out", self.back, (Value(vertex),), {}, (vertex,), rule)
        return forth, back


def candidates(sizes: list[Any], batch: int | sympy.Symbol) -> Iterator[Layout]:
    """Every way in which the batch can lie in a value of these (symbolic) sizes."""
    for axis, size in enumerate(sizes):
        quotient = sympy.sympify(size) / sympy.sympify(batch)
        if not quotient.is_Integer or (isinstance(batch, int) and int(quotient) == 0):
            continue
        merged = int(quotient)
        for inner in range(1, merged + 1):
            if merged % inner == 0:
                yield Layout(axis, merged // inner, inner)


def probe(
    operations: tuple[Operation, ...],
    parents: Mapping[str, Stalk],
    state: Callable[[str], Tensor],
    batch: int,
) -> Tensor:
    """Which entries of a map's value depend on sample 0, as a boolean tensor in traced layout."""
    values: list[dict[str, Tensor]] = [{}, {}]
    generator = torch.Generator().manual_seed(0)
    for name, (shape, dtype, device) in parents.items():
        if dtype.is_floating_point:
            x = standard_normal((batch, *shape), generator, torch.float64, device).to(dtype)
            y = x.clone()
            y[0] = torch.nan
        else:
            x = torch.zeros(batch, *shape, dtype=dtype, device=device)
            y = x.clone()
            y[0] = 1
        values[0][name], values[1][name] = x, y
    with torch.no_grad():
        last = operations[-1].name
        before, after = (evaluate(operations, v, state, batch)[last] for v in values)
    return after.isnan() | (after != before)


def settle(found: list[Layout], touched: Tensor, batch: int) -> Layout | None:
    """The layout in which exactly the touched entries belong to sample 0, or None."""
    best: Layout | None = None
    most = 0.0
    for layout in found:
        own = layout.forth(touched)
        if own.shape[0] != batch or bool(own[1:].any()) or not bool(own[0].any()):
            continue
        share = float(own[0].double().mean())
        if share > most:
            best, most = layout, share
    return best
