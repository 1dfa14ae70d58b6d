"""nn.Module + example → AtenGraph: the core-ATen computation as plain data, one row per call.

Where `network.capture` reads layers, this reads kernels: what `precision` gives a format to is a
kernel call, so the model is lowered to core ATen and kept as a list that any loop can execute.
"""

import copy
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram as ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree

from torchsheaf.network.errors import Offender, UnsupportedModel, first_line, quiet_torch
from torchsheaf.network.naming import module_path, source_line


@dataclass(frozen=True, slots=True)
class Ref:
    """The value of an input, a constant or an earlier call, by name."""

    name: str


@dataclass(frozen=True, slots=True)
class AtenCall:
    """One kernel call: `call(*args, **kwargs)`, where a `Ref` stands for a value.

    `shape` and `dtype` are those of the result (of its first tensor where it is a tuple), `module`
    the path of the module that made the call, `source` its line in the model's own file.
    """

    name: str
    target: str
    call: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    shape: tuple[int, ...] | None
    dtype: torch.dtype | None
    module: str = ""
    source: str = ""

    @property
    def operands(self) -> tuple[str, ...]:
        """Names of the values it reads, each once, in order."""
        return tuple(dict.fromkeys(references((self.args, self.kwargs))))

    @property
    def packet(self) -> str:
        """The operator without namespace and overload: `aten.add.Tensor` gives `add`."""
        return self.target.removeprefix("aten.").split(".")[0]

    @property
    def is_floating(self) -> bool:
        """Whether its result is a floating-point tensor."""
        return self.dtype is not None and self.dtype.is_floating_point


