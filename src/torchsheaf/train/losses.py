"""Losses on the output edge: a potential Φ(z, y) per sample and its force −∂Φ/∂z."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchsheaf.arguments import number, positive_number
from torchsheaf.cochain import coordinates, is_finite


class Loss(ABC):
    """Φ(z, y), one number per sample (summed over the output coordinates, not averaged).

    `curvature` bounds ∂²Φ/∂z² from above (∞ when it is unbounded); the equilibrium rule majorises
    Φ by a quadratic of that curvature.
    """

    name: str
    curvature: float

    @abstractmethod
    def potential(self, z: Tensor, y: Tensor) -> Tensor:
        """Φ per sample, `(batch,)`."""

    @abstractmethod
    def gradient(self, z: Tensor, y: Tensor) -> Tensor:
        """∂Φ/∂z, shape of z."""

    def hessian(self, z: Tensor, y: Tensor) -> Tensor | None:
        """∂²Φ/∂z² in the output's coordinates, `(batch, dim, dim)`; None: the curvature bounds it.

        The equilibrium rule predicts with it where the output will come to rest.
        """
        return None

    def target(self, z: Tensor, y: Tensor) -> Tensor:
        """Check y against the output z; returns it in the form that the formulas use, beside z.

        y is checked where it is: labels of a CPU loader cost no wait for a GPU.

        Raises ValueError naming the shape, type or range that is wrong.
        """
        if y.shape != z.shape:
            raise ValueError(
                f"targets have shape {tuple(y.shape)}; {self.name} needs that of the output, "
                f"{tuple(z.shape)}"
            )
        if y.is_complex():
            raise ValueError(f"targets are complex; {self.name} needs real numbers")
        if not is_finite(y):
            raise ValueError("targets contain NaN or infinity; pass finite numbers")
        return y.to(z)


def _total(t: Tensor) -> Tensor:
    return coordinates(t).sum(1)


@final
@dataclass(frozen=True)
class SquaredLoss(Loss):
    """½‖z − y‖², gradient z − y."""

    name: str = "l2"
    curvature: float = 1.0

    def potential(self, z: Tensor, y: Tensor) -> Tensor:
        return 0.5 * _total((z - y).square())

    def gradient(self, z: Tensor, y: Tensor) -> Tensor:
        return z - y


@final
@dataclass(frozen=True)
class PowerLoss(Loss):
    """|z − y|ᵖ / p, gradient |u|^{p−1} sign u; p = 1 is L1."""

    p: float = 1.0
    name: str = "lp"
    curvature: float = math.inf

    def __post_init__(self) -> None:
        number("p", self.p, lambda p: 1 <= p < math.inf, "a finite power ≥ 1")

    def potential(self, z: Tensor, y: Tensor) -> Tensor:
        return _total((z - y).abs().pow(self.p)) / self.p

    def gradient(self, z: Tensor, y: Tensor) -> Tensor:
        u = z - y
        return u.abs().pow(self.p - 1) * u.sign()


@final
@dataclass(frozen=True)
class HuberLoss(Loss):
    """Huber potential, gradient clip(z − y, −d, d)."""

    delta: float = 1.0
    name: str = "huber"
    curvature: float = 1.0

    def __post_init__(self) -> None:
        positive_number("delta", self.delta)

    def potential(self, z: Tensor, y: Tensor) -> Tensor:
        u = (z - y).abs()
        d = self.delta
        return _total(torch.where(u <= d, 0.5 * u.square(), d * (u - 0.5 * d)))

    def gradient(self, z: Tensor, y: Tensor) -> Tensor:
        return (z - y).clamp(-self.delta, self.delta)

    def hessian(self, z: Tensor, y: Tensor) -> Tensor:
        return torch.diag_embed(coordinates((z - y).abs() <= self.delta).to(z.dtype))


@final
@dataclass(frozen=True)
class BinaryCrossEntropy(Loss):
    """BCE on logits, gradient σ(z) − y: the Jacobian of σ cancels, so nothing saturates."""

    name: str = "bce"
    curvature: float = 0.25

    def target(self, z: Tensor, y: Tensor) -> Tensor:
        y = y.unsqueeze(1) if y.ndim == z.ndim - 1 and z.shape[1] == 1 else y
        y = super().target(z, y)
        if bool(((y < 0) | (y > 1)).any()):
            raise ValueError(
                f"targets lie in [{float(y.min())}, {float(y.max())}]; bce needs them in [0, 1]"
            )
        return y

    def potential(self, z: Tensor, y: Tensor) -> Tensor:
        return _total(F.binary_cross_entropy_with_logits(z, y, reduction="none"))

    def gradient(self, z: Tensor, y: Tensor) -> Tensor:
        return z.sigmoid() - y

    def hessian(self, z: Tensor, y: Tensor) -> Tensor:
        p = coordinates(z).sigmoid()
        return torch.diag_embed(p * (1 - p))


@final
@dataclass(frozen=True)
class CrossEntropy(Loss):
    """Softmax cross-entropy on logits `(batch, classes)`; gradient softmax(z) − y."""

    name: str = "cross_entropy"
    curvature: float = 0.5

    def target(self, z: Tensor, y: Tensor) -> Tensor:
        if z.ndim != 2:
            raise ValueError(
                f"the output has shape {tuple(z.shape)}; cross_entropy needs (batch, classes); "
                "for a class per position write loss=lambda z, y: F.cross_entropy(z.transpose(1, "
                '2), y, reduction="none").sum(1), with z (batch, positions, classes)'
            )
        if z.shape[1] == 1:
            raise ValueError(
                "the output is one number per sample, of which softmax makes 1 whatever it is; for "
                "two classes write loss='bce' with targets y.float(), else give every class a logit"
            )
        if y.ndim == 1 and not y.is_floating_point():
            if y.shape[0] != z.shape[0]:
                raise ValueError(f"{y.shape[0]} labels came for {z.shape[0]} samples")
            low, high = map(int, torch.stack(y.aminmax()).tolist())
            if low < 0 or high >= z.shape[1]:
                raise ValueError(
                    f"labels lie in {low} … {high}; this network has classes 0 … {z.shape[1] - 1}"
                )
            return F.one_hot(y.to(z.device).long(), z.shape[1]).to(z.dtype)
        if y.shape != z.shape and y.numel() == z.shape[0] == len(y):
            first = "y" if y.ndim == 1 else f"y[:, {', '.join('0' * (y.ndim - 1))}]"
            whole = "" if not (y.is_floating_point() or y.is_complex()) else ".long()"
            raise ValueError(
                f"targets have shape {tuple(y.shape)} and type {y.dtype}; for class numbers write "
                f"{first}{whole}"
            )
        y = super().target(z, y)
        if bool((y < 0).any()) or not bool(((y.sum(1) - 1).abs() < 1e-4).all()):
            raise ValueError("target rows must be probabilities: non-negative, with sum 1")
        return y

    def potential(self, z: Tensor, y: Tensor) -> Tensor:
        return -(y * F.log_softmax(z, 1)).sum(1)

    def gradient(self, z: Tensor, y: Tensor) -> Tensor:
        return z.softmax(1) - y

    def hessian(self, z: Tensor, y: Tensor) -> Tensor:
        p = z.softmax(1)
        return torch.diag_embed(p) - p[:, :, None] * p[:, None, :]


@final
@dataclass(frozen=True)
class FunctionLoss(Loss):
    """Φ(z, y) = function(z, y) per sample, `(batch,)`, with autograd's gradient on the output.

    For what has no name here: class weights, label smoothing, an index to ignore, one class per
    position, several losses summed. `y` has one row per sample and is passed as it came, on the
    device of z. Row m of the value may depend on row m of z and y only. `curvature` bounds
    ∂²Φ/∂z² from above; without it rule "equilibrium" refuses the loss.

    Raises ValueError for a value of another shape, or that autograd does not reach from z.
    Cost: a reverse pass through the function; with rule "equilibrium" d + 1 for d outputs.

    >>> weight = torch.tensor([1.0, 4.0])
    >>> loss = FunctionLoss(partial(F.cross_entropy, weight=weight, reduction="none"), 2.0)
    >>> z, y = torch.zeros(2, 2), torch.tensor([0, 1])
    >>> loss.gradient(z, y).tolist()
    [[-0.5, 0.5], [2.0, -2.0]]
    """

    function: Callable[[Tensor, Tensor], Tensor]
    curvature: float = math.inf
    name: str = ""

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise ValueError(f"function is {self.function!r}; write a function of (z, y)")
        number("curvature", self.curvature, lambda k: k > 0, "a positive bound, or math.inf")
        inside = self.function.func if isinstance(self.function, partial) else self.function
        own = getattr(inside, "__name__", type(inside).__name__)
        object.__setattr__(self, "name", self.name or f"function {own}")

    def target(self, z: Tensor, y: Tensor) -> Tensor:
        if not y.ndim or y.shape[0] != z.shape[0]:
            raise ValueError(f"targets have shape {tuple(y.shape)} for {z.shape[0]} samples")
        if not is_finite(y):
            raise ValueError("targets contain NaN or infinity; pass finite numbers")
        return y.to(z) if y.is_floating_point() else y.to(z.device)

    def potential(self, z: Tensor, y: Tensor) -> Tensor:
        found = self.function(z, y)
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        if shape != (z.shape[0],):
            raise ValueError(
                f"loss {self.name!r} returned {shape}; let it return one number per sample, "
                f'{(z.shape[0],)}: with reduction="none", summed over what a sample has'
            )
        return found

    def gradient(self, z: Tensor, y: Tensor) -> Tensor:
        return self._pull(z, y)[1].detach()

    def hessian(self, z: Tensor, y: Tensor) -> Tensor:
        rows = []
        with torch.enable_grad():
            at, force = self._pull(z, y)
            for i in range(coordinates(z).shape[1]):
                total = coordinates(force)[:, i].sum()
                if total.requires_grad:
                    (row,) = torch.autograd.grad(
                        total, at, retain_graph=True, materialize_grads=True
                    )
                    rows.append(coordinates(row))
                else:  # of a piecewise linear function
                    rows.append(torch.zeros_like(coordinates(z)))
        return torch.stack(rows, 1)

    def _pull(self, z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The output as a variable of autograd, and ∂Φ/∂z there, which has a derivative again."""
        with torch.enable_grad():
            at = z.detach().requires_grad_()
            total = self.potential(at, y).sum()
            if not total.requires_grad:
                raise ValueError(
                    f"loss {self.name!r} has no derivative by the output; compute it from z with "
                    "torch operations"
                )
            return at, torch.autograd.grad(total, at, create_graph=True)[0]


