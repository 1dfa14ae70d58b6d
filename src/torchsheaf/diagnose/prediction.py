"""Predicted against actual: what a step makes of its parents, and what stands at its head."""

from dataclasses import dataclass

import torch
from torch import Tensor

from torchsheaf.boundary import Problem, require_problem
from torchsheaf.cochain import Cochain, coordinates


@dataclass(frozen=True, eq=False)
class Prediction:
    """One edge, coordinate by coordinate; tensors are (batch, dim), kept in order of neurons.

    `predicted` is f(c_parents), `actual` c_head, `input` the parent's value where it has as many
    coordinates (gates), else None. `predicted − actual` is the sign that the paper plots.
    """

    edge: str
    kind: str
    predicted: Tensor
    actual: Tensor
    input: Tensor | None

    @property
    def residual(self) -> Tensor:
        """predicted − actual, (batch, dim); its squares sum to the edge's discord."""
        return self.predicted - self.actual


@torch.no_grad()
def prediction(problem: Problem, at: Cochain, edge: str) -> Prediction:
    """The predicted-against-actual view of one edge at a cochain.

    Raises ValueError for an unknown edge, a cochain that does not fit or weights that are not
    finite. Cost: one operation, and a look at all weights and values for NaN.
    Source: Bosca & Ghrist 2026, figures of section 6.3.

    >>> from torchsheaf.boundary import hold
    >>> from torchsheaf.sheaf import encode
    >>> net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
    >>> x = torch.randn(9, 2)
    >>> problem = hold(encode(net, x), x)
    >>> at = problem.start("random")
    >>> view = prediction(problem, at, "1")
    >>> bool(torch.allclose(view.residual, at["0"].relu() - at["1"]))
    True
    """
    require_problem(problem)
    sheaf = problem.sheaf
    if not isinstance(edge, str) or edge not in sheaf.edges:
        raise ValueError(f"no edge named {edge!r}; write one of: {', '.join(sheaf.edges)}")
    problem.require_values("at", at)
    cell = sheaf.edges[edge]
    predicted = coordinates(sheaf.network.evaluate(cell.node, at))
    parent = coordinates(at[cell.parents[0]])
    same = len(cell.parents) == 1 and parent.shape == predicted.shape
    return Prediction(
        edge, str(cell.kind), predicted, coordinates(at[cell.head]), parent if same else None
    )
