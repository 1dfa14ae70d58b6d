"""The data of a training run: checked pairs (x, y), cut into shuffled batches."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from torchsheaf.arguments import INPUTS, input_tuple, kind, whole_number

Input = Tensor | tuple[Tensor, ...]
Data = DataLoader[Any] | tuple[Input, Tensor]


def tensors(x: object, y: object) -> tuple[tuple[Tensor, ...], Tensor]:
    """The inputs as a tuple, and the targets; TypeError names what is no tensor."""
    if not isinstance(y, Tensor):
        raise TypeError(f"targets y is {kind(y)}; write torch.as_tensor(y)")
    return inputs(x), y


def inputs(x: object) -> tuple[Tensor, ...]:
    """The input or inputs of a model as a tuple; TypeError names what is no tensor."""
    given = input_tuple("input x", x)
    for one in given:
        if not isinstance(one, Tensor):
            held = f"{type(x).__name__} of {type(one).__name__}"
            raise TypeError(f"input x is a {held}; write {INPUTS}")
    return given


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


def every_epoch(
    data: Data, size: int | None, generator: torch.Generator
) -> Callable[[], Iterator[tuple[Input, Tensor]]]:
    """What gives one epoch's batches: the loader itself, or tensors in a new order every time."""
    if isinstance(data, DataLoader):
        if size is not None:
            raise ValueError(f"batch_size is {size!r}; leave it out, the DataLoader has its own")
        return lambda: (pair("a batch of the loader", one) for one in data)
    given, y = pair("data", data)
    xs, samples = inputs(given), y.shape[0]
    step = samples
    if size is not None:
        step = whole_number("batch_size", size, 1, ", or None (all samples)")

    def shuffled() -> Iterator[tuple[Input, Tensor]]:
        order = torch.randperm(samples, generator=generator).to(y.device)
        for start in range(0, samples, step):
            index = order[start : start + step]
            cut = tuple(x[index] for x in xs)
            yield (cut if isinstance(given, tuple) else cut[0]), y[index]

    return shuffled