_NAMED: dict[str, Loss] = {
    "l2": SquaredLoss(),
    "l1": PowerLoss(1.0, "l1"),
    "huber": HuberLoss(),
    "bce": BinaryCrossEntropy(),
    "cross_entropy": CrossEntropy(),
}


_MODULES = {
    nn.CrossEntropyLoss: ("cross_entropy", "the mean over the samples, without further settings"),
    nn.MSELoss: ("l2", "½ the sum over the outputs, averaged over the samples"),
    nn.L1Loss: ("l1", "the sum over the outputs, averaged over the samples"),
    nn.HuberLoss: ("huber", "the sum over the outputs, averaged over the samples"),
    nn.BCEWithLogitsLoss: ("bce", "the sum over the outputs, averaged over the samples"),
}


def _of_module(loss: nn.Module) -> Loss:
    """Cross-entropy with torch's own settings; ValueError with the name to write for others."""
    plain = nn.CrossEntropyLoss()
    if isinstance(loss, nn.CrossEntropyLoss) and loss.weight is None:
        settings = ("reduction", "ignore_index", "label_smoothing")
        if all(getattr(loss, s) == getattr(plain, s) for s in settings):
            return _NAMED["cross_entropy"]
    known = ", ".join(repr(n) for n in _NAMED)
    name, meaning = _MODULES.get(type(loss), ("", ""))
    write = f"{name!r}, which is {meaning}" if name else f"one of {known}, or a Loss"
    raise ValueError(f"loss is the module {loss}; write {write}, or {_OWN}")


