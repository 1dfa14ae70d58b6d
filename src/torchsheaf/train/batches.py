"""The data of a training run: checked pairs (x, y), cut into shuffled batches."""

from collections.abc import Callable, Iterator, Sized
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from torchsheaf.arguments import whole_number

Input = Tensor | tuple[Tensor, ...]
Data = DataLoader[Any] | tuple[Input, Tensor]


def tensors(x: object, y: object) -> tuple[tuple[Tensor, ...], Tensor]:
    """The inputs as a tuple, and the targets; TypeError names what is no tensor."""
    if not isinstance(y, Tensor):
        several = isinstance(y, tuple | list) and any(isinstance(one, Tensor) for one in y)
        write = (
            "the tensor of one output, and SheafTrainer(model, output=…) where there are several"
        )
        raise TypeError(f"targets y is {kind(y)}; write {write if several else _AS_TENSOR}")
    return inputs(x), y


def inputs(x: object) -> tuple[Tensor, ...]:
    """The input or inputs of a model as a tuple; TypeError names what is no tensor."""
    given = (x,) if isinstance(x, Tensor) else x
    if not isinstance(given, tuple | list) or not given:
        raise TypeError(f"input x is {kind(x)}; write {_WANTED}")
    for one in given:
        if not isinstance(one, Tensor):
            raise TypeError(f"input x is a {type(x).__name__} of {_bare(one)}; write {_WANTED}")
    return tuple(given)


def pair(name: str, given: object) -> tuple[Input, Tensor]:
    """Tensors (x, y) with one row per sample, at least one; else an error that says what came."""
    if not isinstance(given, tuple | list) or len(given) != 2:
        raise TypeError(
            f"{name} is {kind(given)}; write tensors (x, y), x a tuple for several inputs"
        )
    xs, y = tensors(*given)
    samples = y.shape[0] if y.ndim else 0
    for x in xs:
        if (rows := x.shape[0] if x.ndim else 0) != samples:
            raise ValueError(f"{name}: {rows} inputs came with {samples} targets")
    if samples == 0:
        raise ValueError(f"{name} is empty: x has no sample")
    return (xs if not isinstance(given[0], Tensor) else xs[0]), y


def kind(given: object) -> str:
    """What came, in words: its type, and how many of a tuple or list."""
    if isinstance(given, tuple | list):
        name = _bare(given)
        return f"a {name} of {len(given)}" if given else f"an empty {name}"
    return f"a {_bare(given)}"


def every_epoch(
    data: Data, size: int | None, generator: torch.Generator
) -> Callable[[], Iterator[tuple[Input, Tensor]]]:
    """What gives one epoch's batches: the loader itself, or tensors in a new order every time."""
    if isinstance(data, DataLoader):
        if size is not None:
            raise ValueError(f"batch_size is {size!r}; leave it out, the DataLoader has its own")
        return lambda: (pair("a batch of the loader", one) for one in data)
    given, y = pair("data", data)
    if size is not None:
        whole_number("batch_size", size, 1, ", or None (all samples)")
    xs, samples = inputs(given), y.shape[0]
    step = samples if size is None else size

    def shuffled() -> Iterator[tuple[Input, Tensor]]:
        order = torch.randperm(samples, generator=generator).to(y.device)
        for start in range(0, samples, step):
            index = order[start : start + step]
            cut = tuple(x[index] for x in xs)
            yield (cut if isinstance(given, tuple) else cut[0]), y[index]

    return shuffled


def sizes(data: Data, size: int | None) -> dict[str, object]:
    """Samples, and samples per batch, where the data say so: what a resumed run must share."""
    if not isinstance(data, DataLoader):
        samples = data[1].shape[0]
        return {"samples": samples, "batch size": samples if size is None else min(size, samples)}
    found: dict[str, object] = {}
    if isinstance(data.dataset, Sized):
        found["samples"] = len(data.dataset)
    if data.batch_size is not None:
        found["batch size"] = data.batch_size
    return found


_WANTED = "a tensor (batch, *shape), or a tuple of them for several inputs"


_AS_TENSOR = "torch.as_tensor(y)"


def _bare(given: object) -> str:
    return type(given).__name__
