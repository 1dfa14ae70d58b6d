"""The data of a training run: checked pairs (x, y), cut into shuffled batches."""

from collections.abc import Callable, Iterator, Sized
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from torchsheaf.arguments import INPUTS, input_tuple, kind, whole_number
from torchsheaf.draws import random_order

Input = Tensor | tuple[Tensor, ...]
Data = DataLoader[Any] | tuple[Input, Tensor]


def tensors(x: object, y: object) -> tuple[tuple[Tensor, ...], Tensor]:
    """The inputs as a tuple, and the targets; TypeError names what is no tensor."""
    if not isinstance(y, Tensor):
        several = isinstance(y, tuple | list) and any(isinstance(one, Tensor) for one in y)
        write = (
            "the tensor of one output, and SheafTrainer(model, output=…) where there are several"
            if several
            else "torch.as_tensor(y)"
        )
        raise TypeError(f"targets y is {kind(y)}; write {write}")
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


def placed(x: Input, device: torch.device | None) -> Input:
    """The input or inputs on a device; as they are for None (a model on several).

    Copies from pinned memory, as `DataLoader(pin_memory=True)` gives, are not waited for. Targets
    stay: the loss checks them where they are, then moves them.
    """
    if device is None:
        return x
    if isinstance(x, Tensor):
        return x.to(device, non_blocking=True)
    return tuple(t.to(device, non_blocking=True) for t in x)


def samplers(loader: DataLoader[Any]) -> list[Any]:
    """What orders a loader's samples: its sampler, or a batch sampler and the one inside it."""
    batches = loader.batch_sampler
    return [loader.sampler, batches, getattr(batches, "sampler", None)]


def generators(loader: DataLoader[Any]) -> list[torch.Generator]:
    """The generators of its own that a loader draws from."""
    found = (getattr(one, "generator", None) for one in (loader, *samplers(loader)))
    return [g for g in found if isinstance(g, torch.Generator)]


def every_epoch(
    data: Data, size: int | None, generator: torch.Generator, device: torch.device | None = None
) -> Callable[[int], Iterator[tuple[Input, Tensor]]]:
    """What gives an epoch's batches: the loader itself, or tensors in a new order every time.

    Their inputs are moved to `device`. A sampler that orders by the epoch's number (that of
    `torch.utils.data.DistributedSampler`) is told it.
    """
    if isinstance(data, DataLoader):
        if size is not None:
            raise ValueError(f"batch_size is {size!r}; leave it out, the DataLoader has its own")
        loader = data

        def loaded(epoch: int) -> Iterator[tuple[Input, Tensor]]:
            for sampler in samplers(loader):
                if callable(tell := getattr(sampler, "set_epoch", None)):
                    tell(epoch)
            for one in loader:
                x, y = pair("a batch of the loader", one)
                yield placed(x, device), y

        return loaded
    given, y = pair("data", data)
    xs, samples = inputs(given), y.shape[0]
    step = samples
    if size is not None:
        step = whole_number("batch_size", size, 1, ", or None (all samples)")

    def shuffled(epoch: int) -> Iterator[tuple[Input, Tensor]]:
        order = random_order(samples, generator)
        for start in range(0, samples, step):
            index = order[start : start + step]
            *cut, target = (t[index.to(t.device)] for t in (*xs, y))
            yield placed(tuple(cut) if isinstance(given, tuple) else cut[0], device), target

    return shuffled


def every_validation(
    data: Data, device: torch.device | None
) -> Callable[[], Iterator[tuple[Input, Tensor]]]:
    """What gives the pairs (x, y) to validate on: a loader's batches, or the tensors at once.

    Raises ValueError for a loader that gives none, when it is asked.
    """
    if not isinstance(data, DataLoader):
        x, y = pair("validation", data)
        whole = placed(x, device), y
        return lambda: iter([whole])

    def loaded() -> Iterator[tuple[Input, Tensor]]:
        empty = True
        for one in data:
            x, y = pair("a batch of validation", one)
            yield placed(x, device), y
            empty = False
        if empty:
            raise ValueError("validation is empty: its loader gave no batch")

    return loaded


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
