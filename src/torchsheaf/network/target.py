"""What a user names on the command line → a model with example inputs and labels."""

import importlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.export import ExportedProgram

from torchsheaf import examples
from torchsheaf.network.errors import first_line
from torchsheaf.network.exported import UnsafeArchive, load_exported

FORMS = (
    "package.module:factory, a .pt2 file, or a shipped example "
    f"({', '.join(sorted(examples.EXAMPLES))})"
)


class TargetError(ValueError):
    """A target that does not name a model, or weights that do not fit it."""


class Target(NamedTuple):
    """A model in evaluation mode, its example inputs (a batch each), and labels where known."""

    model: nn.Module | ExportedProgram
    inputs: tuple[Tensor, ...]
    labels: Tensor | None = None


def load_target(
    text: str,
    weights: str | Path | None = None,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Target:
    """The model that a target names: `package.module:factory`, a `.pt2` file, or an example.

    A factory takes no argument and returns `(model, inputs)` or `(model, inputs, labels)`, where
    inputs is a tensor `(batch, *shape)` or a tuple of them. `weights` is a `.safetensors` file or
    a state dictionary saved by `torch.save`, read with `weights_only=True`: nothing is unpickled.
    A shipped example is trained on the spot (seconds; `progress(step, steps)`), unless weights
    are given.

    Raises `TargetError` saying what came and what to write; OSError for an unreadable file.

    >>> model, inputs, labels = load_target("paraboloid")
    >>> model(*inputs).shape == labels.shape
    True
    """
    if text in examples.EXAMPLES:
        trained = examples.load(text, train=weights is None, progress=progress)
        target = Target(trained.model, (trained.x,), trained.y)
    elif text.endswith(".pt2"):
        target = _from_archive(text)
    elif re.fullmatch(r"[\w.]+:[\w.]+", text):
        target = _from_factory(text)
    else:
        raise TargetError(f"target is {text!r}; write {FORMS}")
    if weights is not None:
        load_weights(target.model, Path(weights))
    if isinstance(target.model, nn.Module):
        target.model.eval()
    return target


def _from_archive(text: str) -> Target:
    try:
        program = load_exported(text)
    except UnsafeArchive as error:
        raise TargetError(str(error)) from error
    sample = program.example_inputs
    if sample is None or not sample[0] or sample[1]:
        raise TargetError(
            f"{text} carries no positional example inputs; export it with torch.export.export("
            "model, (x,)) and save that"
        )
    inputs = tuple(sample[0])
    if not all(isinstance(t, Tensor) for t in inputs):
        raise TargetError(f"{text}: every example input must be a tensor")
    return Target(program, inputs)


def _from_factory(text: str) -> Target:
    module_name, _, path = text.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # A module that is found but imports a missing one is that module's own failure.
        missing = error.name or ""
        if module_name == missing or module_name.startswith(missing + "."):
            raise TargetError(
                f"target is {text!r}, but there is no module {missing!r} on the Python path; run "
                "from the folder that contains it, or install it"
            ) from error
        raise TargetError(
            f"importing {module_name!r} failed: it needs the module {missing!r}"
        ) from error
    except (Exception, SystemExit) as error:
        raise TargetError(f"importing {module_name!r} failed: {_named(error)}") from error
    for name in path.split("."):
        if not hasattr(found, name):
            raise TargetError(f"target is {text!r}, but {module_name!r} has no {path!r}")
        found = getattr(found, name)
    if not callable(found) or isinstance(found, nn.Module):
        raise TargetError(f"{text} is a {type(found).__name__}; name a function without arguments")
    try:
        made = found()
    except (Exception, SystemExit) as error:
        raise TargetError(f"{text}() failed: {_named(error)}") from error
    return _check_made(text, made)


def _named(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _check_made(text: str, made: Any) -> Target:
    wanted = "write a factory that returns (model, x) or (model, x, labels)"
    if not isinstance(made, tuple) or len(made) not in (2, 3):
        raise TargetError(f"{text} returned a {type(made).__name__}; {wanted}")
    model, x = made[0], made[1]
    labels = made[2] if len(made) == 3 else None
    if not isinstance(model, nn.Module):
        raise TargetError(f"{text} returned a {type(model).__name__} as its model; {wanted}")
    inputs = (x,) if isinstance(x, Tensor) else tuple(x) if isinstance(x, tuple | list) else ()
    if not inputs or not all(isinstance(t, Tensor) for t in inputs):
        raise TargetError(f"{text} returned a {type(x).__name__} as its input; {wanted}")
    if labels is not None and not isinstance(labels, Tensor):
        raise TargetError(f"{text} returned a {type(labels).__name__} as its labels; {wanted}")
    return Target(model, inputs, labels)


def load_weights(model: nn.Module | ExportedProgram, path: Path) -> None:
    """Load a state dictionary into the model; every tensor must have a place and a value.

    Raises `TargetError` where that is not so; OSError for an unreadable file.
    """
    if not isinstance(model, nn.Module):
        raise TargetError("an exported program carries its own weights; leave out --weights")
    state = _read_state(path)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        lines = " ".join(line.strip() for line in str(error).splitlines()[1:4])
        raise TargetError(f"the weights in {path} do not fit the model: {lines}") from error


def _read_state(path: Path) -> Mapping[str, Tensor]:
    with path.open("rb"):
        pass  # an unreadable file is an OSError that names it
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, ValueError, EOFError, KeyError) as error:
        raise TargetError(f"{path} could not be read as weights: {first_line(error)}") from error
    except Exception as error:  # pickle.UnpicklingError, without importing pickle to name it
        if type(error).__name__ != "UnpicklingError":
            raise
        raise TargetError(
            f"{path} holds pickled objects, which are never loaded; save a state dictionary of "
            "tensors (torch.save(model.state_dict(), path)) or a .safetensors file"
        ) from error
    if not isinstance(state, Mapping) or not all(isinstance(t, Tensor) for t in state.values()):
        raise TargetError(f"{path} holds a {type(state).__name__}; write a state dictionary")
    return state
