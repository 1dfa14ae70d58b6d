"""The graph as precision sees it: which calls choose a format, what flows between them."""

import functools
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from torchsheaf.network.aten import AtenCall, AtenGraph, Ref, substitute
from torchsheaf.precision.operators import kind_of, refuse_unknown

SINK = "output"


@dataclass(frozen=True, slots=True)
class Edge:
    """`consumer` reads `operand`, whose numbers are those of `source` seen through exact calls.

    source: a choosing call, an input of the model, or a constant. consumer: a choosing call, or
    "output" for what the model returns.
    """

    source: str
    operand: str
    consumer: str


@dataclass(frozen=True)
class Dataflow:
    """A graph with its choosing calls named, and one `Edge` per (operand, consumer).

    choices: the calls that get a format, in execution order. source: for every floating value the
    call, input or constant that fixes its grid. labels: the user's name of every choosing call.
    """

    graph: AtenGraph
    choices: tuple[str, ...]
    kinds: Mapping[str, str]
    source: Mapping[str, str]
    edges: tuple[Edge, ...]
    labels: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]]

    @functools.cached_property
    def calls(self) -> dict[str, AtenCall]:
        """Every call by name."""
        return {c.name: c for c in self.graph.calls}

    def is_constant(self, name: str) -> bool:
        """Whether the value is a weight (or an exact view of one)."""
        return self.source.get(name) in self.graph.constants

    def edge_list(self, *, constant: bool) -> tuple[Edge, ...]:
        """The edges that leave a constant, or those that do not."""
        return tuple(e for e in self.edges if (e.source in self.graph.constants) == constant)

    def find(self, key: str) -> list[str]:
        """Choosing calls named by a label, a module path (with what is below it) or an operator.

        A label wins over a module, a module over an operator; "aten.add" is always the operator.
        """
        calls = self.calls
        if key.startswith("aten."):
            return [c for c in self.choices if f"{calls[c].target}.".startswith(f"{key}.")]
        by_label = [c for c in self.choices if self.labels[c] == key]
        if by_label:
            return by_label
        inside = [c for c in self.choices if f"{calls[c].module}.".startswith(f"{key}.")]
        return inside or [c for c in self.choices if calls[c].packet == key]


def read_dataflow(graph: AtenGraph) -> Dataflow:
    """Name the choosing calls of a graph and draw its edges.

    Raises `UnsupportedModel` listing every floating kernel without a rounding model.
    """
    refuse_unknown(graph)
    graph = _with_conversions(graph)
    source: dict[str, str] = {}
    for name, (_, dtype) in graph.input_meta.items():
        if dtype.is_floating_point:
            source[name] = name
    for name, tensor in graph.constants.items():
        if tensor.is_floating_point():
            source[name] = name
    kinds: dict[str, str] = {}
    choices: list[str] = []
    edges: dict[tuple[str, str], Edge] = {}
    for c in graph.calls:
        floating = [n for n in c.operands if n in source]
        kind = kind_of(c)
        if kind == "cast":
            kind = "structural" if floating else "rounding"
        if kind == "structural" and len(floating) != 1:
            kind = "select"
        if c.packet == "copy" and len(floating) == 1:
            kind = "rounding"  # integers into floating numbers
        kinds[c.name] = kind
        if kind == "structural":
            source[c.name] = source[floating[0]]
        elif kind in ("rounding", "select"):
            choices.append(c.name)
            source[c.name] = c.name
            for n in floating:
                edges[n, c.name] = Edge(source[n], n, c.name)
    for n in graph.outputs:
        if n in source:
            edges[n, SINK] = Edge(source[n], n, SINK)
    labels, shapes = _labels(graph, choices), _shapes(graph)
    return Dataflow(graph, tuple(choices), kinds, source, tuple(edges.values()), labels, shapes)


def _shapes(graph: AtenGraph) -> dict[str, tuple[int, ...]]:
    shapes = {n: shape for n, (shape, _) in graph.input_meta.items()}
    shapes |= {n: tuple(t.shape) for n, t in graph.constants.items()}
    return shapes | {c.name: c.shape for c in graph.calls if c.shape is not None}


def _with_conversions(graph: AtenGraph) -> AtenGraph:
    """The graph in which a floating kernel that reads whole numbers alone has them converted.

    The kernel itself would compute in torch's default dtype, whatever format it is given.
    """
    floating = {n for n, (_, dtype) in graph.input_meta.items() if dtype.is_floating_point}
    floating |= {n for n, t in graph.constants.items() if t.is_floating_point()}
    floating |= {c.name for c in graph.calls if c.is_floating}
    shapes, convert = _shapes(graph), torch.ops.aten._to_copy.default
    calls: list[AtenCall] = []
    for c in graph.calls:
        if c.operands and kind_of(c) == "rounding" and floating.isdisjoint(c.operands):
            wide = {n: Ref(f"{c.name}_of_{n}") for n in c.operands}
            calls += [
                AtenCall(
                    ref.name, str(convert), convert, (Ref(n),), {"dtype": c.dtype}, shapes[n],
                    c.dtype, c.module, c.source,
                )
                for n, ref in wide.items()
            ]  # fmt: skip
            c = replace(c, args=substitute(c.args, wide.__getitem__))
        calls.append(c)
    return replace(graph, calls=tuple(calls))


def _labels(graph: AtenGraph, choices: list[str]) -> dict[str, str]:
    """Module path, with the operator appended where a module makes several choosing calls."""
    calls = {c.name: c for c in graph.calls}
    crowd = Counter(calls[c].module for c in choices)
    seen: Counter[str] = Counter()
    labels = {}
    for name in choices:
        c = calls[name]
        packet = c.packet.strip("_")
        alone = c.module and crowd[c.module] == 1
        label = c.module if alone else f"{c.module}.{packet}" if c.module else packet
        seen[label] += 1
        labels[name] = label if seen[label] == 1 else f"{label}_{seen[label] - 1}"
    return labels
