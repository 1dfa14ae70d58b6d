"""The laws that a rule must obey, checked on an example before the rule is used."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from torchsheaf.draws import standard_normal
from torchsheaf.network.calls import chooses, first_of
from torchsheaf.network.composition import differential
from torchsheaf.network.operation import Operation, Value
from torchsheaf.network.rules import Kind, Rule

_TOLERANCE = 1e-8  # torch's own slope of hardsigmoid is 1/6 in single precision
_STEP = 1e-5


def check_rule(
    rule: Rule,
    target: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    activations: Sequence[int] | None = None,
) -> None:
    """Raise ValueError naming the first law that a rule breaks on an example.

    `args` are the operation's arguments; floating tensors among them (also inside lists) are
    activations, except parameters, or only those at the positions `activations`. In float64:

    - derivative: `push` is the central difference of the operation, and its own JVP and VJP;
    - adjoint: ⟨J u, g⟩ = ⟨u, Jᵀ g⟩;
    - affine (where declared, alone and jointly): f(x + u) − f(x) = J u for large u;
    - kinks: at a breakpoint the slope above is the declared one, and it rises by the declared rise;
    - gate: no curvature off the breakpoints; relabelling: f(0) = 0 and as for affine.
    """
    operation, scope, full = _example(rule, target, args, dict(kwargs or {}), activations)
    name = str(target)
    _check_alone(rule, operation, full, name)
    if rule.constant or not operation.operands:
        return
    jacobian = differential(operation, *operation.resolve(scope, _no_state, 1), scope, {})
    function = _function(operation, scope)
    x = [scope[n] for n in operation.operands]
    generator = torch.Generator().manual_seed(1)
    u = [standard_normal(t.shape, generator, t.dtype, t.device) for t in x]
    pushed = _leaves(jacobian.push(dict(zip(operation.operands, u, strict=True))))
    high = _leaves(function(*(a + _STEP * d for a, d in zip(x, u, strict=True))))
    low = _leaves(function(*(a - _STEP * d for a, d in zip(x, u, strict=True))))
    slope = [(p - m) / (2 * _STEP) for p, m in zip(high, low, strict=True)]
    _require(name, "derivative: push is the central difference", pushed, slope, 1e-6)
    value = _leaves(function(*x))
    try:
        moved = torch.func.jvp(lambda *v: tuple(_leaves(function(*v))), tuple(x), tuple(u))[1]
    except NotImplementedError:
        pass  # fused kernels have no forward mode: the difference above and the adjoint stand in
    else:
        _require(name, "derivative: push is the operation's own JVP", pushed, moved)
    g = [standard_normal(t.shape, generator, t.dtype, t.device) for t in value]
    whole = isinstance(function(*x), tuple | list)
    cotangent: Any = tuple(g) if whole else g[0]
    pulled = jacobian.pull(cotangent)
    own = torch.func.vjp(lambda *v: tuple(_leaves(function(*v))), *x)[1](tuple(g))
    got = [pulled.get(n, torch.zeros_like(t)) for n, t in zip(operation.operands, x, strict=True)]
    _require(name, "derivative: pull is the operation's own VJP", got, own)
    left, right = _dot(pushed, g), _dot(u, got)
    _require(name, "adjoint: ⟨J u, g⟩ = ⟨u, Jᵀ g⟩", [left], [right])
    kind = rule.kind_of(operation)
    if kind in (Kind.AFFINE, Kind.RESHAPE) or rule.additive:
        _require_affine(name, "affine: f(x + u) − f(x) = J u", function, x, u, pushed)
    if kind is Kind.RESHAPE:
        zero = _leaves(function(*(torch.zeros_like(t) for t in x)))
        _require(name, "relabelling: f(0) = 0", zero, [torch.zeros_like(z) for z in zero])
    if rule.kinks is not None:
        _check_kinks(rule, operation, scope, name)
    if rule.gate is not None:
        bend = [p + m - 2 * v for p, m, v in zip(high, low, value, strict=True)]
        flat = [torch.zeros_like(b) for b in bend]
        _require(name, "gate: linear off its breakpoints", bend, flat, 1e-13)


def _check_kinks(
    rule: Rule, operation: Operation, scope: dict[str, Tensor], name: str
) -> None:  # fmt: skip
    args, kwargs = operation.resolve(scope, _no_state, 1)
    gate = rule.gate_of(args, kwargs)
    if gate is None:
        return
    (z,), function, h = scope.values(), _function(operation, scope), _STEP**1.5
    for t, rise in gate.kinks(z):
        at = torch.full_like(z, t)
        below, here, above = (function(at + step) for step in (-h, 0.0, h))
        slope, bend = (above - here) / h, (above + below - 2 * here) / h
        _require(name, "kink: slope above", [gate.select(at)], [slope], 1e-5)
        _require(name, "kink: rise of the slope", [rise.expand_as(at)], [bend], 1e-5)


def _check_alone(rule: Rule, operation: Operation, full: Sequence[Any], name: str) -> None:
    """Each position of `linear_in` is affine while every other argument stands still."""
    for position in rule.linear_in:
        if position >= len(full):
            continue
        alone = next((a for a in tree_leaves(full[position]) if isinstance(a, Tensor)), None)
        if alone is None or not alone.is_floating_point():
            continue

        def function(value: Tensor, alone: Tensor = alone) -> Any:
            new = tree_map(lambda leaf: value if leaf is alone else leaf, list(full))
            return operation.target(*new, **operation.kwargs)

        x = alone.detach()
        u = standard_normal(x.shape, torch.Generator().manual_seed(2), x.dtype, x.device)
        pushed = [
            f - v for f, v in zip(_leaves(function(x + u)), _leaves(function(x)), strict=True)
        ]
        law = f"affine in argument {position}: steps add up"
        _require_affine(name, law, function, [x], [u], pushed)


def _example(
    rule: Rule,
    target: Callable[..., Any],
    args: Sequence[Any],
    kwargs: dict[str, Any],
    activations: Sequence[int] | None,
) -> tuple[Operation, dict[str, Tensor], list[Any]]:
    scope: dict[str, Tensor] = {}
    full: list[Any] = []

    def read(arg: Any, position: int) -> tuple[Any, Any]:
        if isinstance(arg, list | tuple):
            pairs = [read(a, position) for a in arg]
            return type(arg)(p[0] for p in pairs), type(arg)(p[1] for p in pairs)
        if not isinstance(arg, Tensor) or not arg.is_floating_point():
            return arg, arg
        given = arg.detach().to(torch.float64)
        chosen = position in activations if activations is not None else True
        if not chosen or isinstance(arg, nn.Parameter):
            return given, given
        key = f"a{len(scope)}"
        scope[key] = given
        return Value(key), given

    symbolic = []
    for i, arg in enumerate(args):
        leaf, value = read(arg, i)
        symbolic.append(leaf)
        full.append(value)
    kwargs = {k: v.to(torch.float64) if _floats(v) else v for k, v in kwargs.items()}
    if rule.gate is None and chooses(rule, target(*full, **kwargs)):
        target = first_of(target)
    operands = () if rule.constant else tuple(scope)
    return Operation("%op", target, tuple(symbolic), kwargs, operands, rule), scope, full


def _function(operation: Operation, scope: Mapping[str, Tensor]) -> Callable[..., Any]:
    def function(*values: Tensor) -> Any:
        given = {**scope, **dict(zip(operation.operands, values, strict=True))}
        args, kwargs = operation.resolve(given, _no_state, 1)
        result = operation.target(*args, **kwargs)
        # a gate may return (maxima, indices): its value is the first
        return result[0] if operation.rule.gate and isinstance(result, tuple) else result

    return function


def _require_affine(
    name: str,
    law: str,
    function: Callable[..., Any],
    x: Sequence[Tensor],
    u: Sequence[Tensor],
    pushed: Sequence[Tensor],
) -> None:
    for size in (1.0, -3.0):
        far = _leaves(function(*(a + size * d for a, d in zip(x, u, strict=True))))
        step = [f - v for f, v in zip(far, _leaves(function(*x)), strict=True)]
        _require(name, law, step, [size * p for p in pushed])


def _require(
    name: str, law: str, got: Sequence[Tensor], wanted: Sequence[Tensor], tol: float = _TOLERANCE
) -> None:
    for a, b in zip(got, wanted, strict=True):
        scale = max(1.0, float(b.abs().max())) if b.numel() else 1.0
        worst = float((a - b).abs().max()) if a.shape == b.shape and a.numel() else 0.0
        if a.shape != b.shape or not worst <= tol * scale:
            shapes = f"{tuple(a.shape)} against {tuple(b.shape)}"
            found = shapes if a.shape != b.shape else f"off by {worst:.1e}"
            raise ValueError(f"the rule of {name} breaks a law ({law}): {found}")


def _leaves(value: Any) -> list[Tensor]:
    """The floating tensors of a result."""
    given = value if isinstance(value, tuple | list) else (value,)
    return [t for t in given if _floats(t)]


def _floats(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    return torch.stack([(s * t).sum() for s, t in zip(a, b, strict=True)]).sum()


def _no_state(name: str) -> Tensor:
    raise KeyError(name)
