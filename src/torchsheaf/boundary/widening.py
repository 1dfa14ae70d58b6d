"""A problem with the same numbers in float64, for what has to be computed finer than it is held."""

from dataclasses import replace

import torch
from torch import Tensor

from torchsheaf.boundary.problem import Problem


def widened(problem: Problem) -> Problem:
    """The problem in float64: weights, held values, pins and types inside maps, as they are now.

    A network of several types is left as it is: its casts are part of its maps. So is float64.
    Cost: a copy of the weights and of the held values.
    """
    network = problem.sheaf.network
    if {node.coarsest for node in network.nodes} - {network.nodes[0].dtype}:
        return problem
    if problem.coarsest[1] == torch.float64:
        return problem
    return replace(
        problem,
        sheaf=replace(problem.sheaf, network=network.widened()),
        values={name: _wide(t) for name, t in problem.values.items()},
        given={name: _wide(t) for name, t in problem.given.items()},
        soft=tuple(
            replace(
                p,
                target=_wide(p.target),
                weight=_wide(p.weight) if isinstance(p.weight, Tensor) else p.weight,
            )
            for p in problem.soft
        ),
    )


def _wide(value: Tensor) -> Tensor:
    return value.double() if value.is_floating_point() else value
