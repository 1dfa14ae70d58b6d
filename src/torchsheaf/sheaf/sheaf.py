"""The sheaf of a network: cells, restriction maps at a state, residual."""

import difflib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from torchsheaf.cochain import Cochain, Space, is_finite
from torchsheaf.network import Composition, Network, read_network
from torchsheaf.network.placement import placement, require_beside
from torchsheaf.sheaf.cells import Edge, Vertex
from torchsheaf.sheaf.pattern import ActivationPattern

if TYPE_CHECKING:
    import networkx as nx

    Inputs = Tensor | Sequence[Tensor] | Mapping[str, Tensor]


@dataclass(frozen=True, eq=False, repr=False)
class Sheaf:
    """A cellular sheaf over a computation graph.

    One vertex per intermediate value, one edge per non-input vertex v with discrepancy
    r_v = c_v − f_v(c_parents). `form` is "unfused" (the paper's object: gates have edges of their
    own) or "fused" (gates folded into the edge that uses them: tail map W·Σ).
    """

    network: Network
    form: str

    def __repr__(self) -> str:
        kinds = Counter(str(e.kind) for e in self.edges.values())
        edges = ", ".join(f"{n} {kind}" for kind, n in kinds.items())
        size = f"{len(self.vertices)} vertices, {self.space.dim} coordinates"
        return f"Sheaf({self.form}: {size}; {edges})"

    @cached_property
    def vertices(self) -> dict[str, Vertex]:
        """Vertices by name, in topological order."""
        inputs = {n: Vertex(n, s, True, "") for n, s in self.network.inputs.items()}
        return inputs | {
            n.name: Vertex(n.name, n.shape, False, n.module) for n in self.network.nodes
        }

    @cached_property
    def edges(self) -> dict[str, Edge]:
        """Edges by name (that of the head vertex), in topological order."""
        learnable = self.network.parameters().keys()
        return {
            n.name: Edge(n, tuple(s for s in n.states if s in learnable))
            for n in self.network.nodes
        }

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the input vertices."""
        return tuple(self.network.inputs)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the vertices that the model returns."""
        return self.network.readout

    @cached_property
    def space(self) -> Space:
        """C⁰: all vertex stalks."""
        return Space({v.name: v.shape for v in self.vertices.values()})

    @cached_property
    def edge_space(self) -> Space:
        """C¹: all edge stalks."""
        return Space({e.name: e.shape for e in self.edges.values()})

    @cached_property
    def children(self) -> dict[str, tuple[str, ...]]:
        """Edges that use each vertex as a parent."""
        found: dict[str, list[str]] = {v: [] for v in self.vertices}
        for edge in self.edges.values():
            for parent in edge.parents:
                found[parent].append(edge.name)
        return {v: tuple(e) for v, e in found.items()}

    def upstream(self, names: Iterable[str]) -> set[str]:
        """The vertices that these depend on, themselves among them."""
        found = set(names)
        for edge in reversed(self.edges.values()):
            if edge.head in found:
                found.update(edge.parents)
        return found

    @cached_property
    def _gates(self) -> dict[str, None]:
        """The gate operations, in topological order."""
        return {op.name: None for node in self.network.nodes for op in node.gates}

    @property
    def is_piecewise_affine(self) -> bool:
        """Whether every edge is affine, a gate, or an affine join."""
        return all(e.node.piecewise_affine for e in self.edges.values())

    def vertex(self, name: str) -> str:
        """A vertex name; "output" means the model's only output when no vertex is called so."""
        if isinstance(name, str) and name in self.vertices:
            return name
        if name == "output" and len(self.outputs) == 1:
            return self.outputs[0]
        if name == "output":
            several = ", ".join(self.outputs)
            raise ValueError(f"this model has {len(self.outputs)} outputs; write one of: {several}")
        raise ValueError(f"no vertex named {name!r}; {self._instead(name)}")

    def _instead(self, name: str) -> str:
        """What to write where no vertex has that name: what leaves a module, or the like."""
        inside = {n.name for n in self.network.nodes if f"{n.module}.".startswith(f"{name}.")}
        leaving = [
            v for v in self.vertices
            if v in inside and (v in self.outputs or not inside.issuperset(self.children[v]))
        ]  # fmt: skip
        if leaving:
            return f"what leaves the module of that name is {' and '.join(map(repr, leaving))}"
        known = list(self.vertices)
        if len(known) <= 40:
            return f"write one of: {', '.join(known)}"
        alike = [v for v in known if v.endswith(f".{name}")]
        alike += difflib.get_close_matches(str(name), known, n=8)
        return (
            f"write one of {len(known)} vertices, such as {', '.join(dict.fromkeys(alike))}; "
            "list(sheaf.vertices) has them all"
            if alike
            else f"write one of the {len(known)} in list(sheaf.vertices)"
        )

    def input(self, name: str) -> str:
        """An input vertex by its name, or by its argument's: "x" for "input.x" or "input"."""
        found = name if name in self.inputs else self.network.arguments.get(name)
        if found is None:
            raise ValueError(f"no input named {name!r}; write one of: {', '.join(self.inputs)}")
        return found

    def only_output(self, values: str) -> str:
        """The only output vertex; ValueError where there are several, for what has no `output=`.

        The message names `values`, the cochain in which every output is found by name.
        """
        names = tuple(dict.fromkeys(self.outputs))
        if len(names) > 1:
            known = ", ".join(f"{values}[{n!r}]" for n in names)
            raise ValueError(f"this model has {len(names)} outputs; write one of: {known}")
        return names[0]

    def output(self, name: str | None = None) -> str:
        """An output vertex by its name; None or "output" means the model's only output.

        Raises ValueError when it is no output, or when None could mean several.
        """
        names = tuple(dict.fromkeys(self.outputs))
        if name in names:
            return str(name)
        if name not in (None, "output"):
            raise ValueError(f"no output named {name!r}; write one of: {', '.join(names)}")
        if len(names) > 1:
            raise ValueError(
                f"this model has {len(names)} outputs; write output= one of: {', '.join(names)}"
            )
        return names[0]

    def at_batch(self, batch: int, inputs: Mapping[str, Tensor] | None = None) -> "Sheaf":
        """This sheaf for another batch size: itself, unless the model fixes its batch.

        Then the model is captured again, on `inputs` of that size (zeros of the traced types where
        not given: write them where the model asks its inputs for more than a shape).
        """
        fixed = self.network.fixed_batch
        if fixed is None or fixed == batch:
            return self
        states = self.network.parameters().values()
        like = next((t for t in states if t.is_floating_point()), None)
        given = inputs or {}
        example = []
        for name, shape in self.network.inputs.items():
            own = self.network.types[name]
            # the model may have been converted since it was traced
            own = like.dtype if own.is_floating_point and like is not None else own
            device = None if like is None else like.device
            zeros = torch.zeros(batch, *shape, dtype=own, device=device)
            example.append(given.get(name, zeros))
        network = read_network(
            self.network.model, example, fused=self.form == "fused", unused_parameters="allow",
            keywords=self.network.keywords,
        )  # fmt: skip
        return replace(self, network=network)

    def read_inputs(self, x: "Inputs", *, missing: bool = False) -> dict[str, Tensor]:
        """Check and name the inputs; with `missing` they may contain NaN.

        Raises ValueError naming the input whose count, shape, dtype or values are wrong.
        """
        if not isinstance(x, Tensor | Sequence | Mapping):
            raise TypeError(f"input is a {type(x).__name__}; pass a tensor (batch, *shape)")
        if isinstance(x, Mapping):
            named = {self.input(n): t for n, t in x.items()}
            if set(named) != set(self.inputs):
                raise ValueError(
                    f"values came for {', '.join(named) or 'no input'}; this network has "
                    f"{len(self.inputs)} input(s): {', '.join(self.inputs)}"
                )
            given = {n: named[n] for n in self.inputs}
        else:
            tensors = (x,) if isinstance(x, Tensor) else tuple(x)
            others = [t for t in tensors if not isinstance(t, Tensor)]
            if others:
                raise TypeError(
                    f"input is a {type(x).__name__} of {type(others[0]).__name__}; pass a tensor "
                    "(batch, *shape), or a tuple of them for several inputs"
                )
            if len(tensors) != len(self.inputs):
                raise ValueError(
                    f"{len(tensors)} input(s) came; this network has {len(self.inputs)}: "
                    f"{', '.join(self.inputs)}"
                )
            given = dict(zip(self.inputs, tensors, strict=True))
        for name, tensor in given.items():
            self._check_input(name, tensor, missing=missing)
        batches = {n: t.shape[0] for n, t in given.items()}
        if len(set(batches.values())) > 1:
            raise ValueError(f"batch sizes must be equal; got {batches}")
        return given

    def _check_input(self, name: str, tensor: Tensor, *, missing: bool) -> None:
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} is a {type(tensor).__name__}; pass a tensor (batch, *shape)")
        shape = self.vertices[name].shape
        wanted = ", ".join(("batch", *map(str, shape)))
        if tuple(tensor.shape[1:]) != shape or tensor.ndim != len(shape) + 1:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; write ({wanted})")
        if tensor.shape[0] == 0:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}: the batch is empty")
        weights = self.network.parameters().values()
        require_beside(name, tensor, placement(weights), "the network's weights")
        if tensor.is_floating_point() and not missing and not is_finite(tensor):
            raise ValueError(f"{name} contains NaN or infinity; pass finite numbers")
        if tensor.is_floating_point() and name in self.network.integral:
            raise ValueError(f"{name} has dtype {tensor.dtype}; this input takes integers")
        types = {t.dtype for t in weights if t.is_floating_point()}
        needs_floats = name not in self.network.integral
        if len(types) == 1 and needs_floats and tensor.dtype not in types:
            (own,) = types
            raise ValueError(
                f"{name} has dtype {tensor.dtype}, the network's weights {own}; write x.to({own})"
            )

    @torch.no_grad()
    def forward(self, x: "Inputs") -> Cochain:
        """Substitution in topological order: every vertex's value in the forward pass."""
        return self.substitute(self._checked(x))

    @torch.no_grad()
    def substitute(
        self, inputs: Mapping[str, Tensor], revise: Callable[[str, Tensor], Tensor] | None = None
    ) -> Cochain:
        """Every vertex's value from the inputs' values, in topological order.

        `revise(name, value)` may write over a computed value before later vertices use it, as a
        forward hook does: this is activation patching.
        """
        values = dict(inputs)
        for node in self.network.nodes:
            value = self.network.evaluate(node, values)
            values[node.name] = value if revise is None else revise(node.name, value)
        return Cochain(values)

    @torch.no_grad()
    def trace(self, x: "Inputs") -> tuple[Cochain, dict[str, Composition]]:
        """`forward`, and the restriction maps there of every edge that a cotangent can go through.

        An edge that reads inputs alone has none. What a map's pull needs is kept from its
        evaluation, as autograd does: memory and cost of a forward pass that records.
        """
        values, inputs = self._checked(x), set(self.inputs)
        maps: dict[str, Composition] = {}
        for node in self.network.nodes:
            if inputs.issuperset(node.parents):
                values[node.name] = self.network.evaluate(node, values)
            else:
                values[node.name], maps[node.name] = self.network.trace(node, values)
        return Cochain(values), maps

    def _checked(self, x: "Inputs") -> dict[str, Tensor]:
        values = self.read_inputs(x)
        batch, fixed = next(iter(values.values())).shape[0], self.network.fixed_batch
        if fixed is not None and batch != fixed:
            raise ValueError(
                f"the model fixes its batch, and was read at {fixed}; write "
                f"sheaf.at_batch({batch}).forward(x)"
            )
        return values

    @torch.no_grad()
    def residual(self, c: Mapping[str, Tensor]) -> Cochain:
        """r_e = c_head − f_e(c_parents) for every edge; 0 exactly on global sections."""
        return Cochain(
            {n.name: c[n.name] - self.network.evaluate(n, c) for n in self.network.nodes}
        )

    @torch.no_grad()
    def linearise(
        self, at: Mapping[str, Tensor], pattern: Mapping[str, Tensor] | None = None
    ) -> dict[str, Composition]:
        """Tail restriction maps at a state: per edge, df_e as push and pull.

        `pattern` overrides the pieces that gates would select at that state. For smooth edges
        this is the tangent sheaf. Raises TypeError or ValueError for a pattern that is no such
        mapping, naming a gate that there is not.
        """
        chosen = {} if pattern is None else pattern
        if not isinstance(chosen, Mapping):
            raise TypeError(f"pattern is a {type(chosen).__name__}; write sheaf.pattern(cochain)")
        if unknown := [n for n in chosen if n not in self._gates]:
            gates = ", ".join(self._gates) or "none, this network has no gates"
            raise ValueError(f"pattern: no gate named {unknown[0]!r}; write one of: {gates}")
        return {n.name: self.network.linearise(n, at, chosen) for n in self.network.nodes}

    @torch.no_grad()
    def pattern(self, at: Mapping[str, Tensor]) -> ActivationPattern:
        """The activation pattern at a cochain: each gate reads its own pre-activation stalk."""
        selections: dict[str, Tensor] = {}
        owners: dict[str, str] = {}
        for node in self.network.nodes:
            if node.gates:
                for op, (gate, z) in self.network.gate_operands(node, at).items():
                    selections[op] = gate.select(z)
                    owners[op] = node.name
        return ActivationPattern(selections, owners)

    def graph(self) -> "nx.DiGraph":
        """The computation graph: vertices with shape and dim, arrows with edge, kind and op."""
        import networkx as nx  # an import of 0.2 s that most runs have no use for

        graph = nx.DiGraph(form=self.form)
        for v in self.vertices.values():
            graph.add_node(v.name, shape=v.shape, dim=v.dim, is_input=v.is_input, module=v.module)
        for e in self.edges.values():
            for parent in e.parents:
                graph.add_edge(parent, e.head, edge=e.name, kind=str(e.kind), op=e.op)
        return graph


def require_sheaf(sheaf: object) -> None:
    """Raise TypeError for what is no sheaf."""
    if not isinstance(sheaf, Sheaf):
        raise TypeError(f"a {type(sheaf).__name__} came for the sheaf; write encode(model, x)")
