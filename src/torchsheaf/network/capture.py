"""nn.Module + example input → Network, through torch.export."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.fx import Node as FxNode

from torchsheaf.cochain import is_finite
from torchsheaf.network.calls import (
    casts_by_region,
    close_no_grad,
    is_aside,
    restore_batch_norm,
    writes_into_views,
)
from torchsheaf.network.completeness import (
    check_apart,
    check_complete,
    check_faithful,
    check_still,
    layer_by_layer,
    run,
)
from torchsheaf.network.errors import Offender, UnsupportedModel, quiet_torch
from torchsheaf.network.infinite import infinite_values
from torchsheaf.network.network import Network, require_finite
from torchsheaf.network.normalisation import normalisations
from torchsheaf.network.passing import batch_axes, split
from torchsheaf.network.placement import placement, require_beside
from torchsheaf.network.reader import Reader
from torchsheaf.network.rules.composed import COMPOSED, compositions


def read_network(
    model: nn.Module | ExportedProgram,
    inputs: Sequence[Tensor],
    *,
    fused: bool = False,
    unused_parameters: str = "error",
    keywords: Sequence[str] = (),
) -> Network:
    """Read a feed-forward module as a network.

    The batch axis (the first of every input) is dynamic where the model allows; a model that
    fixes it gets `fixed_batch`. The last inputs are passed by the names in `keywords`. Values are
    checked once against what the model returns.

    Raises `UnsupportedModel` listing every node that has no rule, with its module path and source
    line; `ValueError` for non-finite weights or inputs, and for inputs on which the model itself
    fails, with its own words.

    An operation without a rule is read as torch composes it of others, where all of those have one.

    Cost: one `torch.export` (seconds for large models), two forward passes, and three more on
    two samples, which must not see each other.
    """
    inputs = tuple(inputs)
    module = model.module() if isinstance(model, ExportedProgram) else model
    _check_values(module, inputs)
    _check_kinds(module, inputs)
    # first of all: tracing what cannot run fails with a long log
    with layer_by_layer():
        returned, changed = run(module, inputs, keywords)
        program, fixed = _export(model, inputs, keywords)
        network = _read_composed(program, module, fixed, fused)
        network = replace(network, keywords=tuple(keywords))
        check_still(network, changed)
        if isinstance(model, nn.Module):
            check_complete(network, model, unused_parameters)
        check_faithful(network, returned, inputs)
        check_apart(network, inputs)
    return network


def require_traceable(model: object) -> None:
    """Raise TypeError for what is no model, `UnsupportedModel` for one that cannot be traced."""
    if not isinstance(model, nn.Module | ExportedProgram):
        raise TypeError(f"model is a {type(model).__name__}; pass an nn.Module or ExportedProgram")
    if isinstance(model, torch.jit.ScriptModule):
        raise UnsupportedModel(
            "a ScriptModule cannot be traced; pass the nn.Module that it was made from"
        )
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        raise UnsupportedModel(f"a {type(model).__name__} cannot be traced; pass its .module")


def _check_values(model: nn.Module, inputs: Sequence[Tensor]) -> None:
    """Weights of finite numbers, and inputs that are tensors of one batch size."""
    for name, t in (*model.named_parameters(), *model.named_buffers()):
        if t.is_meta or t.layout is not torch.strided:
            has = "no values (it is on the meta device)" if t.is_meta else f"layout {t.layout}"
            raise ValueError(f"weight {name!r} has {has}; give it as a dense tensor")
    states = {n: t for n, t in model.state_dict().items() if isinstance(t, Tensor)}
    require_finite(states, dict(model.named_buffers()))
    if not inputs:
        raise ValueError("no input came; pass a tensor (batch, *shape), or a tuple of them")
    for i, x in enumerate(inputs):
        if not isinstance(x, Tensor):
            raise TypeError(f"input {i} is a {type(x).__name__}; pass a tensor (batch, *shape)")
        if x.ndim == 0 or x.shape[0] == 0:
            raise ValueError(
                f"input {i} has shape {tuple(x.shape)}; it needs a non-empty batch axis"
            )
        if not is_finite(x):
            raise ValueError(f"input {i} contains NaN or infinity; pass finite numbers")
    sizes = [x.shape[0] for x in inputs]
    if len(set(sizes)) > 1:
        raise ValueError(f"batch sizes must be equal; the inputs have {sizes} samples")


def _check_kinds(model: nn.Module, inputs: Sequence[Tensor]) -> None:
    """Inputs on the device of the weights, and of their dtype."""
    weights = list(model.parameters())
    own_device = placement(weights)
    for i, x in enumerate(inputs):
        write = f"x.to({str(own_device)!r}), or model.to({str(x.device)!r})"
        require_beside(f"input {i}", x, own_device, "the model's weights", write)
    types = {t.dtype for t in weights if t.is_floating_point()}
    if len(types) != 1:
        return
    (own,) = types
    for i, x in enumerate(inputs):
        if x.is_floating_point() and x.dtype != own:
            raise ValueError(
                f"input {i} has dtype {x.dtype}, the model's weights {own}; write "
                f"x.to({own}), or model.to({x.dtype})"
            )


def _export(
    model: nn.Module | ExportedProgram, inputs: tuple[Tensor, ...], keywords: Sequence[str]
) -> tuple[ExportedProgram, int | None]:
    if isinstance(model, ExportedProgram):
        return model, _static_batch(model)
    with torch.inference_mode(False):  # what was made in that mode cannot be traced, a copy can
        inputs = tuple(x.detach().clone() for x in inputs)
    batch = inputs[0].shape[0]
    # torch.export specialises an axis of length 1, so a single sample is traced as two.
    example = tuple(torch.cat([x, x]) if x.shape[0] == 1 else x for x in inputs)
    dynamic = batch_axes(model, len(inputs), keywords)
    try:
        # as autograd would see it, whatever the caller's mode: else no_grad regions leave no trace
        with quiet_torch(), torch.enable_grad():
            program = torch.export.export(model, *split(example, keywords), dynamic_shapes=dynamic)
            fixed = _static_batch(program)
            if fixed is not None and fixed != batch:
                program = torch.export.export(model, *split(inputs, keywords))
            close_no_grad(program)
            composed = any(node.target in COMPOSED for node in program.graph.nodes)
            # writes become slice_scatter and kin, an autocast its casts
            if composed or writes_into_views(program) or casts_by_region(program):
                program = program.run_decompositions(COMPOSED)
                restore_batch_norm(program)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise _export_failure(error) from error
    return program, batch if fixed is not None else None


def _export_failure(error: Exception) -> UnsupportedModel:
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip()
    first = text.splitlines()[0] if text else type(error).__name__
    places = re.findall(r'File "([^"]+)", line (\d+), in (\w+)', text)
    places = [p for p in places if "/torch/" not in p[0]]
    source = f"{places[-1][0].rsplit('/', 1)[-1]}:{places[-1][1]}" if places else ""
    hint = ""
    if "data-dependent" in text or "DataDependent" in type(error).__name__ or "guard on" in text:
        hint = " (control flow that depends on the data has no fixed computation graph)"
    elif "DynamicCache" in text:
        hint = " (set model.config.use_cache = False; a cache is not a tensor)"
    return UnsupportedModel(
        "torch.export could not trace this model" + hint,
        [Offender(type(error).__name__, "", source, first)],
    )


def _static_batch(program: ExportedProgram) -> int | None:
    """The traced batch size where it is a constant, None where it is a symbol."""
    user = {
        s.arg.name for s in program.graph_signature.input_specs if s.kind is InputKind.USER_INPUT
    }
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in user and isinstance(node.meta["val"], Tensor):
            size: Any = node.meta["val"].shape[0]
            if isinstance(size, int):
                return size
            if not size.node.expr.free_symbols:  # a branch on it fixed a symbol to one value
                return int(size.node.expr)
    return None


def _read_composed(
    program: ExportedProgram, module: nn.Module, fixed: int | None, fused: bool
) -> Network:
    """The program as it is, or with what has no rule written as torch composes it of others."""
    try:
        return _read(program, module, fixed, fused)
    except UnsupportedModel as refused:
        others = compositions(o.node for o in refused.offenders)
        if not others:
            raise
        try:
            with quiet_torch():
                composed = program.run_decompositions(others)
            restore_batch_norm(composed)
            return _read(composed, module, fixed, fused)
        except Exception:
            raise refused from None  # in the words of the model as it was written


def _read(program: ExportedProgram, module: nn.Module, fixed: int | None, fused: bool) -> Network:
    states = _states(program, module)
    learnable = frozenset(n for n, _ in module.named_parameters(remove_duplicate=False))
    signature = program.graph_signature
    specs = {s.arg.name: s for s in signature.input_specs}
    reader = Reader(
        fused=fused, fixed_batch=fixed, states=states, learnable=learnable,
        normalisations=normalisations(program.graph),
        infinite=infinite_values(program.graph, _held(program, states)),
    )  # fmt: skip
    for node in program.graph.nodes:
        if node.op == "placeholder":
            spec = specs[node.name]
            if spec.kind is InputKind.USER_INPUT:
                reader.add_input(node)
            else:
                assert spec.target is not None
                reader.add_state(node, spec.target)
        elif node.op == "call_function" and not is_aside(node):
            reader.add_call(node)
        elif node.op == "get_attr":
            held = getattr(program.graph_module, str(node.target))
            if isinstance(held, Tensor):  # otherwise the body of a traced context manager
                reader.add_state(node, str(node.target))
                states.setdefault(str(node.target), held)
        elif node.op == "output":
            returned = zip(node.args[0], signature.output_specs, strict=True)
            reader.add_output([o for o, s in returned if s.kind is OutputKind.USER_OUTPUT])
    return reader.finish(module)


def _held(program: ExportedProgram, states: Mapping[str, Any]) -> dict[FxNode, Tensor]:
    """The tensors behind the placeholders that are no parameters."""
    specs = {s.arg.name: s for s in program.graph_signature.input_specs}
    found: dict[FxNode, Tensor] = {}
    for node in program.graph.find_nodes(op="placeholder"):
        entry = states.get(specs[node.name].target or "")
        tensor = entry if isinstance(entry, Tensor) or entry is None else getattr(*entry)
        if isinstance(tensor, Tensor) and not isinstance(tensor, nn.Parameter):
            found[node] = tensor
    return found


def _states(program: ExportedProgram, module: nn.Module) -> dict[str, tuple[Any, str] | Tensor]:
    """Where each parameter and buffer lives, so that later changes of the model are seen."""
    found: dict[str, tuple[Any, str] | Tensor] = {}
    entries: Mapping[str, Any] = {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }
    for name in entries:
        owner, _, leaf = name.rpartition(".")
        found[name] = (module.get_submodule(owner), leaf)
    for name, value in program.constants.items():
        if isinstance(value, Tensor):
            found.setdefault(name, value)
    return found
