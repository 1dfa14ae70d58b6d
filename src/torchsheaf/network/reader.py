"""Walks a traced graph in order and folds it into nodes."""

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import sympy
import torch
from torch import Tensor, nn
from torch.fx import Node as FxNode

from torchsheaf.network.errors import Offender, UnsupportedModel
from torchsheaf.network.network import Network, Node
from torchsheaf.network.operation import Operation, Size, State, Value
from torchsheaf.network.rules import Kind, Rule, functional, rule_for

_IDENTITY = Rule(Kind.RESHAPE)


@dataclass(frozen=True)
class _Expression:
    """A traced value: a leaf, plus the relabellings (and constants) folded on top of it."""

    leaf: Any
    operations: tuple[Operation, ...] = ()
    parents: tuple[str, ...] = ()


class Reader:
    """Collects nodes; every call either becomes a vertex or is folded into the one that uses it."""

    def __init__(self, *, fused: bool, fixed_batch: int | None) -> None:
        self._fused = fused
        self._batch: int | sympy.Symbol | None = fixed_batch
        self._fixed = fixed_batch
        self._env: dict[str, _Expression] = {}
        self._inputs: dict[str, tuple[int, ...]] = {}
        self._nodes: list[Node] = []
        self._outputs: list[str] = []
        self._offenders: list[Offender] = []
        self._maxima: set[str] = set()

    def add_input(self, node: FxNode) -> None:
        """A user input: a vertex if it is a tensor, a constant otherwise."""
        value = node.meta.get("val")
        if not isinstance(value, Tensor):
            self._env[node.name] = _Expression(value)
            return
        if self._batch is None:
            size: Any = value.shape[0]
            self._batch = size.node.expr
        self._inputs[node.name] = tuple(int(s) for s in value.shape[1:])
        self._env[node.name] = _Expression(Value(node.name), parents=(node.name,))

    def add_state(self, name: str, target: str) -> None:
        """A parameter, buffer or constant."""
        self._env[name] = _Expression(State(target))

    def add_call(self, node: FxNode) -> None:
        """An operation; unreadable ones are collected and reported together."""
        value = node.meta.get("val")
        if isinstance(value, torch.SymInt | int):
            self._env[node.name] = _Expression(self._size(value))
            return
        if value is None and not node.users:
            return  # an assertion of the trace (before a change of dtype, say) computes nothing
        try:
            expression = self._entry(node) or self._call(node)
        except _Unreadable as problem:
            self._offenders.append(
                Offender(str(node.target), module_path(node), source_line(node), str(problem))
            )
            expression = _Expression(Value(node.name), parents=(node.name,))
        self._env[node.name] = expression
        if str(node.target) != str(functional(node.target)) and isinstance(node.args[0], FxNode):
            self._env[node.args[0].name] = expression

    def add_output(self, outputs: Any) -> None:
        """What the model returns."""
        flat = [o for o in torch.utils._pytree.tree_leaves(outputs) if isinstance(o, FxNode)]
        for i, node in enumerate(flat):
            expression = self._env[node.name]
            if not expression.parents or not isinstance(node.meta.get("val"), Tensor):
                continue
            if expression.operations or expression.leaf.name in self._inputs:
                name = "output" if len(flat) == 1 else f"output.{i}"
                self._outputs.append(self._close(name, node, expression))
            else:
                self._outputs.append(expression.leaf.name)

    def finish(self, model: nn.Module, states: Mapping[str, Any]) -> Network:
        """The network; raises `UnsupportedModel` with every offender."""
        if self._offenders:
            raise UnsupportedModel(
                f"{len(self._offenders)} node(s) of this model have no rule", self._offenders
            )
        if not self._outputs:
            raise UnsupportedModel("no output of this model depends on its input")
        nodes, outputs, inputs = _name(self._nodes, tuple(self._outputs), self._inputs)
        return Network(inputs, nodes, outputs, model, self._fixed, dict(states))

    def _entry(self, node: FxNode) -> _Expression | None:
        """A gate that returns (maxima, indices) is read as its maxima alone."""
        if node.target is not operator.getitem:
            return None
        source = node.all_input_nodes[0].name
        if source not in self._maxima:
            return None
        if node.args[1] != 0 and node.users:
            raise _Unreadable("the indices of a max-pooling cannot carry a tangent")
        return self._env[source]

    def _call(self, node: FxNode) -> _Expression:
        target = functional(node.target)
        op_name = "getitem" if target is operator.getitem else str(target)
        used = [self._env[n.name] for n in node.all_input_nodes]
        parents = tuple(dict.fromkeys(p for e in used for p in e.parents))
        rule = rule_for(op_name)
        if rule is None and not parents:
            rule = Rule(Kind.RESHAPE)  # arithmetic on constants only: folded, never linearised
        if rule is None:
            raise _Unreadable("no rule for this operation; see torchsheaf.register_rule")
        args = tuple(self._symbolic(a) for a in node.args)
        kwargs = {k: self._symbolic(v) for k, v in node.kwargs.items()}
        target, args = _settled(target, args, node) if parents else (target, args)
        reason = rule.refuse(tuple(node.args)) if rule.refuse else None
        if reason:
            raise _Unreadable(reason)
        value = node.meta.get("val")
        if rule.gate is not None and isinstance(value, tuple | list):
            self._maxima.add(node.name)
            value, target = value[0], _first_of(target)
        if parents and isinstance(value, Tensor) and not value.is_floating_point():
            raise _Unreadable(f"an intermediate value of type {value.dtype} cannot carry a tangent")
        names = [_value_name(a) for a in torch.utils._pytree.tree_leaves([args, kwargs])]
        depends = {e.leaf.name for e in used if e.parents and isinstance(e.leaf, Value)}
        operands = tuple(dict.fromkeys(n for n in names if n in depends))
        operation = Operation(_op_name(node), target, args, kwargs, operands, rule)
        folded = _merge(used)
        if not parents:
            return _Expression(Value(operation.name), (*folded, operation))
        kind = _kind(rule, operation)
        fold_gate = self._fused and kind is Kind.GATE
        if kind is Kind.RESHAPE or fold_gate:
            return _Expression(Value(operation.name), (*folded, operation), parents)
        return self._vertex(node, value, op_name, kind, (*folded, operation), parents)

    def _vertex(
        self,
        node: FxNode,
        value: Any,
        op_name: str,
        kind: Kind,
        operations: tuple[Operation, ...],
        parents: tuple[str, ...],
    ) -> _Expression:
        if not isinstance(value, Tensor):
            raise _Unreadable("an operation with several outputs needs a rule of its own")
        shape, forth, back = self._layout(value, node.name)
        last = operations[-1]
        if forth:
            operations = (*operations, *forth)
        constant = kind in (Kind.AFFINE, Kind.GATE) or (kind is Kind.JOIN and last.rule.additive)
        self._nodes.append(
            Node(
                node.name, kind, op_name, module_path(node), source_line(node), parents,
                operations, shape, value.dtype, constant,
            )
        )  # fmt: skip
        leaf = Value(node.name)
        if back:
            return _Expression(Value(back[-1].name), back, (node.name,))
        return _Expression(leaf, (), (node.name,))

    def _close(self, name: str, node: FxNode, expression: _Expression) -> str:
        """A relabelled (or bare) output gets an identity vertex, so that it can be held."""
        value = node.meta["val"]
        shape, forth, _ = self._layout(value, expression.leaf.name)
        if forth:
            raise UnsupportedModel("the output's first axis is not the batch axis")
        identity = Operation(
            f"%{name}", torch.ops.aten.alias.default, (expression.leaf,), {},
            (expression.leaf.name,), _IDENTITY,
        )  # fmt: skip
        operations = (*expression.operations, identity)
        self._nodes.append(
            Node(
                name, Kind.AFFINE, "identity", "", source_line(node), expression.parents,
                operations, shape, value.dtype, True,
            )
        )  # fmt: skip
        return name

    def _layout(
        self, value: Tensor, name: str
    ) -> tuple[tuple[int, ...], tuple[Operation, ...], tuple[Operation, ...]]:
        """Stalk shape, and the relabellings to and from batch-first where the op is not."""
        sizes = [s if isinstance(s, int) else s.node.expr for s in value.shape]
        batch = self._batch
        if sizes and sizes[0] == batch:
            return tuple(int(s) for s in sizes[1:]), (), ()
        rule = Rule(Kind.RESHAPE)
        own = f"%{name}"
        for axis, size in enumerate(sizes):
            if size == batch:
                rest = tuple(int(s) for i, s in enumerate(sizes) if i != axis)
                to = Operation(f"{own}:in", torch.movedim, (Value(own), axis, 0), {}, (own,), rule)
                back = Operation(
                    f"{own}:out", torch.movedim, (Value(name), 0, axis), {}, (name,), rule
                )
                return rest, (to,), (back,)
        if sizes and batch is not None and sympy.sympify(sizes[0]) % sympy.sympify(batch) == 0:
            inner = int(sympy.sympify(sizes[0]) / sympy.sympify(batch))
            split = (Value(own), 0, (-1, inner))
            to = Operation(f"{own}:in", torch.unflatten, split, {}, (own,), rule)
            back = Operation(f"{own}:out", torch.flatten, (Value(name), 0, 1), {}, (name,), rule)
            return (inner, *(int(s) for s in sizes[1:])), (to,), (back,)
        raise _Unreadable(f"its value has shape {tuple(value.shape)}, with no batch axis in it")

    def _symbolic(self, arg: Any) -> Any:
        if isinstance(arg, FxNode):
            return self._env[arg.name].leaf
        if isinstance(arg, torch.SymInt):
            return self._size(arg)
        if isinstance(arg, list | tuple):
            return type(arg)(self._symbolic(a) for a in arg)
        return arg

    def _size(self, value: int | torch.SymInt) -> Any:
        if isinstance(value, int):
            return value
        expr = value.node.expr
        if not expr.free_symbols:
            return int(expr)
        function = sympy.lambdify(self._batch, expr, modules="math")
        return Size(lambda b: int(function(b)), str(expr))


