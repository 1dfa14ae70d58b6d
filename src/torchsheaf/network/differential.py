"""The linear part of one operation at a state: push tangents forward, pull cotangents back."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor

from torchsheaf.network.gates import Gate


class Differential(ABC):
    """J at a state. `push` takes tangents by operand name (absent = 0), `pull` returns them."""

    @abstractmethod
    def push(self, tangents: Mapping[str, Tensor]) -> Tensor:
        """Σ_p J_p u_p."""

    @abstractmethod
    def pull(self, cotangent: Tensor) -> dict[str, Tensor]:
        """p ↦ J_pᵀ g."""


@final
@dataclass(frozen=True)
class Tangent(Differential):
    """Any C¹ operation, linearised by `torch.func` at its operands; never a dense Jacobian.

    Cost of `push`: one forward-mode evaluation; of `pull`: one reverse pass (the forward pass
    behind it is done once).
    """

    function: Callable[..., Tensor]
    operands: Mapping[str, Tensor]

    def push(self, tangents: Mapping[str, Tensor]) -> Tensor:
        primals = tuple(self.operands.values())
        given = tuple(tangents.get(n, torch.zeros_like(p)) for n, p in self.operands.items())
        return torch.func.jvp(self.function, primals, given)[1]

    @cached_property
    def _pullback(self) -> Callable[[Tensor], Sequence[Tensor]]:
        return torch.func.vjp(self.function, *self.operands.values())[1]

    def pull(self, cotangent: Tensor) -> dict[str, Tensor]:
        return dict(zip(self.operands, self._pullback(cotangent), strict=True))


@final
@dataclass(frozen=True)
class Relabelling(Differential):
    """An exact relabelling is linear without offset: push is the operation itself."""

    function: Callable[..., Any]
    operands: Mapping[str, Any]

    def push(self, tangents: Mapping[str, Tensor]) -> Tensor:
        given = (tangents.get(n, _zeros(p)) for n, p in self.operands.items())
        return self.function(*given)

    @cached_property
    def _pullback(self) -> Callable[[Any], Sequence[Any]]:
        return torch.func.vjp(self.function, *self.operands.values())[1]

    def pull(self, cotangent: Tensor) -> dict[str, Tensor]:
        return dict(zip(self.operands, self._pullback(cotangent), strict=True))


def _zeros(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return type(value)(_zeros(v) for v in value)
    return torch.zeros_like(value)


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
