"""The table of rules by ATen operation. Adding an operation is one entry in a family's file."""

import operator
from typing import Any

import torch

from torchsheaf.network.rules.affine import AFFINE
from torchsheaf.network.rules.complexes import COMPLEX, OF_COMPLEX
from torchsheaf.network.rules.joins import JOINS
from torchsheaf.network.rules.piecewise import PIECEWISE
from torchsheaf.network.rules.relabellings import RELABELLINGS
from torchsheaf.network.rules.rule import Rule
from torchsheaf.network.rules.smooth import SMOOTH

_BUILT_IN: dict[str, Rule] = {
    **AFFINE, **JOINS, **PIECEWISE, **SMOOTH, **RELABELLINGS, **COMPLEX,
}  # fmt: skip
_REGISTERED: dict[str, Rule] = {}


def rule_for(op: str, *, of_complex: bool = False) -> Rule | None:
    """The rule of an operation such as "aten.relu.default", of complex operands or not; or None."""
    if of_complex and op in OF_COMPLEX:
        return OF_COMPLEX[op]
    return _REGISTERED.get(op) or _BUILT_IN.get(op)


def known_operations() -> tuple[str, ...]:
    """Names of all operations with a rule."""
    return tuple(dict.fromkeys((*_BUILT_IN, *_REGISTERED)))


def store_rule(op: str, rule: Rule) -> None:
    """Add a checked rule; built-in rules are never replaced."""
    if op in _BUILT_IN:
        raise ValueError(
            f"op {op!r} has a built-in rule; registered rules are for other operations"
        )
    _REGISTERED[op] = rule


def forget_rule(op: str) -> None:
    """Remove a registered rule."""
    _REGISTERED.pop(op, None)


def operation_called(target: Any) -> str:
    """The operation that a traced call makes, out of place: "aten.relu.default", "getitem"."""
    return "getitem" if target is operator.getitem else str(functional(target))


def functional(target: Any) -> Any:
    """The out-of-place twin of an in-place ATen overload; the target itself otherwise."""
    packet, _, variant = str(target).removeprefix("aten.").partition(".")
    if not packet.endswith("_") or packet.endswith("__"):
        return target
    return overload(f"aten.{packet[:-1]}.{variant}") or target


def overload(name: str) -> Any:
    """The operation of that name, "aten.relu.default" say; None where torch has none."""
    namespace, packet, variant = (*name.split(".", 2), "", "")[:3]
    found = getattr(getattr(torch.ops, namespace, None), packet, None)
    return getattr(found, variant or "default", None)
