"""What vertices are called: module path, with the operation appended where a module has several."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
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
        operations = tuple(_rename(op, names) for op in node.operations)
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
