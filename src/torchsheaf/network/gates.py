"""Continuous gates, nearly all piecewise linear: which piece is selected, and its linear part."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor


class Gate(ABC):
    """A continuous piecewise linear map; a `selection` fixes one linear piece per sample.

    `selects` says that the map only takes entries of z, so that its value is R^z z.
    """

    selects: ClassVar[bool] = False

    @abstractmethod
    def select(self, z: Tensor) -> Tensor:
        """The selection at z."""

    @abstractmethod
    def push(self, selection: Tensor, u: Tensor) -> Tensor:
        """R^z u."""

    @abstractmethod
    def pull(self, selection: Tensor, g: Tensor, z: Tensor) -> Tensor:
        """(R^z)ᵀ g; z is given for its shape only."""

    def kinks(self, z: Tensor) -> list[tuple[float, Tensor]]:
        """Breakpoints of a coordinatewise gate and the rise of its slope at each, like z."""
        return []


@final
@dataclass(frozen=True)
class ScalarGate(Gate):
    """A coordinatewise gate with slopes s_0 … s_m between breakpoints t_1 < … < t_m.

    ReLU is breakpoints (0,), slopes (0, 1). A point on a breakpoint counts as above it: z = 0 is
    active. The selection is the slope itself, so a fractional mask entry is simply a slope in
    between.

    >>> relu = ScalarGate((0.0,), (0.0, 1.0))
    >>> relu.select(torch.tensor([-1.0, 0.0, 2.0])).tolist()
    [0.0, 1.0, 1.0]
    """

    breakpoints: tuple[float, ...]
    slopes: tuple[float, ...]

    def select(self, z: Tensor) -> Tensor:
        if len(self.breakpoints) == 1 and self.slopes == (0.0, 1.0):
            if torch.is_grad_enabled():
                return (z >= self.breakpoints[0]).to(z.dtype)
            # Written straight into the dtype: four times faster than a mask and a cast on CPU.
            return torch.ge(z, self.breakpoints[0], out=torch.empty_like(z))
        table = z.new_tensor(self.slopes)
        edges = z.new_tensor(self.breakpoints)
        return table[torch.bucketize(z.contiguous(), edges, right=True)]

    def push(self, selection: Tensor, u: Tensor) -> Tensor:
        return selection * u

    def pull(self, selection: Tensor, g: Tensor, z: Tensor) -> Tensor:
        return selection * g

    def kinks(self, z: Tensor) -> list[tuple[float, Tensor]]:
        steps = zip(self.breakpoints, self.slopes, self.slopes[1:], strict=False)
        return [(t, z.new_tensor(above - below)) for t, below, above in steps]


@final
@dataclass(frozen=True)
class WindowGate(Gate):
    """Max-pooling: each output takes one input of its window; the selection is its flat index.

    `pool(z)` returns `(maxima, indices)` as `torch.nn.functional.max_pool2d_with_indices` does,
    with indices into the flattened spatial axes; `spatial` is the number of those axes.
    """

    pool: Callable[[Tensor], tuple[Tensor, Tensor]]
    spatial: int
    selects: ClassVar[bool] = True

    def select(self, z: Tensor) -> Tensor:
        return self.pool(z)[1]

    def push(self, selection: Tensor, u: Tensor) -> Tensor:
        lead = u.ndim - self.spatial
        return u.flatten(lead).gather(-1, selection.flatten(lead)).reshape(selection.shape)

    def pull(self, selection: Tensor, g: Tensor, z: Tensor) -> Tensor:
        lead = z.ndim - self.spatial
        flat = torch.zeros_like(z).flatten(lead)
        return flat.scatter_add(-1, selection.flatten(lead), g.flatten(lead)).reshape(z.shape)


@final
@dataclass(frozen=True)
class SlopeGate(Gate):
    """PReLU: slope 1 from zero upwards, a learned slope below (broadcast over the stalk)."""

    below: Tensor

    def select(self, z: Tensor) -> Tensor:
        return torch.where(z >= 0, torch.ones_like(z), self.below.detach().expand_as(z))

    def push(self, selection: Tensor, u: Tensor) -> Tensor:
        return selection * u

    def pull(self, selection: Tensor, g: Tensor, z: Tensor) -> Tensor:
        return selection * g

    def kinks(self, z: Tensor) -> list[tuple[float, Tensor]]:
        return [(0.0, 1 - self.below.detach())]


@final
@dataclass(frozen=True)
class CurvedGate(Gate):
    """A coordinatewise map that is smooth but for kinks: its slope jumps by `rises` at breakpoints.

    No gate of a pattern, since its pieces are not linear; where the energy pulls z onto a kink from
    both sides it slides there as a gate does. The selection is the slope at z, on a breakpoint
    that from above.

    >>> elu = CurvedGate((0.0,), (-1.0,), lambda z: torch.where(z >= 0, 1.0, 2 * z.exp()))
    >>> elu.select(torch.tensor([0.0, 3.0])).tolist()
    [1.0, 1.0]
    """

    breakpoints: tuple[float, ...]
    rises: tuple[float, ...]
    slope: Callable[[Tensor], Tensor]

    def select(self, z: Tensor) -> Tensor:
        return self.slope(z)

    def push(self, selection: Tensor, u: Tensor) -> Tensor:
        return selection * u

    def pull(self, selection: Tensor, g: Tensor, z: Tensor) -> Tensor:
        return selection * g

    def kinks(self, z: Tensor) -> list[tuple[float, Tensor]]:
        return [(t, z.new_tensor(r)) for t, r in zip(self.breakpoints, self.rises, strict=True)]


@final
@dataclass(frozen=True)
class ExtremeGate(Gate):
    """The largest (or least) entry along one axis; the selection is its index there."""

    dims: tuple[int, ...]
    keepdim: bool
    largest: bool
    selects: ClassVar[bool] = True

    def select(self, z: Tensor) -> Tensor:
        index = z.argmax(self.dims[0], True) if self.largest else z.argmin(self.dims[0], True)
        return index if self.keepdim else index.squeeze(self.dims[0])

    def _index(self, selection: Tensor) -> Tensor:
        return selection if self.keepdim else selection.unsqueeze(self.dims[0])

    def push(self, selection: Tensor, u: Tensor) -> Tensor:
        taken = u.gather(self.dims[0], self._index(selection))
        return taken if self.keepdim else taken.squeeze(self.dims[0])

    def pull(self, selection: Tensor, g: Tensor, z: Tensor) -> Tensor:
        spread = g if self.keepdim else g.unsqueeze(self.dims[0])
        return torch.zeros_like(z).scatter_add(self.dims[0], self._index(selection), spread)


GateFactory = Callable[[tuple[Any, ...], dict[str, Any]], Gate]
"""Builds a gate from the resolved arguments of its operation (the activation is args[0])."""

Kinks = Callable[[tuple[Any, ...], Mapping[str, Any]], CurvedGate | None]
"""The kinks of a smooth operation with these arguments, or None."""
