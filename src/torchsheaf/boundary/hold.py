"""Holding the input, or some of its coordinates: where every problem begins."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from torchsheaf.arguments import positive_number
from torchsheaf.boundary.pin import Coordinates, read_place
from torchsheaf.boundary.problem import Problem
from torchsheaf.cochain import is_finite
from torchsheaf.sheaf import Sheaf, require_sheaf


def hold(
    sheaf: Sheaf,
    x: Tensor | Sequence[Tensor] | Mapping[str, Tensor],
    *,
    where: "Coordinates | Mapping[str, Coordinates]" = None,
    weights: Mapping[str, float] | None = None,
) -> Problem:
    """Hold the input at x; everything else is free.

    `where` holds only some coordinates of the input (its others are then free; an empty list
    holds none of them: pull on them with soft pins, or ask what input an output has). Free ones
    start from x, or from 0 where x is NaN (missing). A boolean mask (batch, *input shape) chooses
    for each sample: `where=~x.isnan()` frees what is missing. With several inputs write a dict of
    such choices by input; what it does not name is held. `weights` sets edge weights w_e by edge
    name (1 where absent).

    Raises ValueError naming a wrong shape, NaN, or an unknown edge; TypeError for what is no sheaf.
    Cost: a copy of x.

    >>> import torch
    >>> from torchsheaf.sheaf import encode
    >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU())
    >>> x = torch.randn(5, 2)
    >>> hold(encode(net, x), x).holds_input_only
    True
    """
    require_sheaf(sheaf)
    values = sheaf.read_inputs(x, missing=where is not None)
    values = {n: t.clone() for n, t in values.items()}
    held = {
        n: torch.ones(t.shape[1:], dtype=torch.bool, device=t.device) for n, t in values.items()
    }
    given: dict[str, Tensor] = {}
    if where is not None:
        if not isinstance(where, Mapping) and len(values) > 1:
            names = ", ".join(values)
            raise ValueError(f"`where` needs a dict by input here; the inputs are {names}")
        choices = where if isinstance(where, Mapping) else {next(iter(values)): where}
        for key, chosen in choices.items():
            name = sheaf.input(key)
            held[name] = _mask(sheaf, name, chosen, len(values[name])).to(values[name].device)
            given[name] = values[name].nan_to_num(nan=0.0)
            values[name] = torch.where(held[name], values[name], 0)
        for name, value in values.items():
            if value.is_floating_point() and not is_finite(value):
                raise ValueError(f"{name} contains NaN or infinity where it is held")
    batch = next(iter(values.values())).shape[0]
    sheaf = sheaf.at_batch(batch, values)
    if not isinstance(weights, Mapping | None):
        raise TypeError(f"weights is a {type(weights).__name__}; write a dict by edge name")
    read = {}
    for name, w in (weights or {}).items():
        if name not in sheaf.edges:
            raise ValueError(f"no edge named {name!r}; write one of: {', '.join(sheaf.edges)}")
        read[name] = positive_number(f"weight of edge {name!r}", w, "a positive finite number")
    return Problem(sheaf, held, values, weights=read, given=given)


def _mask(sheaf: Sheaf, name: str, where: Coordinates, batch: int) -> Tensor:
    """Which coordinates of an input are held, per sample if they differ; an empty choice: none."""
    shape = sheaf.vertices[name].shape
    if name in sheaf.network.integral:
        raise ValueError(f"{name} holds integers: no coordinate of it can be free")
    mask = read_place(f"hold of {name!r}", where, shape, batch).mask(math.prod(shape))
    return mask.reshape(shape if len(mask) == 1 else (batch, *shape))
