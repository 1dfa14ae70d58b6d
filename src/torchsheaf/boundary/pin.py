"""A held value: hard or soft, whole stalk or chosen coordinates, the same in all samples or not."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from torchsheaf.arguments import number
from torchsheaf.cochain import is_finite

Coordinates = int | Sequence[int] | Tensor | None
Weight = float | Tensor
"""One number, or one per coordinate, `(1 or batch, coordinates)`."""


@dataclass(frozen=True, eq=False)
class Place:
    """Chosen coordinates of a stalk: flat indices `index` (k,), int64 on the CPU, as given.

    `chosen` (batch, k) says which of them each sample chooses; None: every sample all of them.
    """

    index: Tensor
    chosen: Tensor | None = None

    def mask(self, dim: int) -> Tensor:
        """As booleans over the flattened stalk, `(1 or batch, dim)`."""
        chosen = self.chosen
        if chosen is None or bool(chosen.all()):
            chosen = torch.ones(1, len(self.index), dtype=torch.bool)
        out = torch.zeros(len(chosen), dim, dtype=torch.bool)
        out[:, self.index] = chosen
        return out

    def samples(self, index: Tensor) -> "Place":
        """That of the chosen samples."""
        return self if self.chosen is None else Place(self.index, self.chosen[index.cpu()])


@dataclass(frozen=True, eq=False)
class Pin:
    """Hold coordinates of a vertex at a value.

    `weight=inf` (hard) moves the coordinates to the boundary; a finite weight γ (soft) adds an
    edge to a held vertex, with energy γ/2 ‖c_v[where] − value‖². `where` counts into the flattened
    stalk (an index, several, or a boolean mask of the stalk's shape); None means all of it.
    `value` is a scalar; one stalk, or one number per chosen coordinate; or one of these per sample,
    batch first; `(batch, 1)` gives all chosen coordinates of a sample one value. A finite `weight`
    may be a tensor of any of these shapes too: ½ Σ γ_i (c_v[i] − value_i)², 0 for no pull.

    A boolean `where` of shape (batch, *stalk shape) chooses for each sample on its own; `value`
    and `weight` are then scalars, `(batch, 1)`, or of the stalk's shape, per sample or not.

    Raises TypeError or ValueError that name the pin, here or where it is used (`Problem.pin`).

    >>> import torchsheaf as ts
    >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1))
    >>> x = torch.randn(4, 2).double()
    >>> problem = ts.hold(ts.encode(net.double(), x), x)
    >>> some = torch.tensor([[True], [True], [False], [False]])
    >>> found = ts.harmonic_extension(problem.pin(Pin("output", 1.0, where=some)))
    >>> bool(torch.allclose(found.output[some], torch.ones(2).double()))
    True
    >>> bool(torch.allclose(found.output[~some], net(x)[~some]))
    True

    Source: Bosca & Ghrist 2026, section 5.1 (Fig. 3).
    """

    vertex: str
    value: float | Tensor
    where: Coordinates = None
    weight: float | Tensor = math.inf

    def __post_init__(self) -> None:
        what = f"pin on {self.vertex!r}: weight"
        if isinstance(self.weight, Tensor) and self.weight.ndim:
            _require_weights(what, self.weight)
            return
        weight = number(
            what,
            self.weight,
            lambda w: w > 0,
            "a positive number, math.inf for a hard pin, or a tensor",
        )
        object.__setattr__(self, "weight", weight)

    def __repr__(self) -> str:
        value, where = (_short(given) for given in (self.value, self.where))
        weight = _short(self.weight) if isinstance(self.weight, Tensor) else f"{self.weight:g}"
        soft = "" if self.is_hard else f", weight={weight}"
        place = "" if self.where is None else f", where={where}"
        return f"Pin({self.vertex!r}, {value}{place}{soft})"

    @property
    def is_hard(self) -> bool:
        """Whether the coordinates are held exactly."""
        return isinstance(self.weight, float) and math.isinf(self.weight)

    def place(self, shape: tuple[int, ...], batch: int) -> Place:
        """The chosen coordinates."""
        place = read_place(f"pin on {self.vertex!r}", self.where, shape, batch)
        if place.index.numel() == 0:
            raise ValueError(f"pin on {self.vertex!r}: `where` chooses no coordinate")
        return place

    def values(self, place: Place, shape: tuple[int, ...], batch: int, like: Tensor) -> Tensor:
        """The value at the chosen coordinates, `(batch, k)`; 0 where a sample chooses none."""
        try:
            value = torch.as_tensor(self.value, dtype=like.dtype, device=like.device).detach()
        except (TypeError, ValueError, RuntimeError):
            raise TypeError(
                f"pin on {self.vertex!r}: the value is {_short(self.value)}; write a number or a "
                "tensor"
            ) from None
        value = self._spread("value", value, place, shape, batch)
        if place.chosen is not None:
            value = torch.where(place.chosen.to(value.device), value, 0)
        if not is_finite(value):
            raise ValueError(f"pin on {self.vertex!r}: the value contains NaN or infinity")
        return value.expand(batch, -1)

    def weights(self, place: Place, shape: tuple[int, ...], batch: int, like: Tensor) -> Weight:
        """γ at the chosen coordinates: one number, or `(1 or batch, k)`."""
        if not isinstance(self.weight, Tensor):
            if place.chosen is None or bool(place.chosen.all()):
                return self.weight
            return self.weight * place.chosen.to(like)
        weight = self._spread("weight", self.weight.to(like), place, shape, batch)
        return weight if place.chosen is None else weight * place.chosen.to(like)

    def written_over(self, stalks: Tensor, like: Tensor) -> Tensor:
        """Values of the vertex `(batch, *shape)` with those of this pin wherever it pulls."""
        batch, shape = len(stalks), tuple(stalks.shape[1:])
        place, flat = self.place(shape, batch), stalks.reshape(batch, -1)
        index = place.index.to(stalks.device)
        pulled = place.mask(flat.shape[1]).to(stalks.device).expand(flat.shape)
        if not self.is_hard:
            pulls = torch.as_tensor(self.weights(place, shape, batch, like)) > 0
            there = pulls.to(pulled.device).expand(batch, len(index))
            pulled = pulled & torch.zeros_like(pulled).index_copy(1, index, there)
        value = self.values(place, shape, batch, like).to(flat.dtype)
        new = torch.zeros_like(flat).index_copy(1, index, value)
        return torch.where(pulled, new, flat).reshape(stalks.shape)

    def _spread(
        self, what: str, given: Tensor, place: Place, shape: tuple[int, ...], batch: int
    ) -> Tensor:
        """A value or weight at the chosen coordinates, `(1 or batch, k)`."""
        k, whole = place.index.numel(), self.where is None or place.chosen is not None
        got, index = tuple(given.shape), place.index.to(given.device)
        if given.ndim == 0:
            return given.expand(1, k)
        if whole and got == shape:
            return given.reshape(1, -1)[:, index]
        if whole and got == (batch, *shape):
            return given.reshape(batch, -1)[:, index]
        if got == (batch, 1):
            return given.expand(batch, k)
        if place.chosen is None:
            if got == (k,):
                return given[None]
            if got == (batch, k):
                return given
            if k == 1 and got == (batch,):
                return given[:, None]
        wanted = f"a scalar, ({k},) or ({batch}, {k})"
        if whole:
            wanted = f"a scalar, {shape} or ({', '.join(map(str, (batch, *shape)))})"
        raise ValueError(f"pin on {self.vertex!r}: the {what} has shape {got}; write {wanted}")


def _require_weights(what: str, weights: Tensor) -> None:
    """Finite numbers, none below 0."""
    if weights.is_complex() or weights.dtype == torch.bool:
        raise TypeError(f"{what} is {_short(weights)}; write real numbers")
    if not is_finite(weights) or (weights.numel() and float(weights.min()) < 0):
        raise ValueError(
            f"{what} is {_short(weights)}; write finite numbers, 0 for no pull (a hard pin has "
            "one weight, math.inf, and `where` says what it holds)"
        )


def read_place(what: str, where: Coordinates, shape: tuple[int, ...], batch: int) -> Place:
    """As `read_coordinates`; a mask (batch, *shape) chooses for each sample on its own."""
    mask = _as_tensor(where)
    if mask.dtype != torch.bool or tuple(mask.shape) != (batch, *shape):
        return Place(read_coordinates(what, where, shape, batch))
    rows = mask.reshape(batch, -1)
    index = rows.any(0).nonzero().squeeze(1)
    return Place(index, rows[:, index])


def _as_tensor(where: Coordinates) -> Tensor:
    """On the CPU; of a type that no coordinates have where it is no tensor."""
    try:
        return torch.as_tensor(where).cpu()
    except (TypeError, ValueError, RuntimeError):
        return torch.tensor(0.5)


def read_coordinates(
    what: str, where: Coordinates, shape: tuple[int, ...], batch: int | None = None
) -> Tensor:
    """Coordinates of a stalk as flat indices on the CPU, int64, sorted as given; none is a choice.

    None means all of them. Raises TypeError or ValueError, beginning with `what`, for a mask of
    another shape, for coordinates out of range or named twice, and for what is neither. `batch`
    says that a mask per sample would do as well.
    """
    dim = math.prod(shape)
    if where is None:
        return torch.arange(dim)
    given = _as_tensor(where)
    if given.dtype == torch.bool:
        if tuple(given.shape) not in (shape, (dim,)):
            each = "" if batch is None else f", ({', '.join(map(str, (batch, *shape)))}) per sample"
            raise ValueError(
                f"{what}: the mask has shape {tuple(given.shape)}; the stalk's is {shape}{each}"
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