class _Unreadable(Exception):
    pass


def _settled(target: Any, args: tuple[Any, ...], node: FxNode) -> tuple[Any, tuple[Any, ...]]:
    """Calls whose meaning hangs on autograd or on the batch size, written so that it does not."""
    if target is torch.ops.aten.detach.default:
        return torch.ops.aten.alias.default, args  # a restriction map is not cut by it
    if target is torch.ops.aten.squeeze.default:
        shape = node.all_input_nodes[0].meta["val"].shape
        single = [i for i, s in enumerate(shape) if i > 0 and isinstance(s, int) and s == 1]
        return torch.ops.aten.squeeze.dims, (args[0], single)  # a batch of one keeps its axis
    return target, args


def _first_of(target: Callable[..., Any]) -> Callable[..., Any]:
    """The operation whose value is the first of the values of `target`."""

    def first(*args: Any, **kwargs: Any) -> Any:
        return target(*args, **kwargs)[0]

    first.__name__ = str(target)
    return first


def _merge(used: list[_Expression]) -> tuple[Operation, ...]:
    merged = {op.name: op for e in used for op in e.operations}
    return tuple(merged.values())


def _op_name(node: FxNode) -> str:
    """Operations are named apart from vertices, which share one scope with them."""
    return f"%{node.name}"


