"""A network as plain data: nodes in topological order, each a short program of ATen calls."""

from collections.abc import Container, Mapping
from copy import deepcopy
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from torchsheaf.cochain import is_finite
from torchsheaf.network.composition import Composition, differential
from torchsheaf.network.differential import Differential
from torchsheaf.network.gates import Gate
from torchsheaf.network.operation import Operation, evaluate
from torchsheaf.network.rules import Kind
from torchsheaf.network.rules.piecewise import jump


@dataclass(frozen=True)
class Node:
    """One vertex that is computed: c_v = f_v(c_parents), by `operations` in order.

    Before the node's own operation come relabellings (and, in the fused form, gates) folded into
    this node; after it, where its result is not batch first, the relabelling that makes it so.
    `piecewise_affine` says that f_v is affine or a gate, also as a join, so that its linear part
    does not depend on the state within one pattern.
    """

    name: str
    kind: Kind
    op: str
    module: str
    source: str
    parents: tuple[str, ...]
    operations: tuple[Operation, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype
    piecewise_affine: bool

    @property
    def operation(self) -> str:
        """The operation for readers: "linear", not "aten.linear.default"."""
        namespace, *rest = self.op.split(".")
        return rest[0] if rest else namespace

    @cached_property
    def states(self) -> tuple[str, ...]:
        """Names of the parameters, buffers and constants used, in order of use."""
        return tuple(dict.fromkeys(s for op in self.operations for s in op.states()))

    @cached_property
    def coarsest(self) -> torch.dtype:
        """The least precise type of any value inside: a cast may be folded into the map."""
        live = [op for op in self.operations if op.operands]
        given = [a for op in live for a in (*op.args, *op.kwargs.values())]
        types = [a for a in given if isinstance(a, torch.dtype) and a.is_floating_point]
        return max((self.dtype, *types), key=lambda t: torch.finfo(t).eps)

    @cached_property
    def stops(self) -> frozenset[str]:
        """The operations inside that cut an activation off from autograd."""
        return frozenset(op.name for op in self.operations if op.rule.stops and op.operands)

    @property
    def gates(self) -> tuple[Operation, ...]:
        """The gate operations inside."""
        return tuple(op for op in self.operations if op.rule.gate is not None)

    @cached_property
    def kinked(self) -> tuple[Operation, ...]:
        """The gate operations inside, and the smooth ones whose slope jumps somewhere."""
        return tuple(
            op for op in self.operations
            if op.rule.gate or (op.rule.kinks and op.operands and op.rule.kinks(op.args, op.kwargs))
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Network:
    """An `nn.Module` read as a DAG; the model's tensors are looked up live.

    `fixed_batch` is the only batch size this capture can run, or None when it is dynamic.
    `readout` maps model outputs to vertex names.
    """

    inputs: Mapping[str, tuple[int, ...]]
    nodes: tuple[Node, ...]
    readout: tuple[str, ...]
    model: nn.Module
    fixed_batch: int | None
    states: Mapping[str, tuple[Any, str] | Tensor] = field(repr=False)
    positions: tuple[int, ...]
    """Which of the model's flattened outputs each entry of `readout` is."""
    types: Mapping[str, torch.dtype]
    """Element types of the inputs, as traced."""
    arguments: Mapping[str, str]
    """The input that each of the forward's arguments is."""
    keywords: tuple[str, ...] = ()
    """The arguments that the forward is given by name: those of the last inputs."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "Network":
        """A network that follows a copy of the model."""
        return replace(
            self, **{f.name: deepcopy(getattr(self, f.name), memo) for f in fields(self)}
        )

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        """Refused: operations of torch cannot be pickled."""
        raise TypeError(
            "what was read of a model cannot be pickled, nor what holds it: pickle the model and "
            "the values (a result's .cochain), and read the model again with encode(model, x)"
        )

    @cached_property
    def integral(self) -> frozenset[str]:
        """The inputs that are integers (token numbers, say)."""
        return frozenset(n for n, t in self.types.items() if not t.is_floating_point)

    @property
    def jump(self) -> tuple[str, float] | None:
        """A vertex whose map jumps, and where; None where all are continuous, as gates should be.

        A jump is outside of what is known of critical points and flows (docs/theory.md, section 1).
        """
        found = ((node.name, jump(op)) for node in self.nodes for op in node.gates)
        return next(((name, at) for name, at in found if at is not None), None)

    def state(self, name: str) -> Tensor:
        """A parameter, buffer or constant by name, as it is now."""
        entry = self.states[name]
        if isinstance(entry, Tensor):
            return entry
        owner, attribute = entry
        # The dictionary first: nn.Module's attribute look-up is ten times slower.
        found = getattr(owner, "_parameters", {}).get(attribute)
        return getattr(owner, attribute) if found is None else found

    def widened(self) -> "Network":
        """A copy of the network in float64, no longer live: tensors and types that maps name."""
        states: dict[str, Tensor] = {}
        for name in self._used:
            tensor = self.state(name).detach()
            wide = tensor.double() if tensor.is_floating_point() else tensor
            learnable = isinstance(self.state(name), nn.Parameter)
            states[name] = nn.Parameter(wide, requires_grad=False) if learnable else wide
        types = {
            n: torch.float64 if t.is_floating_point else t for n, t in self.types.items()
        }  # fmt: skip
        nodes = tuple(
            replace(n, dtype=torch.float64, operations=tuple(op.widened() for op in n.operations))
            for n in self.nodes
        )
        return replace(self, nodes=nodes, states=states, types=types)

    def parameters(self) -> dict[str, Tensor]:
        """The learnable tensors claimed by some node."""
        found = {name: self.state(name) for name in self._used}
        return {n: t for n, t in found.items() if isinstance(t, nn.Parameter)}

    def require_finite(self) -> None:
        """Raise ValueError naming a weight that has come to hold NaN or infinity since `encode`.

        Cost: one pass over the weights; so once per question, not once per sweep.
        """
        states = {name: self.state(name) for name in self._used}
        masks = {name for name, t in states.items() if not isinstance(t, nn.Parameter)}
        require_finite(states, masks)

    @cached_property
    def _used(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(s for node in self.nodes for s in node.states))

    def evaluate(self, node: Node, values: Mapping[str, Tensor]) -> Tensor:
        """f_v at the parents' values."""
        batch = values[node.parents[0]].shape[0]
        if len(node.operations) == 1:
            op = node.operations[0]
            args, kwargs = op.resolve(values, self.state, batch)
            return op.target(*args, **kwargs)
        scope = evaluate(node.operations, _of_parents(node, values), self.state, batch)
        return scope[node.operations[-1].name]

    def linearise(
        self, node: Node, values: Mapping[str, Tensor], selections: Mapping[str, Tensor]
    ) -> Composition:
        """df_v at the parents' values; gates named in `selections` take that piece instead."""
        return self._follow(node, values, selections, traced=False)[1]

    def trace(self, node: Node, values: Mapping[str, Tensor]) -> tuple[Tensor, Composition]:
        """f_v and df_v at the parents' values; no operation is evaluated twice."""
        scope, differential_of_node = self._follow(node, values, {}, traced=True)
        return scope[node.operations[-1].name], differential_of_node

    def _follow(
        self, node: Node, values: Mapping[str, Tensor], selections: Mapping[str, Tensor], *,
        traced: bool,
    ) -> tuple[dict[str, Any], Composition]:  # fmt: skip
        """Values and differentials of the operations inside; `traced`: the last one's value too.

        Then values come from the differentials where those know them: what their pull needs is
        computed here and not again.
        """
        batch = values[node.parents[0]].shape[0]
        scope = _of_parents(node, values)
        parts: dict[str, Differential] = {}
        for op in node.operations:
            args, kwargs = op.resolve(scope, self.state, batch)
            known = None
            if op.operands:
                parts[op.name] = differential(op, args, kwargs, scope, selections)
                known = parts[op.name].value if traced else None
            if traced or op is not node.operations[-1]:
                scope[op.name] = op.target(*args, **kwargs) if known is None else known
        return scope, Composition(parts, node.parents, node.stops)

    def gate_operands(
        self, node: Node, values: Mapping[str, Tensor]
    ) -> dict[str, tuple[Gate, Tensor]]:
        """Per gate operation inside the node: the gate and its pre-activation z."""
        return self._operands(node, values, node.gates)

    def kink_operands(
        self, node: Node, values: Mapping[str, Tensor]
    ) -> dict[str, tuple[Gate, Tensor]]:
        """The same for every operation with kinks: gates, and smooth ones whose slope jumps."""
        return self._operands(node, values, node.kinked)

    def _operands(
        self, node: Node, values: Mapping[str, Tensor], chosen: tuple[Operation, ...]
    ) -> dict[str, tuple[Gate, Tensor]]:
        batch = values[node.parents[0]].shape[0]
        scope = evaluate(node.operations[:-1], _of_parents(node, values), self.state, batch)
        found: dict[str, tuple[Gate, Tensor]] = {}
        for op in chosen:
            gate = op.rule.gate_of(*op.resolve(scope, self.state, batch))
            assert gate is not None
            found[op.name] = (gate, scope[op.operands[0]])
        return found


def _of_parents(node: Node, values: Mapping[str, Tensor]) -> dict[str, Any]:
    """The parents' values only: a whole cochain for every node would be quadratic in depth."""
    return {p: values[p] for p in node.parents}


def require_finite(states: Mapping[str, Tensor], masks: Container[str]) -> None:
    """Raise ValueError naming the first tensor that holds NaN or infinity.

    Those named in `masks` may hold minus infinity, as attention masks do: what leaves a softmax is
    finite.
    """
    for name, tensor in states.items():
        if is_finite(tensor):
            continue
        if name in masks and not bool(tensor.isnan().any() or tensor.isposinf().any()):
            continue
        raise ValueError(f"weight {name!r} contains NaN or infinity; restore or re-initialise it")
