"""A held value: hard or soft, whole stalk or chosen coordinates."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from torchsheaf.arguments import number
from torchsheaf.cochain import is_finite

Coordinates = int | Sequence[int] | Tensor | None


@dataclass(frozen=True, eq=False)
class Pin:
    """Hold coordinates of a vertex at a value.

    `weight=inf` (hard) moves the coordinates to the boundary; a finite weight γ (soft) adds an
    edge to a held vertex, with energy γ/2 ‖c_v[where] − value‖². `where` counts into the flattened
    stalk (an index, several, or a boolean mask of the stalk's shape); None means all of it.
    `value` is a scalar; one stalk, or one number per chosen coordinate; or one of these per sample,
    batch first; `(batch, 1)` gives all chosen coordinates of a sample one value.

    Source: Bosca & Ghrist 2026, section 5.1 (Fig. 3).
    """

    vertex: str
    value: float | Tensor
    where: Coordinates = None
    weight: float = math.inf

    def __post_init__(self) -> None:
        weight = number(
            f"pin on {self.vertex!r}: weight", self.weight, lambda w: w > 0,
            "a positive number, or math.inf for a hard pin",
        )  # fmt: skip
        object.__setattr__(self, "weight", weight)

    def __repr__(self) -> str:
        value, where = (_short(given) for given in (self.value, self.where))
        soft = "" if self.is_hard else f", weight={self.weight:g}"
        place = "" if self.where is None else f", where={where}"
        return f"Pin({self.vertex!r}, {value}{place}{soft})"

    @property
    def is_hard(self) -> bool:
        """Whether the coordinates are held exactly."""
        return math.isinf(self.weight)

    def index(self, shape: tuple[int, ...]) -> Tensor:
        """The chosen coordinates as sorted-as-given flat indices, int64."""
        index = read_coordinates(f"pin on {self.vertex!r}", self.where, shape)
        if index.numel() == 0:
            raise ValueError(f"pin on {self.vertex!r}: `where` chooses no coordinate")
        return index

    def values(self, index: Tensor, shape: tuple[int, ...], batch: int, like: Tensor) -> Tensor:
        """The value at the chosen coordinates, `(batch, len(index))`."""
        try:
            value = torch.as_tensor(self.value, dtype=like.dtype, device=like.device).detach()
        except (TypeError, ValueError, RuntimeError):
            raise TypeError(
                f"pin on {self.vertex!r}: the value is {_short(self.value)}; write a number or a "
                "tensor"
            ) from None
        if not is_finite(value):
            raise ValueError(f"pin on {self.vertex!r}: the value contains NaN or infinity")
        k = index.numel()
        if value.ndim == 0:
            return value.expand(batch, k)
        if self.where is None and tuple(value.shape) == shape:
            return value.flatten().expand(batch, k)
        if self.where is None and tuple(value.shape) == (batch, *shape):
            return value.reshape(batch, k)
        if tuple(value.shape) == (k,):
            return value.expand(batch, k)
        if tuple(value.shape) in ((batch, k), (batch, 1)):
            return value.expand(batch, k)
        if k == 1 and tuple(value.shape) == (batch,):
            return value[:, None]
        wanted = f"a scalar, ({k},) or ({batch}, {k})"
        if self.where is None:
            wanted = f"a scalar, {shape} or ({batch}, {', '.join(map(str, shape))})"
        raise ValueError(
            f"pin on {self.vertex!r}: the value has shape {tuple(value.shape)}; write {wanted}"
        )


def read_coordinates(what: str, where: Coordinates, shape: tuple[int, ...]) -> Tensor:
    """Coordinates of a stalk as flat indices on the CPU, int64, sorted as given; none is a choice.

    None means all of them. Raises TypeError or ValueError, beginning with `what`, for a mask of
    another shape, for coordinates out of range or named twice, and for what is neither.
    """
    dim = math.prod(shape)
    if where is None:
        return torch.arange(dim)
    try:
        given = torch.as_tensor(where).cpu()
    except (TypeError, ValueError, RuntimeError):
        given = torch.tensor(0.5)
    if given.dtype == torch.bool:
        if tuple(given.shape) not in (shape, (dim,)):
            raise ValueError(
                f"{what}: the mask has shape {tuple(given.shape)}; the stalk's is {shape}"
            )
        return given.flatten().nonzero().squeeze(1)
    if given.numel() == 0:
        return torch.arange(0)
    if given.is_floating_point() or given.is_complex():
        raise TypeError(
            f"{what}: `where` is {_short(where)}; write coordinates (integers) or a boolean mask "
            "of the stalk's shape"
        )
    index = given.flatten().to(torch.int64)
    if int(index.min()) < -dim or int(index.max()) >= dim:
        raise ValueError(
            f"{what}: coordinate {index.tolist()} is out of range; the stalk has {dim} coordinates "
            f"(0 … {dim - 1})"
        )
    index = index % dim
    if index.unique().numel() != index.numel():
        raise ValueError(f"{what}: `where` names a coordinate twice")
    return index


def _short(given: object) -> str:
    """As in a message: tensors by their shape."""
    if isinstance(given, Tensor) and given.numel() > 8:
        return f"<{given.dtype} of shape {tuple(given.shape)}>".replace("torch.", "")
    text = repr(given.tolist() if isinstance(given, Tensor) else given)
    return text if len(text) <= 80 else f"{text[:77]}..."
