"""AtenGraph + conversions → a GraphModule whose casts are explicit calls."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from torchsheaf.network.aten import AtenCall, AtenGraph, substitute

# A dtype to convert to, or a traceable function to apply.
Step = torch.dtype | Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Conversions:
    """Where numbers change their format.

    operands[value, reader], results[call], outputs[value]: conversion steps, in order. weights
    [constant, reader]: key of the stored copy, the copy itself, and the steps after loading it.
    dtypes[call]: what replaces a floating `dtype` keyword. passes: calls that are the identity.
    """

    operands: Mapping[tuple[str, str], Sequence[Step]]
    results: Mapping[str, Sequence[Step]]
    outputs: Mapping[str, Sequence[Step]]
    weights: Mapping[tuple[str, str], tuple[str, Tensor, Sequence[Step]]]
    dtypes: Mapping[str, torch.dtype]
    passes: frozenset[str] = field(default_factory=frozenset)


OUTPUT = "output"


def build_module(
    graph: AtenGraph, conversions: Conversions, name: str = "Applied"
) -> fx.GraphModule:
    """A GraphModule that makes the same calls with the given conversions between them.

    Weights are buffers, stored once per format. Shapes are those of the trace. The module can be
    exported and compiled; it returns the model's own output structure.
    """
    return _Builder(graph, conversions).build(name)


class _Builder:
    def __init__(self, graph: AtenGraph, conversions: Conversions) -> None:
        self.source, self.conversions = graph, conversions
        self.calls = {c.name: c for c in graph.calls}
        self.graph = fx.Graph()
        self.root = nn.Module()
        self.nodes: dict[str, fx.Node] = {}
        self.cached: dict[tuple[Any, ...], fx.Node] = {}
        self.fixed = self._constant_views()

    def _constant_views(self) -> set[str]:
        fixed = set(self.source.constants)
        for c in self.source.calls:
            if c.operands and all(n in fixed for n in c.operands):
                fixed.add(c.name)
        return fixed

    def build(self, name: str) -> fx.GraphModule:
        for n in self.source.inputs:
            self.nodes[n] = self.graph.placeholder(n)
        for c in self.source.calls:
            if c.name not in self.fixed:
                self.step(c)
        result = substitute(self.source.output, self.output)
        self.graph.output(result)
        self.graph.lint()
        return fx.GraphModule(self.root, self.graph, name)

    def step(self, c: AtenCall) -> None:
        if c.name in self.conversions.passes:
            self.nodes[c.name] = self.nodes[c.operands[0]]
            return
        node = self.emit(c, lambda n: self.operand(n, c.name))
        self.nodes[c.name] = self.convert(node, self.conversions.results.get(c.name, ()))

    def emit(self, c: AtenCall, value: Callable[[str], Any]) -> fx.Node:
        kwargs = substitute(dict(c.kwargs), value)
        if c.name in self.conversions.dtypes and kwargs.get("dtype") is not None:
            kwargs["dtype"] = self.conversions.dtypes[c.name]
        return self.graph.call_function(c.call, substitute(c.args, value), kwargs)

    def operand(self, n: str, reader: str) -> fx.Node:
        if n in self.fixed:
            return self.weight(n, reader)
        return self.convert(self.nodes[n], self.conversions.operands.get((n, reader), ()))

    def convert(self, node: fx.Node, steps: Sequence[Step]) -> fx.Node:
        for step in steps:
            key = ("convert", node, step)
            if key not in self.cached:
                if isinstance(step, torch.dtype):
                    self.cached[key] = self.graph.call_function(
                        torch.ops.aten._to_copy.default, (node,), {"dtype": step}
                    )
                else:
                    self.cached[key] = self.graph.call_function(step, (node,))
            node = self.cached[key]
        return node

    def weight(self, n: str, reader: str) -> fx.Node:
        """A stored constant, or its exact views rebuilt in the format of the reader."""
        if n in self.source.constants:
            entry = self.conversions.weights.get((n, reader))
            key, tensor, steps = entry or (n, self.source.constants[n], ())
            if not hasattr(self.root, key):
                self.root.register_buffer(key, tensor.detach())
            if ("attr", key) not in self.cached:
                self.cached["attr", key] = self.graph.get_attr(key)
            return self.convert(self.cached["attr", key], steps)
        c = self.calls[n]
        if n in self.conversions.passes:
            return self.weight(c.operands[0], reader)
        arguments = tuple(self.weight(m, reader) for m in c.operands)
        key2 = ("view", n, arguments)
        if key2 not in self.cached:
            self.cached[key2] = self.emit(c, lambda m: self.weight(m, reader))
        return self.cached[key2]

    def output(self, n: str) -> fx.Node:
        if n in self.fixed:
            return self.weight(n, OUTPUT)
        return self.convert(self.nodes[n], self.conversions.outputs.get(n, ()))