_OWN = (
    "a function that gives one number per sample, such as lambda z, y: "
    'F.cross_entropy(z, y, weight=w, label_smoothing=0.1, reduction="none")'
)


def loss_named(loss: str | Loss | nn.Module | Callable[[Tensor, Tensor], Tensor]) -> Loss:
    """A loss by name ("l2", "l1", "huber", "bce", "cross_entropy"), or the loss itself.

    Each is summed over the outputs and averaged over the samples: "l2" is ½ Σ (z − y)², "l1"
    Σ |z − y|, "huber" its Huber form with delta 1, "bce" Σ of the binary cross-entropy on logits,
    "cross_entropy" that of softmax on logits. `nn.CrossEntropyLoss()` is the last one; other torch
    modules average over the outputs too, so they are refused and the name to write is given. Any
    other function of (z, y) is a `FunctionLoss`.
    """
    if isinstance(loss, Loss):
        return loss
    if isinstance(loss, nn.Module):
        return _of_module(loss)
    if callable(loss) and not isinstance(loss, type):
        return FunctionLoss(loss)
    if not isinstance(loss, str) or loss not in _NAMED:
        if loss in ("mse", "mse_loss"):
            raise ValueError(
                f"loss is {loss!r}; write 'l2', which is ½‖z − y‖² per sample: PyTorch's mse_loss "
                "is 2/d of it for d output coordinates, so multiply the learning rate by 2/d"
            )
        known = ", ".join(repr(n) for n in _NAMED)
        raise ValueError(f"loss is {loss!r}; write one of {known}, or a Loss such as PowerLoss(3)")
    return _NAMED[loss]
