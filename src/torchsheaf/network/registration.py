"""Rules that users add for their own operations, checked against the laws as they come in."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from torchsheaf.network.gates import GateFactory, Kinks
from torchsheaf.network.laws import check_rule
from torchsheaf.network.rules import Kind, Rule, overload, store_rule
from torchsheaf.network.rules.rule import Shortcut


def register_rule(
    op: Any,
    kind: str | Kind,
    *,
    example: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    activations: Sequence[int] | None = None,
    linear_in: Sequence[int] = (),
    additive: bool = False,
    gate: GateFactory | None = None,
    shortcut: Shortcut | None = None,
    kinks: Kinks | None = None,
) -> Rule:
    """Teach the library an operation that has no rule, and check the rule's laws on an example.

    `op` is a torch operation overload or its name ("aten.special_i0.default"). `kind` is what it
    is when one activation enters: "affine", "gate" (with `gate`, a function from the arguments to
    a `Gate`), "smooth" or "reshape". `linear_in` lists argument positions in which it is affine on
    its own; `additive` says that it is affine in all activations together; `kinks` (smooth only, a
    function from the arguments to a `CurvedGate` or None) where its slope jumps. `example` are
    arguments on which the laws are checked: derivative against the operation's own JVP, VJP and
    central differences, adjoint, declared linearity (see `torchsheaf.network.laws.check_rule`).

    Raises ValueError naming the law that fails, TypeError for something that is no operation.

    Cost: a few dozen evaluations of the operation on the example.

    >>> rule = register_rule("aten.special_i0e.default", "smooth", example=(torch.randn(2, 3),))
    >>> from torchsheaf.network import known_operations
    >>> "aten.special_i0e.default" in known_operations()
    True
    >>> register_rule("aten.special_i1e.default", "affine", example=(torch.randn(2, 3),))
    Traceback (most recent call last):
    ValueError: the rule of aten.special_i1e.default breaks a law (affine: f(x + u) − f(x) = J u)...
    """
    target = _overload(op)
    try:
        kind = Kind(kind)
    except ValueError:
        raise ValueError(
            f'kind is {kind!r}; write "affine", "gate", "smooth" or "reshape"'
        ) from None
    if kind is Kind.JOIN:
        raise ValueError(
            "kind is 'join', which every operation of several activations becomes; write what it "
            "is when one enters, and additive=True if it is affine in all of them together"
        )
    if (kind is Kind.GATE) != (gate is not None):
        raise ValueError("kind 'gate' needs `gate`, and only that kind takes it")
    if kinks is not None and kind is not Kind.SMOOTH:
        raise ValueError(f"only kind 'smooth' takes `kinks`; the kind here is {str(kind)!r}")
    rule = Rule(kind, tuple(linear_in), additive, gate, shortcut, kinks=kinks)
    check_rule(rule, target, example, kwargs, activations)
    store_rule(str(target), rule)
    return rule


def _overload(op: Any) -> Any:
    if isinstance(op, str):
        found = overload(op)
        if found is None:
            raise ValueError(
                f"op is {op!r}; write namespace.operation.overload, as in 'aten.relu.default'"
            )
        return found
    if isinstance(op, torch._ops.OpOverloadPacket):
        return op.default
    if not isinstance(op, torch._ops.OpOverload):
        raise TypeError(f"op is a {type(op).__name__}; pass a torch operation or its name")
    return op