@dataclass(frozen=True)
class AtenGraph:
    """Calls in execution order; `output` is a nest of `Ref`s in the model's own structure."""

    calls: tuple[AtenCall, ...]
    inputs: tuple[str, ...]
    constants: Mapping[str, Tensor]
    output: Any
    input_meta: Mapping[str, tuple[tuple[int, ...], torch.dtype]]
    origins: Mapping[str, str] = field(default_factory=dict)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the returned values, in the order in which they are returned."""
        return tuple(references(self.output))

    def consumers(self) -> dict[str, list[str]]:
        """For every value, the names of the calls that read it."""
        readers: dict[str, list[str]] = {}
        for c in self.calls:
            for name in c.operands:
                readers.setdefault(name, []).append(c.name)
        return readers


def references(nest: Any) -> Iterator[str]:
    """Names of the `Ref`s in a nest of tuples, lists and mappings, depth first."""
    if isinstance(nest, Ref):
        yield nest.name
    elif isinstance(nest, tuple | list):
        for item in nest:
            yield from references(item)
    elif isinstance(nest, Mapping):
        for item in nest.values():
            yield from references(item)


def substitute(nest: Any, value: Callable[[str], Any]) -> Any:
    """The same nest with `value(name)` in the place of every `Ref`."""
    if isinstance(nest, Ref):
        return value(nest.name)
    if isinstance(nest, tuple | list):
        return type(nest)(substitute(item, value) for item in nest)
    if isinstance(nest, Mapping):
        return {k: substitute(item, value) for k, item in nest.items()}
    return nest


def trace_aten(model: nn.Module | ExportedProgram, inputs: Tensor | Sequence[Any]) -> AtenGraph:
    """Lower a module to core ATen and return its calls as plain data.

    inputs: the example batch, or a tuple of them. Shapes are specialised to the example. What
    does not depend on the inputs (masks, position tables) is evaluated once and becomes a constant.

    Raises `UnsupportedModel` where torch.export fails or a call draws random numbers.
    Cost: one torch.export, one lowering and one forward pass; a copy of the model where it holds
    tensors that were made under `torch.inference_mode()`.
    """
    inputs = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
    if isinstance(model, nn.Module) and _is_of_inference(model):
        model = copy.deepcopy(model)  # of ordinary tensors: a derivative can be taken of those
    program = _lower(model, inputs)
    specs = {s.arg.name: s for s in program.graph_signature.input_specs if hasattr(s.arg, "name")}
    state = {**program.state_dict, **program.constants}
    constants: dict[str, Tensor] = {}
    origins: dict[str, str] = {}
    names: list[str] = []
    meta: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
    calls: list[AtenCall] = []
    for node in program.graph.nodes:
        if node.op == "placeholder":
            spec = specs[node.name]
            if spec.kind is InputKind.USER_INPUT:
                names.append(node.name)
                value = node.meta.get("val")
                if isinstance(value, Tensor):
                    meta[node.name] = (tuple(int(s) for s in value.shape), value.dtype)
            else:
                assert spec.target is not None
                constants[node.name] = state[spec.target].detach()
                origins[node.name] = spec.target
        elif node.op == "call_function":
            calls.append(_call(node))
        elif node.op == "get_attr":
            constants[node.name] = getattr(program.graph_module, node.target).detach()
            origins[node.name] = str(node.target)
    _refuse_random(calls)
    graph = AtenGraph(
        tuple(calls), tuple(names), constants, _output(program), meta, _tie(constants, origins)
    )
    return fold_constants(_prune(graph))


def _lower(model: nn.Module | ExportedProgram, inputs: tuple[Any, ...]) -> ExportedProgram:
    if isinstance(model, nn.Module) and model.training and _has_training_behaviour(model):
        raise ValueError(
            "model is in training mode and contains dropout or batch statistics; "
            "call model.eval() first: formats are chosen for inference"
        )
    try:
        # The fused attention kernels lay their result out in another order than the products that
        # they are lowered to, and a later view that fits the one need not fit the other.
        with quiet_torch(), torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            program = (
                model
                if isinstance(model, ExportedProgram)
                else torch.export.export(model, inputs, strict=False)
            )
            return program.run_decompositions()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise UnsupportedModel(
            "torch.export could not lower this model to core ATen",
            [Offender(type(error).__name__, "", "", first_line(error))],
        ) from error


def _has_training_behaviour(model: nn.Module) -> bool:
    kinds = (nn.modules.dropout._DropoutNd, nn.modules.batchnorm._BatchNorm)
    return any(
        isinstance(m, kinds) and m.training and getattr(m, "p", 1.0) != 0.0 for m in model.modules()
    )


def _is_of_inference(model: nn.Module) -> bool:
    owners = (d for m in model.modules() for d in (m._parameters, m._buffers, vars(m)))
    return any(isinstance(t, Tensor) and t.is_inference() for d in owners for t in d.values())


def _call(node: Any) -> AtenCall:
    value = node.meta.get("val")
    first = value[0] if isinstance(value, tuple | list) and value else value
    is_tensor = isinstance(first, Tensor)
    return AtenCall(
        name=node.name,
        target="getitem" if node.target is operator.getitem else str(node.target),
        call=node.target,
        args=_plain(tuple(node.args)),
        kwargs=_plain(dict(node.kwargs)),
        shape=tuple(int(s) for s in first.shape) if is_tensor else None,
        dtype=first.dtype if is_tensor else None,
        module=module_path(node),
        source=source_line(node),
    )


def _plain(nest: Any) -> Any:
    """fx nodes become `Ref`s; fx's immutable lists and dicts become ordinary ones."""
    if isinstance(nest, torch.fx.Node):
        return Ref(nest.name)
    if isinstance(nest, tuple):
        return tuple(_plain(x) for x in nest)
    if isinstance(nest, list):
        return [_plain(x) for x in nest]
    if isinstance(nest, dict):
        return {k: _plain(x) for k, x in nest.items()}
    return nest


def _output(program: ExportedProgram) -> Any:
    (node,) = (n for n in program.graph.nodes if n.op == "output")
    specs = program.graph_signature.output_specs
    flat = [
        _plain(value)
        for value, spec in zip(node.args[0], specs, strict=True)
        if spec.kind is OutputKind.USER_OUTPUT
    ]
    spec = program.call_spec.out_spec
    if spec is None or spec.num_leaves != len(flat):
        return tuple(flat)
    nest = pytree.tree_unflatten(flat, spec)
    return nest if isinstance(nest, Ref | tuple | list | dict) else tuple(flat)


