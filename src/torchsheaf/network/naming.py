"""What vertices are called: a module's path is its result; what it did before has its operation."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain, count
from typing import Any

from torch.fx import Node as FxNode

from torchsheaf.network.network import Node
from torchsheaf.network.operation import Operation, Value


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


def name_vertices(
    nodes: Sequence[Node], outputs: tuple[str, ...], inputs: Mapping[str, tuple[int, ...]]
) -> tuple[tuple[Node, ...], tuple[str, ...], dict[str, tuple[int, ...]]]:
    """Rename vertices by module path, with the op appended unless it is the module's result.

    A module that has one vertex of its own, computed after those of its submodules, gives it its
    path: there a forward hook sees the same value (in the module's layout). Names are unique.
    Inputs come first, then such modules; what else would have such a name gets a number. "output"
    is kept for the model's only output.
    """
    per_module = Counter(node.module for node in nodes)
    names = {n: "input" if len(inputs) == 1 else f"input.{n}" for n in inputs}
    taken = set(names.values())
    only = outputs[0] if len(outputs) == 1 else None

    def name(node: Node, wanted: str) -> None:
        reserved = {"output"} if only is not None and node.name != only else set()
        names[node.name] = next(
            n for n in chain([wanted], (f"{wanted}_{i}" for i in count(1)))
            if n not in taken and n not in reserved
        )  # fmt: skip
        taken.add(names[node.name])

    last = _computed_last(nodes)
    paths = {n.name for n in nodes if n.module and per_module[n.module] == 1 and n.name in last}
    for node in nodes:
        if node.name in paths and node.op != "identity":
            name(node, node.module)
    for node in nodes:
        if node.name not in names:
            plain = node.op == "identity"
            name(
                node, node.name if plain else ".".join(filter(None, (node.module, node.operation)))
            )
    renamed = []
    for node in nodes:
        operations = tuple(_rename(op, names) for op in node.operations)
        parents = tuple(names[p] for p in node.parents)
        renamed.append(replace(node, name=names[node.name], operations=operations, parents=parents))
    shapes = {names[n]: s for n, s in inputs.items()}
    return tuple(renamed), tuple(names[o] for o in outputs), shapes


def _computed_last(nodes: Sequence[Node]) -> set[str]:
    """Nodes after which no submodule of their module computes anything."""
    found, followed = set(), set[str]()
    for node in reversed(nodes):
        if node.module not in followed:
            found.add(node.name)
        parts = node.module.split(".")
        followed |= {".".join(parts[:i]) for i in range(1, len(parts))}
    return found


def _rename(op: Operation, names: Mapping[str, str]) -> Operation:
    def leaf(arg: Any) -> Any:
        return Value(names.get(arg.name, arg.name)) if isinstance(arg, Value) else arg

    return replace(op.mapped(leaf), operands=tuple(names.get(n, n) for n in op.operands))
