"""One ATen call inside a node's map, with its operands by name."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torchsheaf.network.rules import Rule


@dataclass(frozen=True, slots=True)
class Value:
    """The value of a parent vertex, or of an earlier operation of the same map."""

    name: str


@dataclass(frozen=True, slots=True)
class State:
    """A parameter, buffer or constant of the model, looked up at every call (so it stays live)."""

    name: str


@dataclass(frozen=True, slots=True)
class Size:
    """An integer that depends on the batch size, such as `x.size(0) * 4`."""

    of_batch: Callable[[int], int]
    text: str


@dataclass(frozen=True)
class Operation:
    """target(*args, **kwargs), where leaves may be `Value`, `State` or `Size`.

    `operands` names the activations among the arguments (parents and earlier operations that
    depend on one); everything else is constant given the model's state and the batch size.
    """

    name: str
    target: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    operands: tuple[str, ...]
    rule: "Rule"

    def resolve(
        self, values: Mapping[str, Any], state: Callable[[str], Tensor], batch: int
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments with every leaf replaced by its present value."""
        if not self.kwargs and not self._nested:
            args = list(self.args)
            for i, kind, name in self._leaves:  # once per operation and step: no recursion
                args[i] = values[name] if kind is Value else state(name)
            return tuple(args), {}

        def leaf(arg: Any) -> Any:
            if isinstance(arg, Value):
                return values[arg.name]
            if isinstance(arg, State):
                return state(arg.name)
            if isinstance(arg, Size):
                return arg.of_batch(batch)
            if isinstance(arg, list | tuple):
                return type(arg)(leaf(a) for a in arg)
            return arg

        return tuple(leaf(a) for a in self.args), {k: leaf(v) for k, v in self.kwargs.items()}

    @cached_property
    def _leaves(self) -> tuple[tuple[int, type, str], ...]:
        found = enumerate(self.args)
        return tuple((i, type(a), a.name) for i, a in found if isinstance(a, Value | State))

    @cached_property
    def _nested(self) -> bool:
        """Whether a leaf hides inside a list, or is a size."""

        def holds(arg: Any) -> bool:
            if isinstance(arg, list | tuple):
                return any(holds(a) for a in arg)
            return isinstance(arg, Value | State | Size)

        return any(
            isinstance(a, Size) or (isinstance(a, list | tuple) and holds(a)) for a in self.args
        )

    def widened(self) -> "Operation":
        """The same with float64 wherever an argument names a type of real numbers."""

        def leaf(arg: Any) -> Any:
            if isinstance(arg, torch.dtype) and arg.is_floating_point:
                return torch.float64
            if isinstance(arg, list | tuple):
                return type(arg)(leaf(a) for a in arg)
            return arg

        kwargs = {k: leaf(v) for k, v in self.kwargs.items()}
        return replace(self, args=tuple(leaf(a) for a in self.args), kwargs=kwargs)

    def states(self) -> tuple[str, ...]:
        """Names of the parameters, buffers and constants used."""
        found: list[str] = []

        def visit(arg: Any) -> None:
            if isinstance(arg, State):
                found.append(arg.name)
            elif isinstance(arg, list | tuple):
                for a in arg:
                    visit(a)

        visit(list(self.args) + list(self.kwargs.values()))
        return tuple(found)