def _tie(constants: Mapping[str, Tensor], origins: Mapping[str, str]) -> dict[str, str]:
    """Constants that share one memory get one origin: those are tied weights."""
    first: dict[tuple[int, tuple[int, ...], tuple[int, ...]], str] = {}
    tied = {}
    for name, tensor in constants.items():
        key = (tensor.data_ptr(), tuple(tensor.shape), tuple(tensor.stride()))
        tied[name] = first.setdefault(key, origins[name]) if tensor.numel() else origins[name]
    return tied


_RANDOM = {"rand", "randn", "randint", "bernoulli", "native_dropout", "rand_like", "randn_like"}
_RANDOM |= {"multinomial", "randperm", "normal", "uniform", "exponential"}


def _refuse_random(calls: Sequence[AtenCall]) -> None:
    found = [
        Offender(c.name, c.module, c.source, f"{c.target} draws random numbers")
        for c in calls
        if c.packet in _RANDOM
    ]
    if found:
        raise UnsupportedModel("an error budget needs a deterministic model", found)


def _prune(graph: AtenGraph) -> AtenGraph:
    """Without the calls and constants that no output needs."""
    wanted = set(graph.outputs)
    kept = []
    for c in reversed(graph.calls):
        if c.name in wanted:
            kept.append(c)
            wanted.update(c.operands)
    constants = {k: v for k, v in graph.constants.items() if k in wanted}
    origins = {k: v for k, v in graph.origins.items() if k in constants}
    return AtenGraph(
        tuple(reversed(kept)), graph.inputs, constants, graph.output, graph.input_meta, origins
    )


# Their value is fixed by the shape of their argument, which is static.
_BY_SHAPE = {"full_like", "zeros_like", "ones_like", "empty_like", "new_zeros", "new_ones"}
_BY_SHAPE |= {"new_full", "sym_size", "new_empty", "new_empty_strided"}
# Memory that the model writes over before it reads it: chance numbers there have a range and may be
# NaN, zeros do no harm.
_UNWRITTEN = {"empty", "empty_like", "empty_strided", "empty_permuted"}
_UNWRITTEN |= {"new_empty", "new_empty_strided"}
# Relabelling: a parameter seen through these is still that parameter.
_VIEWS = {"permute", "view", "expand", "unsqueeze", "squeeze", "transpose", "t", "slice", "select"}
_VIEWS |= {"alias", "clone", "reshape", "_unsafe_view", "detach", "getitem"}


def fold_constants(graph: AtenGraph) -> AtenGraph:
    """Evaluate what does not depend on the inputs, in the dtype the model computes it in.

    Views of a parameter are left as calls: the parameter is stored once, in the reader's format.
    """
    constants = dict(graph.constants)
    origins = dict(graph.origins)
    shape_of: dict[str, Any] = dict(graph.input_meta)
    shape_of |= {c.name: (c.shape, c.dtype) for c in graph.calls if c.shape is not None}
    device = next((t.device for t in constants.values()), torch.device("cpu"))
    views: set[str] = set()
    kept: list[AtenCall] = []
    values: dict[str, Any] = dict(constants)
    for c in graph.calls:
        by_shape = c.packet in _BY_SHAPE
        if by_shape:
            for name in c.operands:
                if name not in values:
                    shape, dtype = shape_of[name]
                    values[name] = torch.empty(shape, dtype=dtype, device=device)
        elif not all(n in constants or n in views for n in c.operands):
            kept.append(c)
            continue
        with torch.no_grad():
            values[c.name] = substitute_call(c, values.__getitem__)
            if c.packet in _UNWRITTEN:
                values[c.name].zero_()
        if by_shape:
            for name in c.operands:
                if name not in constants and name not in views:
                    del values[name]
        is_view = c.packet in _VIEWS and c.operands and c.is_floating
        if is_view and any(n in origins or n in views for n in c.operands):
            views.add(c.name)
            kept.append(c)
        elif isinstance(values[c.name], Tensor):
            constants[c.name] = values[c.name].contiguous()
        else:
            views.add(c.name)
            kept.append(c)
    folded = AtenGraph(
        tuple(kept), graph.inputs, constants, graph.output, graph.input_meta, origins
    )
    return _prune(folded)


def substitute_call(c: AtenCall, value: Callable[[str], Any]) -> Any:
    """Execute one call on the values that its `Ref`s name."""
    return c.call(*substitute(c.args, value), **substitute(c.kwargs, value))
