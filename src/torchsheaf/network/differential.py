"""The linear part of one operation at a state: push tangents forward, pull cotangents back."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map

from torchsheaf.network.gates import Gate


class Differential(ABC):
    """J at a state. `push` takes tangents by operand name (absent = 0), `pull` returns them."""

    @abstractmethod
    def push(self, tangents: Mapping[str, Tensor]) -> Tensor:
        """Σ_p J_p u_p."""

    @abstractmethod
    def pull(self, cotangent: Tensor) -> dict[str, Tensor]:
        """p ↦ J_pᵀ g."""

    @property
    def value(self) -> Tensor | None:
        """The operation's value at the state, where linearising it computes that anyway."""
        return None


@final
@dataclass(frozen=True)
class Tangent(Differential):
    """Any C¹ operation, linearised by `torch.func` at its operands; never a dense Jacobian.

    Cost of `push`: one forward-mode evaluation (two reverse passes where torch has no forward mode
    of the operation); of `pull`: one reverse pass (the forward pass
    behind it is done once).
    """

    function: Callable[..., Tensor]
    operands: Mapping[str, Tensor]

    def push(self, tangents: Mapping[str, Tensor]) -> Tensor:
        # forward mode cannot write to an expanded tensor, whose entries share memory
        primals = tuple(p.contiguous() for p in self.operands.values())
        given = tuple(
            tangents[n] if n in tangents else torch.zeros_like(p) for n, p in self.operands.items()
        )
        try:
            return torch.func.jvp(self.function, primals, given)[1]
        except NotImplementedError:
            return self._transposed(given)

    def _transposed(self, tangents: tuple[Tensor, ...]) -> Tensor:
        """J u without a forward mode: g ↦ Jᵀ g is linear, and its transpose at any g is J."""

        def adjoint(g: Tensor) -> tuple[Tensor, ...]:
            return torch.func.vjp(self.function, *self.operands.values())[1](g)

        (pushed,) = torch.func.vjp(adjoint, torch.zeros_like(self.value))[1](tangents)
        return pushed

    @cached_property
    def _traced(self) -> tuple[Tensor, Callable[[Tensor], Sequence[Tensor]]]:
        return torch.func.vjp(self.function, *self.operands.values())[:2]

    @property
    def value(self) -> Tensor:
        return self._traced[0]

    def pull(self, cotangent: Tensor) -> dict[str, Tensor]:
        return dict(zip(self.operands, self._traced[1](cotangent), strict=True))


@final
@dataclass(frozen=True)
class Relabelling(Differential):
    """An exact relabelling is linear without offset: push is the operation itself."""

    function: Callable[..., Any]
    operands: Mapping[str, Any]

    def push(self, tangents: Mapping[str, Tensor]) -> Tensor:
        given = (
            tangents[n] if n in tangents else tree_map(torch.zeros_like, p)
            for n, p in self.operands.items()
        )  # fmt: skip
        return self._image(*given)

    def _image(self, *values: Any) -> Any:
        image = self.function(*values)
        return tuple(image) if isinstance(image, list) else image

    @cached_property
    def _pullback(self) -> Callable[[Any], Sequence[Any]]:
        return torch.func.vjp(self._image, *self.operands.values())[1]

    def pull(self, cotangent: Tensor) -> dict[str, Tensor]:
        return dict(zip(self.operands, self._pullback(cotangent), strict=True))


@final
@dataclass(frozen=True)
class Reshaping(Differential):
    """A relabelling that keeps the order of the entries: pull is a reshape to x's shape."""

    operand: str
    shape: torch.Size
    function: Callable[..., Tensor]

    def push(self, tangents: Mapping[str, Tensor]) -> Tensor:
        return self.function(tangents[self.operand])

    def pull(self, cotangent: Tensor) -> dict[str, Tensor]:
        return {self.operand: cotangent.reshape(self.shape)}


@final
@dataclass(frozen=True)
class Linear(Differential):
    """y = x Wᵀ + b: push u Wᵀ, pull g W."""

    operand: str
    weight: Tensor

    def push(self, tangents: Mapping[str, Tensor]) -> Tensor:
        return F.linear(tangents[self.operand], self.weight)

    def pull(self, cotangent: Tensor) -> dict[str, Tensor]:
        return {self.operand: cotangent @ self.weight}


