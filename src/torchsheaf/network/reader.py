"""Walks a traced graph in order and folds it into nodes."""

import operator
from collections.abc import Mapping, Sequence
from itertools import chain, count
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.fx import Node as FxNode

from torchsheaf.network.batch import Batch
from torchsheaf.network.batch_first import is_back, placed
from torchsheaf.network.calls import chooses, first_of, is_aside, rewriting, settled
from torchsheaf.network.composition import is_complex
from torchsheaf.network.errors import Offender, Unreadable, UnsupportedModel
from torchsheaf.network.expression import Expression, kind_of_all, merged
from torchsheaf.network.layout import Layout, Stalk
from torchsheaf.network.naming import module_path, name_vertices, source_line
from torchsheaf.network.network import Network, Node
from torchsheaf.network.operation import Operation, State, Value
from torchsheaf.network.rules import Kind, Rule, functional, operation_called, rule_for
from torchsheaf.network.rules.jumps import CHOSEN, no_rule, no_tangent

_IDENTITY = Rule(Kind.RESHAPE)
_FOLDED = Rule(Kind.RESHAPE)  # arithmetic on held values alone: evaluated, never linearised


class Reader:
    """Collects nodes; every call either becomes a vertex or is folded into the one that uses it.

    `states` are the model's tensors by name and `learnable` the names of its parameters;
    `normalisations` the calls that end one, with the steps that are folded into it; `infinite` the
    calls whose values no vertex can hold, folded too.
    """

    def __init__(
        self, *, fused: bool, fixed_batch: int | None, states: dict[str, Any],
        learnable: frozenset[str], normalisations: Mapping[FxNode, frozenset[FxNode]],
        infinite: frozenset[FxNode],
    ) -> None:  # fmt: skip
        self._fused = fused
        self._batch = Batch(fixed_batch)
        self._fixed = fixed_batch
        self._states = states
        self._learnable = learnable
        self._normalisations = normalisations
        self._inside = infinite.union(*normalisations.values())
        self._env: dict[FxNode, Expression] = {}
        self._results: dict[FxNode, list[Expression]] = {}
        self._names: dict[FxNode, str] = {}
        self._taken: set[str] = set()
        self._stalks: dict[str, Stalk] = {}
        self._inputs: dict[str, tuple[int, ...]] = {}
        self._nodes: list[Node] = []
        self._outputs: list[str] = []
        self._positions: list[int] = []
        self._offenders: list[Offender] = []
        self._maxima: set[FxNode] = set()

    def add_input(self, node: FxNode) -> None:
        """A user input: a vertex if it is a tensor, a constant otherwise."""
        value = node.meta.get("val")
        if not isinstance(value, Tensor):
            self._env[node] = Expression(value)
            return
        self._batch.meet(value.shape[0])
        name = self._name(node)
        self._inputs[name] = tuple(int(s) for s in value.shape[1:])
        self._stalks[name] = self._inputs[name], value.dtype, value.device
        self._env[node] = Expression(
            Value(name), parents=(name,), live=value.is_floating_point() or value.is_complex()
        )

    def add_state(self, node: FxNode, target: str) -> None:
        """A parameter, buffer or constant."""
        self._env[node] = Expression(State(target))

    def add_call(self, node: FxNode) -> None:
        """An operation; unreadable ones are collected and reported together."""
        value = node.meta.get("val")
        if isinstance(value, torch.SymInt | int):
            self._env[node] = Expression(self._batch.size(value))
            return
        if isinstance(node.target, torch._ops.HigherOrderOperator):
            self._inline(node)
            return
        several = node.target is operator.getitem
        if not node.users and (value is None or several or is_aside(node)):
            return  # an assertion of the trace, a choice or a result among several: not used
        try:
            expression = self._entry(node) or self._call(node)
        except Unreadable as problem:
            expression = self._offend(node, str(problem))
        self._env[node] = expression
        if functional(node.target) is not node.target and isinstance(node.args[0], FxNode):
            self._env[node.args[0]] = expression

    def add_output(self, outputs: Any) -> None:
        """What the model returns."""
        flat = torch.utils._pytree.tree_leaves(outputs)
        for i, node in enumerate(flat):
            if node not in self._env:
                continue
            expression = self._env[node]
            if not expression.live or not isinstance(node.meta.get("val"), Tensor):
                continue
            if is_complex(node.meta["val"]):
                self._offend(node, f"output {i} is complex; return torch.view_as_real of it")
                continue
            self._positions.append(i)
            if expression.operations or expression.leaf.name in self._inputs:
                name = "output" if len(flat) == 1 else f"output.{i}"
                self._outputs.append(self._close(name, node, expression))
            else:
                self._outputs.append(expression.leaf.name)

    def finish(self, model: nn.Module) -> Network:
        """The network; raises `UnsupportedModel` with every offender."""
        if self._offenders:
            raise UnsupportedModel(
                f"{len(self._offenders)} node(s) of this model have no rule", self._offenders
            )
        if not self._outputs:
            raise UnsupportedModel(
                "no output of this model is made of real numbers that depend on its input; return "
                "what an argmax or a comparison is taken of"
            )
        nodes, outputs, inputs = name_vertices(self._nodes, tuple(self._outputs), self._inputs)
        return Network(
            inputs, nodes, outputs, model, self._fixed, dict(self._states), tuple(self._positions),
            {n: self._stalks[v][1] for n, v in zip(inputs, self._inputs, strict=True)},
            dict(zip(self._inputs, inputs, strict=True)),
        )  # fmt: skip

    def _offend(self, node: FxNode, reason: str) -> Expression:
        """Note a call that cannot be read; what stands for its value in the calls after it."""
        self._offenders.append(
            Offender(str(node.target), module_path(node), source_line(node), reason)
        )
        name = self._name(node)
        return Expression(Value(name), parents=(name,), live=True)

    def _inline(self, node: FxNode) -> None:
        """`with torch.no_grad()` and disabled autocast are traced as graphs of their own."""
        owner = node.graph.owning_module
        bodies = [
            (i, getattr(owner, str(a.target), None))
            for i, a in enumerate(node.args)
            if isinstance(a, FxNode) and a.op == "get_attr"
        ]
        found = [(i, b) for i, b in bodies if isinstance(b, GraphModule)]
        if len(found) != 1 or "wrap_with" not in str(node.target):
            why = "control flow that depends on the data has no fixed graph"
            self._env[node] = self._offend(node, why)
            return
        ((at, body),) = found
        operands = iter(node.args[at + 1 :])
        for inner in body.graph.nodes:
            if inner.op == "placeholder":
                given = next(operands)
                self._env[inner] = (
                    self._env[given] if isinstance(given, FxNode) else Expression(given)
                )
            elif inner.op == "call_function":
                self.add_call(inner)
            elif inner.op == "get_attr" and isinstance(getattr(body, inner.target), Tensor):
                target = self._name(inner)
                self._states[target] = getattr(body, inner.target)
                self.add_state(inner, target)
            elif inner.op == "output":
                results = torch.utils._pytree.tree_leaves(inner.args[0])
                self._results[node] = [self._env[r] for r in results]

    def _entry(self, node: FxNode) -> Expression | None:
        """An entry of an inlined graph, or of a gate that returns (maxima, indices)."""
        if node.target is not operator.getitem:
            return None
        source = node.all_input_nodes[0]
        if source in self._results:
            return self._results[source][int(node.args[1])]  # type: ignore[arg-type]
        if source not in self._maxima:
            return None
        if node.args[1] != 0:
            raise Unreadable(CHOSEN)
        return self._env[source]

    def _call(self, node: FxNode) -> Expression:
        target = functional(node.target)
        op_name = operation_called(target)
        used = [self._env[n] for n in node.all_input_nodes]
        from_complex = any(is_complex(n.meta.get("val")) for n in node.all_input_nodes)
        rule = rule_for(op_name, of_complex=from_complex)
        used_parents = tuple(dict.fromkeys(p for e in used for p in e.parents))
        live = any(self._env[n].live for n in _valued(node, rule))
        args = tuple(self._symbolic(a) for a in node.args)
        kwargs = {k: self._symbolic(v) for k, v in node.kwargs.items()}
        value = node.meta.get("val")
        if not live:
            folded = self._operation(node, target, args, kwargs, (), _FOLDED)
            return self._held(node, op_name, folded, used, used_parents)
        if isinstance(value, Tensor) and not (value.is_floating_point() or value.is_complex()):
            raise Unreadable(no_tangent(value.dtype))
        if rule is None:
            raise Unreadable(no_rule(op_name))
        target, args = settled(target, args, node)
        reason = rule.refuse(tuple(node.args), node.kwargs) if rule.refuse else None
        if reason:
            raise Unreadable(reason)
        if value is not None and chooses(rule, value):
            self._maxima.add(node)
            value, target = value[0], first_of(target)
        operation = self._operation(node, target, args, kwargs, used, rule)
        operations = (*merged(used), operation)
        if (rule.gate or rule.kinks) and len(operation.operands) == 1:
            operations = self._placed(node, value, operations)
        pending = next((e.pending for e in used if e.pending is not None), None)
        kind, op_name = pending or (rule.kind_of(operation), op_name)
        if rule.kind is not Kind.RESHAPE and isinstance(value, tuple | list):
            return Expression(
                Value(operation.name), operations, used_parents, True, (kind, op_name)
            )
        inside = node in self._inside or is_complex(value)
        if inside and isinstance(value, Tensor):
            self._layout(value, operations, used_parents)  # refuses what mixes samples
        relabels = kind is Kind.RESHAPE and not from_complex  # which end in a vertex
        if relabels or inside or (self._fused and kind is Kind.GATE):
            return Expression(Value(operations[-1].name), operations, used_parents, True)
        if node in self._normalisations:
            op_name, kind = "normalise", Kind.SMOOTH
        return self._vertex(node, value, op_name, kind, operations, used_parents)

    def _placed(
        self, node: FxNode, value: Any, operations: tuple[Operation, ...]
    ) -> tuple[Operation, ...]:
        """A map that ends in a gate, with the batch first where the gate acts."""
        operand = node.args[0]
        assert isinstance(operand, FxNode)
        source = self._env[operand]
        if not source.operations:
            return operations
        inside, _ = self._layout(operand.meta["val"], source.operations, source.parents)
        outside, _ = self._layout(value, operations, source.parents)
        if inside.is_batch_first and outside.is_batch_first:
            return operations
        return placed(operations, inside, outside)

    def _held(
        self,
        node: FxNode,
        op_name: str,
        operation: Operation,
        used: Sequence[Expression],
        parents: tuple[str, ...],
    ) -> Expression:
        """No activation enters: folded, unless parameters meet held integers (an embedding)."""
        if reason := rewriting(operation.target, operation.kwargs):
            raise Unreadable(reason)
        operations = (*merged(used), operation)
        value = node.meta.get("val")
        learns = any(s in self._learnable for op in operations for s in op.states())
        if parents and learns and isinstance(value, Tensor) and value.is_floating_point():
            return self._vertex(node, value, op_name, Kind.AFFINE, operations, parents)
        return Expression(Value(operation.name), operations, parents)

    def _operation(
        self,
        node: FxNode,
        target: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        used: Sequence[Expression],
        rule: Rule,
    ) -> Operation:
        leaves = torch.utils._pytree.tree_leaves([args, kwargs])
        names = [a.name for a in leaves if isinstance(a, Value)]
        depends = {e.leaf.name for e in used if e.live and isinstance(e.leaf, Value)}
        operands = tuple(dict.fromkeys(n for n in names if n in depends))
        return Operation(self._own(node), target, args, kwargs, operands, rule)

    def _vertex(
        self,
        node: FxNode,
        value: Any,
        op_name: str,
        kind: Kind,
        operations: tuple[Operation, ...],
        parents: tuple[str, ...],
    ) -> Expression:
        last = operations[-1]
        name = self._name(node)
        layout, shape = self._layout(value, operations, parents)
        expression = Expression(Value(name), (), (name,), True)
        if not layout.is_batch_first:
            already = is_back(last, layout)  # a gate, which is batch first
            operations = operations[:-1] if already else operations
            forth, back = layout.operations(name, operations[-1].name)
            operations = operations if already else (*operations, forth)
            expression = Expression(Value(back.name), (back,), (name,), True)
        stalks = [self._stalks[p] for p in parents if p in self._stalks]  # without those refused
        several = sum(dtype.is_floating_point for _, dtype, _ in stalks) > 1
        kind, constant = kind_of_all(operations, kind, several=several)
        self._stalks[name] = shape, value.dtype, value.device
        self._nodes.append(
            Node(
                name, kind, op_name, module_path(node), source_line(node), parents,
                operations, shape, value.dtype, constant,
            )
        )  # fmt: skip
        return expression

    def _close(self, name: str, node: FxNode, expression: Expression) -> str:
        """A relabelled (or bare) output gets an identity vertex, so that it can be held."""
        value = node.meta["val"]
        identity = Operation(
            f"%{name}", torch.ops.aten.alias.default, (expression.leaf,), {},
            (expression.leaf.name,), _IDENTITY,
        )  # fmt: skip
        operations = (*expression.operations, identity)
        try:
            layout, shape = self._layout(value, operations, expression.parents)
        except Unreadable as problem:
            raise UnsupportedModel(f"output {name!r}: {problem}") from None
        if not layout.is_batch_first:
            raise UnsupportedModel(
                f"the first axis of output {name!r} is not the batch axis; transpose it in the "
                "model's forward"
            )
        self._nodes.append(
            Node(
                name, Kind.AFFINE, "identity", "", source_line(node), expression.parents,
                operations, shape, value.dtype, True,
            )
        )  # fmt: skip
        return name

    def _layout(
        self, value: Tensor, operations: tuple[Operation, ...], parents: tuple[str, ...]
    ) -> tuple[Layout, tuple[int, ...]]:
        """Where the batch lies in a value, and the stalk's shape."""
        guess = bool(self._offenders)  # the model is refused anyway
        stalks = {} if guess else {p: self._stalks[p] for p in parents}
        return self._batch.layout(value, operations, stalks, self._state, guess=guess)

    def _state(self, name: str) -> Tensor:
        entry = self._states[name]
        return entry if isinstance(entry, Tensor) else getattr(*entry)

    def _name(self, node: FxNode) -> str:
        """The traced name, made unique over inlined graphs."""
        if node not in self._names:
            others = (f"{node.name}_{i}" for i in count(2))
            name = next(n for n in chain([node.name], others) if n not in self._taken)
            self._taken.add(name)
            self._names[node] = name
        return self._names[node]

    def _own(self, node: FxNode) -> str:
        """Operations are named apart from vertices, which share one scope with them."""
        return f"%{self._name(node)}"

    def _symbolic(self, arg: Any) -> Any:
        if isinstance(arg, FxNode):
            return self._env[arg].leaf
        if isinstance(arg, torch.SymInt):
            return self._batch.size(arg)
        if isinstance(arg, list | tuple):
            return type(arg)(self._symbolic(a) for a in arg)
        return arg


def _valued(node: FxNode, rule: Rule | None) -> list[FxNode]:
    """The arguments whose values matter, and not their shape alone."""
    if rule is None or not (rule.constant or rule.shaped_by):
        return node.all_input_nodes
    if rule.constant:
        return []
    return [a for i, a in enumerate(node.args) if isinstance(a, FxNode) and i not in rule.shaped_by]
