"""One ATen call inside a node's map, with its operands by name."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

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
        found = [a for a in self._flat if isinstance(a, Value | State | Size)]
        return len(found) > len(self._leaves)

    @property
    def _flat(self) -> list[Any]:
        return pytree.tree_leaves((self.args, dict(self.kwargs)))

    def mapped(self, function: Callable[[Any], Any]) -> "Operation":
        """The same with a function applied to every argument, those inside lists one by one."""
        args, kwargs = pytree.tree_map(function, (self.args, dict(self.kwargs)))
        return replace(self, args=args, kwargs=kwargs)

    def widened(self) -> "Operation":
        """The same with float64 wherever an argument names a type of real numbers."""

        def wide(arg: Any) -> Any:
            real = isinstance(arg, torch.dtype) and arg.is_floating_point
            return torch.float64 if real else arg

        return self.mapped(wide)

    def states(self) -> tuple[str, ...]:
        """Names of the parameters, buffers and constants used."""
        return tuple(a.name for a in self._flat if isinstance(a, State))


def evaluate(
    operations: Iterable[Operation],
    values: Mapping[str, Any],
    state: Callable[[str], Tensor],
    batch: int,
) -> dict[str, Any]:
    """The given values and that of every operation of a little program, by name."""
    scope = dict(values)
    for op in operations:
        args, kwargs = op.resolve(scope, state, batch)
        scope[op.name] = op.target(*args, **kwargs)
    return scope