@final
@dataclass(frozen=True)
class Convolution(Differential):
    """y = w ∗ x + b: push w ∗ u, pull the transposed convolution."""

    operand: str
    x: Tensor
    weight: Tensor
    options: tuple[Any, ...]
    """(stride, padding, dilation, transposed, output_padding, groups)."""

    def push(self, tangents: Mapping[str, Tensor]) -> Tensor:
        u = tangents[self.operand]
        return torch.ops.aten.convolution.default(u, self.weight, None, *self.options)

    def pull(self, cotangent: Tensor) -> dict[str, Tensor]:
        grad = torch.ops.aten.convolution_backward.default(
            cotangent, self.x, self.weight, None, *self.options, [True, False, False]
        )[0]
        return {self.operand: grad}


@final
@dataclass(frozen=True)
class AveragePool(Differential):
    """y = means over windows of x: linear, so push is the operation itself."""

    operand: str
    x: Tensor
    options: tuple[Any, ...]
    """(kernel, stride, padding, ceil_mode, count_include_pad, divisor)."""

    def push(self, tangents: Mapping[str, Tensor]) -> Tensor:
        return torch.ops.aten.avg_pool2d.default(tangents[self.operand], *self.options)

    def pull(self, cotangent: Tensor) -> dict[str, Tensor]:
        grad = torch.ops.aten.avg_pool2d_backward.default(cotangent, self.x, *self.options)
        return {self.operand: grad}


@final
@dataclass(frozen=True)
class Selected(Differential):
    """A gate frozen at a selection: y = R^z z."""

    operand: str
    gate: Gate
    selection: Tensor
    z: Tensor

    def push(self, tangents: Mapping[str, Tensor]) -> Tensor:
        return self.gate.push(self.selection, tangents[self.operand])

    def pull(self, cotangent: Tensor) -> dict[str, Tensor]:
        return {self.operand: self.gate.pull(self.selection, cotangent, self.z)}

    @property
    def value(self) -> Tensor | None:
        return self.gate.push(self.selection, self.z) if self.gate.selects else None


@final
@dataclass(frozen=True)
class Combination(Differential):
    """y = Σ_p s_p x_p, all of one shape (add, sub)."""

    factors: Mapping[str, float]

    def push(self, tangents: Mapping[str, Tensor]) -> Tensor:
        terms = [
            s * tangents[p] if s != 1 else tangents[p]
            for p, s in self.factors.items()
            if p in tangents
        ]
        return torch.stack(terms).sum(0) if len(terms) > 2 else sum(terms[1:], terms[0])

    def pull(self, cotangent: Tensor) -> dict[str, Tensor]:
        return {p: s * cotangent if s != 1 else cotangent for p, s in self.factors.items()}


@final
@dataclass(frozen=True)
class Pointwise(Differential):
    """y_i = f(x_i): J is diagonal, so push and pull are one and the same product f'(x) · u.

    f'(x) is computed at the first product and kept: one number per entry of x.
    """

    operand: str
    x: Tensor
    function: Callable[[Tensor], Tensor]

    @cached_property
    def _traced(self) -> tuple[Tensor, Tensor]:
        value, pullback = torch.func.vjp(self.function, self.x)[:2]
        return value, pullback(torch.ones_like(value))[0]

    @property
    def value(self) -> Tensor:
        return self._traced[0]

    def push(self, tangents: Mapping[str, Tensor]) -> Tensor:
        return self._traced[1] * tangents[self.operand]

    def pull(self, cotangent: Tensor) -> dict[str, Tensor]:
        return {self.operand: self._traced[1] * cotangent}


