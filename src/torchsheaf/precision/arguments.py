"""What plan and refute are given: numbers, names, inputs and a model, each refused in words."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from torchsheaf.arguments import INPUTS, input_tuple, kind, positive_number, whole_number
from torchsheaf.network.aten import AtenGraph, ExportedProgram, trace_aten
from torchsheaf.network.errors import first_line
from torchsheaf.precision.dataflow import Dataflow, read_dataflow
from torchsheaf.precision.execute import run_exact
from torchsheaf.precision.formats import Format, find_format


def error_budget(value: Any, name: str = "budget") -> float:
    """An allowed output error: positive and finite."""
    return positive_number(name, value, "a positive number in the output's units")


def probe_count(value: Any) -> int | str:
    """How many random adjoints, or "full"."""
    full = isinstance(value, str) and value == "full"
    return "full" if full else whole_number("probes", value, 1, ', or "full"')


def one_of(name: str, value: Any, known: Sequence[str]) -> str:
    """A name from a list."""
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"{name} is {value!r}; write one of {', '.join(known)}")
    return value


def read_formats(formats: Any) -> list[Format]:
    """The formats, each once, widest first."""
    if isinstance(formats, str) or not isinstance(formats, Sequence) or not formats:
        raise ValueError(f"formats is {formats!r}; write a tuple such as ('fp32', 'bf16')")
    found = dict.fromkeys(find_format(f) for f in formats)
    return sorted(found, key=lambda f: (-f.bits, -f.largest))


def read_pins(pins: Any) -> dict[str, str]:
    """Name → name of a format; None is no pin."""
    if pins is not None and not isinstance(pins, Mapping):
        raise ValueError(f"pins is {pins!r}; write a dictionary such as {{'0': 'fp32'}}")
    return {_name("pins", key): find_format(f).name for key, f in (pins or {}).items()}


def read_groups(together: Any) -> tuple[tuple[str, ...], ...]:
    """Lists of names."""
    if isinstance(together, str) or not isinstance(together, Sequence):
        raise ValueError(f"together is {together!r}; write lists of names")
    for group in together:
        if isinstance(group, str) or not isinstance(group, Sequence):
            raise ValueError(f"together: {group!r} is no list; write lists of names")
    return tuple(tuple(_name("together", key) for key in group) for group in together)


def _name(argument: str, key: Any) -> str:
    if not isinstance(key, str):
        raise ValueError(f"{argument}: {key!r} is no name; write a label, a module or an operator")
    return key


def refuse_device(device: str) -> None:
    """`ValueError` where nothing can be computed on the device."""
    try:
        torch.ones(1, device=device).item()
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(
            f"device is {device!r}, which cannot be used here: {first_line(error)}; write cpu, for "
            "instance"
        ) from error


def read_inputs(inputs: Any, name: str = "inputs") -> tuple[Any, ...]:
    """A tensor or a tuple of inputs as a tuple, apart from any graph of gradients.

    Raises `TypeError` for anything else, `ValueError` where there is no tensor or no sample in it.
    """
    parts = input_tuple(name, inputs)
    for x in parts:
        if isinstance(x, tuple | list | Mapping):
            raise TypeError(f"{name} holds {kind(x)}; give every tensor as an input of its own")
    tensors = [x for x in parts if isinstance(x, Tensor)]
    if not tensors:
        raise ValueError(f"{name} holds no tensor; write {INPUTS}")
    for x in tensors:
        if x.ndim and x.shape[0] == 0:
            raise ValueError(f"{name} has shape {tuple(x.shape)}; pass at least one sample")
    return tuple(_apart(x) if isinstance(x, Tensor) else x for x in parts)


def _apart(x: Tensor) -> Tensor:
    return x.detach().clone() if x.is_inference() else x.detach()


def read_model(model: nn.Module | ExportedProgram | AtenGraph, inputs: Any) -> Dataflow:
    """The model as a dataflow, traced on the inputs where it is no graph yet.

    Raises `TypeError` for what is no model, `UnsupportedModel` for one that cannot be traced.
    Cost: one export.
    """
    if not isinstance(model, nn.Module | ExportedProgram | AtenGraph):
        raise TypeError(f"model is a {type(model).__name__}; pass an nn.Module or ExportedProgram")
    parts = read_inputs(inputs)
    return read_dataflow(model if isinstance(model, AtenGraph) else trace_aten(model, parts))


def runnable(flow: Dataflow, inputs: Any) -> tuple[Any, ...]:
    """The inputs as a tuple, after one run of the model as it is.

    Raises `ValueError` for inputs that it does not run on.
    """
    parts = read_inputs(inputs)
    if len(parts) != len(flow.graph.inputs):
        raise ValueError(f"inputs: {len(parts)} came, the model takes {len(flow.graph.inputs)}")
    try:
        run_exact(flow, parts, dtype=None)
    except NotImplementedError:
        pass  # no kernel here for the model's own format; other formats may have one
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError, IndexError) as error:
        raise ValueError(
            f"the model does not run on these inputs: {first_line(error)}; pass what its forward "
            "takes"
        ) from error
    return parts
