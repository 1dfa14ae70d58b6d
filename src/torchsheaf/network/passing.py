"""How a forward takes its inputs: the first ones by position, the last ones by name."""

import inspect
from collections.abc import Mapping, Sequence
from inspect import Parameter
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram


def split(
    inputs: Sequence[Tensor], keywords: Sequence[str]
) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """What is passed by position, and the last inputs, which are passed by the names given."""
    first = len(inputs) - len(keywords)
    return tuple(inputs[:first]), dict(zip(keywords, inputs[first:], strict=True))


def by_name(
    model: nn.Module | ExportedProgram, given: Mapping[str, Tensor]
) -> tuple[list[Tensor], tuple[str, ...]]:
    """Inputs by argument name, in the order of the signature, and the names of the last ones.

    Those are passed by name: from the first that no position reaches on, because it takes none or
    because one before it is left out.
    """
    if not isinstance(model, nn.Module):
        raise TypeError("input x is a dict; pass an ExportedProgram a tensor, or a tuple of them")
    arguments = inspect.signature(model.forward).parameters
    _check_names(arguments, given)
    order = [name for name in arguments if name in given]
    positions = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
    reached = 0
    for name, argument in arguments.items():
        if name not in given or argument.kind not in positions:
            break
        reached += 1
    return [given[name] for name in order], tuple(order[reached:])


def _check_names(arguments: Mapping[str, Parameter], given: Mapping[str, Tensor]) -> None:
    kinds = {p.kind: name for name, p in arguments.items()}
    star, rest = kinds.get(Parameter.VAR_POSITIONAL), kinds.get(Parameter.VAR_KEYWORD)
    named = ", ".join(map(repr, given)) or "nothing"
    unknown = [name for name in given if name not in arguments or name in (star, rest)]
    if star is not None and (unknown or not given):
        raise ValueError(
            f"input x names {named}; the model's forward takes *{star}, which have no names: pass "
            "a tuple"
        )
    if unknown and rest is not None:
        raise ValueError(
            f"input x names {', '.join(map(repr, unknown))}, which only its **{rest} takes; "
            "torch.export wants names: write a module whose forward has them in its signature"
        )
    several = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
    missing = [
        name
        for name, p in arguments.items()
        if p.default is p.empty and p.kind not in several and name not in given
    ]
    if unknown or missing or not given:
        needs = f"; it needs {', '.join(missing)}" if missing else ""
        raise ValueError(
            f"input x names {named}; the model's forward takes {', '.join(arguments)}{needs}"
        )


def require_positions(model: nn.Module) -> None:
    """Raise ValueError naming what a forward takes by name only: inputs came without names."""
    arguments = inspect.signature(model.forward).parameters.values()
    if any(a.kind is Parameter.VAR_POSITIONAL for a in arguments):
        return
    needed = [
        a.name for a in arguments if a.kind is Parameter.KEYWORD_ONLY and a.default is a.empty
    ]
    if needed:
        raise ValueError(
            f"the model's forward takes some inputs by name only: {', '.join(needed)}; pass a dict "
            "by argument name"
        )


def batch_axes(model: nn.Module, count: int, keywords: Sequence[str] = ()) -> Any:
    """The first axis of every input may vary, as torch.export wants to be told.

    Those that `*args` takes are one nested tuple; with inputs by name all have their names.
    """
    axis = {0: torch.export.Dim.AUTO}
    arguments = inspect.signature(model.forward).parameters
    if keywords:
        first = list(arguments)[: count - len(keywords)]
        return dict.fromkeys((*first, *keywords), axis)
    axes: list[Any] = [axis for _ in range(count)]
    kinds = [p.kind for p in arguments.values()]
    if Parameter.VAR_POSITIONAL in kinds:
        plain = kinds.index(Parameter.VAR_POSITIONAL)
        axes = [*axes[:plain], tuple(axes[plain:])] if count > plain else axes
    return tuple(axes)