@final
@dataclass(frozen=True)
class LayerNorm(Differential):
    """y = w ∘ x̂ + b with x̂ = (x − mean) r, r = 1/√(var + ε), over the last axes.

    Push w ∘ r (u − mean(u) − x̂ mean(x̂ u)); pull torch's own reverse kernel.
    """

    operand: str
    x: Tensor
    shape: Sequence[int]
    weight: Tensor | None
    bias: Tensor | None
    eps: float

    @cached_property
    def _traced(self) -> tuple[Tensor, Tensor, Tensor]:
        """y, mean and r."""
        return torch.ops.aten.native_layer_norm.default(
            self.x, self.shape, self.weight, self.bias, self.eps
        )

    @property
    def value(self) -> Tensor:
        return self._traced[0]

    @cached_property
    def _normalised(self) -> Tensor:
        _, mean, r = self._traced
        return (self.x - mean) * r

    def push(self, tangents: Mapping[str, Tensor]) -> Tensor:
        u, axes = tangents[self.operand], tuple(range(-len(self.shape), 0))
        along = (self._normalised * u).mean(axes, keepdim=True)
        moved = self._traced[2] * (u - u.mean(axes, keepdim=True) - self._normalised * along)
        moved = moved if self.weight is None else self.weight * moved
        return moved.to(u.dtype)  # mean and r of half-precision values are in single precision

    def pull(self, cotangent: Tensor) -> dict[str, Tensor]:
        _, mean, r = self._traced
        grad = torch.ops.aten.native_layer_norm_backward.default(
            cotangent, self.x, self.shape, mean, r, self.weight, self.bias, [True, False, False]
        )[0]
        return {self.operand: grad}


@final
@dataclass(frozen=True)
class Product(Differential):
    """y = a · b of two operands, broadcast: push b·u_a + a·u_b; pull sums over expanded axes."""

    first: str
    second: str
    a: Tensor
    b: Tensor

    def push(self, tangents: Mapping[str, Tensor]) -> Tensor:
        pairs = ((self.first, self.b), (self.second, self.a))
        terms = [factor * tangents[n] for n, factor in pairs if n in tangents]
        return sum(terms[1:], terms[0])

    def pull(self, cotangent: Tensor) -> dict[str, Tensor]:
        first = (self.b * cotangent).sum_to_size(self.a.shape)
        second = (self.a * cotangent).sum_to_size(self.b.shape)
        return {self.first: first, self.second: second}


@final
@dataclass(frozen=True)
class Attention(Differential):
    """Y = softmax(s Q Kᵀ + M) V in closed form; only the probabilities P are kept.

    With D = P ∘ (S' − rowsum(P ∘ S')) for a change S' of the scores: push D V + P V', and pull the
    transposes. `names` are the operands of Q, K, V; None where that one is constant.
    """

    names: tuple[str | None, str | None, str | None]
    q: Tensor
    k: Tensor
    v: Tensor
    mask: Tensor | None
    causal: bool
    scale: float | None

    @property
    def _scale(self) -> float:
        return self.scale if self.scale is not None else self.q.shape[-1] ** -0.5

    @cached_property
    def _probabilities(self) -> Tensor:
        scores = self._scale * (self.q @ self.k.mT)
        if self.causal:
            allowed = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
            scores = scores.masked_fill(~allowed, -math.inf)
        if self.mask is not None and self.mask.dtype == torch.bool:
            scores = scores.masked_fill(~self.mask, -math.inf)
        elif self.mask is not None:
            scores = scores + self.mask
        # A row that may look at nothing attends to nothing, as in torch.
        nothing = (scores == -math.inf).all(-1, keepdim=True)
        return torch.softmax(scores, -1).masked_fill(nothing, 0.0)

    def _through_softmax(self, change: Tensor) -> Tensor:
        p = self._probabilities
        return p * (change - (p * change).sum(-1, keepdim=True))

    def push(self, tangents: Mapping[str, Tensor]) -> Tensor:
        uq, uk, uv = (tangents.get(n) if n else None for n in self.names)
        change = None if uq is None else uq @ self.k.mT
        if uk is not None:
            other = self.q @ uk.mT
            change = other if change is None else change + other
        out = None if uv is None else self._probabilities @ uv
        if change is not None:
            moved = self._scale * (self._through_softmax(change) @ self.v)
            out = moved if out is None else out + moved
        if out is None:
            raise ValueError("push needs a tangent of the queries, keys or values")
        return out

    def pull(self, cotangent: Tensor) -> dict[str, Tensor]:
        nq, nk, nv = self.names
        terms: list[tuple[str, Tensor]] = []
        if nv:
            terms.append((nv, self._probabilities.mT @ cotangent))
        if nq or nk:
            change = self._scale * self._through_softmax(cotangent @ self.v.mT)
            if nq:
                terms.append((nq, change @ self.k))
            if nk:
                terms.append((nk, change.mT @ self.q))
        found: dict[str, Tensor] = {}
        for name, g in terms:  # one value may be queries, keys and values at once
            found[name] = found[name] + g if name in found else g
        return found