def _value_name(arg: Any) -> str | None:
    return arg.name if isinstance(arg, Value) else None


def _kind(rule: Rule, operation: Operation) -> Kind:
    """A join when several activations enter; affine when one enters an affine position."""
    if rule.kind is Kind.RESHAPE:
        return Kind.RESHAPE
    if len(operation.operands) > 1:
        return Kind.JOIN
    if rule.additive:
        return Kind.AFFINE
    if rule.linear_in:
        name = operation.operands[0]
        at = [i for i, a in enumerate(operation.args) if _value_name(a) == name]
        return Kind.AFFINE if len(at) == 1 and at[0] in rule.linear_in else Kind.SMOOTH
    return rule.kind


def module_path(node: FxNode) -> str:
    """Path of the module that ran this node, as `named_modules` spells it."""
    stack = node.meta.get("nn_module_stack") or {}
    if not stack:
        return ""
    path = list(stack.values())[-1][0]
    return re.sub(r"@\d+$", "", path)


def source_line(node: FxNode) -> str:
    """file:line of the user's code behind this node, when the trace kept it."""
    places = re.findall(r'File "([^"]+)", line (\d+)', node.meta.get("stack_trace") or "")
    places = [p for p in places if "/torch/" not in p[0]] or places
    return f"{places[-1][0].rsplit('/', 1)[-1]}:{places[-1][1]}" if places else ""


def _name(
    nodes: list[Node], outputs: tuple[str, ...], inputs: Mapping[str, tuple[int, ...]]
) -> tuple[tuple[Node, ...], tuple[str, ...], dict[str, tuple[int, ...]]]:
    """Rename vertices by module path, with the op appended where a module has several."""
    per_module: dict[str, int] = {}
    for node in nodes:
        per_module[node.module] = per_module.get(node.module, 0) + 1
    names = {n: "input" if len(inputs) == 1 else f"input.{n}" for n in inputs}
    taken: dict[str, int] = {}
    for node in nodes:
        op = node.op.removeprefix("aten.").split(".")[0]
        single = node.module and per_module[node.module] == 1
        wanted = node.module if single else ".".join(filter(None, (node.module, op)))
        wanted = node.name if node.op == "identity" else wanted
        count = taken.get(wanted, 0)
        taken[wanted] = count + 1
        names[node.name] = wanted if count == 0 else f"{wanted}_{count}"
    renamed = []
    for node in nodes:
        rename = {p: names[p] for p in node.parents}
        operations = tuple(_rename(op, rename) for op in node.operations)
        parents = tuple(names[p] for p in node.parents)
        renamed.append(replace(node, name=names[node.name], operations=operations, parents=parents))
    shapes = {names[n]: s for n, s in inputs.items()}
    return tuple(renamed), tuple(names[o] for o in outputs), shapes


def _rename(op: Operation, names: Mapping[str, str]) -> Operation:
    def leaf(arg: Any) -> Any:
        if isinstance(arg, Value):
            return Value(names.get(arg.name, arg.name))
        if isinstance(arg, list | tuple):
            return type(arg)(leaf(a) for a in arg)
        return arg

    operands = tuple(names.get(n, n) for n in op.operands)
    kwargs = {k: leaf(v) for k, v in op.kwargs.items()}
    return replace(op, args=tuple(leaf(a) for a in op.args), kwargs=kwargs, operands=operands)
