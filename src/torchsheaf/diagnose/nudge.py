"""Discord under an infinitesimal pull of the output towards its target: one adjoint sweep."""

import torch
from torch import Tensor

from torchsheaf.boundary import Problem, require_problem
from torchsheaf.cochain import Cochain, coordinates
from torchsheaf.diagnose.classes import (
    are_classes,
    class_numbers,
    require_finite_labels,
    require_labels,
)
from torchsheaf.diagnose.discord import Discord, discord_edges
from torchsheaf.network import Kind


def output_error(problem: Problem, name: str, output: Tensor, y: Tensor | None) -> Tensor:
    """Where the target pulls the output called `name`, `(batch, *shape)`: minus the loss's slope.

    The usual loss has, for class numbers, one-hot − softmax at an affine output edge and
    one-hot − output after a smooth one (probabilities); for values y − output; for None the
    deviation from the batch mean, so that the network can be probed without labels. One output and
    labels 0 or 1: read as log-odds.

    Raises ValueError or TypeError when y fits none of these.
    """
    if y is None:
        return output - output.mean(0)
    require_labels("y", y, len(output))
    probabilities = problem.sheaf.edges[name].kind is Kind.SMOOTH
    if are_classes(y, output):
        numbers = class_numbers("y", y, output)
        if output.shape[1] == 1:
            return numbers[:, None] - (output if probabilities else output.sigmoid())
        hot = torch.nn.functional.one_hot(numbers, output.shape[1]).to(output)
        return hot - (output if probabilities else output.softmax(1))
    values = y[:, None] if y.ndim == 1 and output.shape[1:] == (1,) else y
    if values.shape != output.shape or y.is_complex():
        raise ValueError(
            f"y is {y.dtype} of shape {tuple(y.shape)}; write class numbers ({output.shape[0]},) "
            f"of an integer type, or values {tuple(output.shape)}"
        )
    require_finite_labels(values)
    return values.to(output) - output


@torch.no_grad()
def nudged_residual(problem: Problem, at: Cochain, name: str, error: Tensor) -> Cochain:
    """λ = δ⁻ᵀ e with e on the edge of the output called `name`.

    These are the residuals of a soft pin of vanishing weight γ there, divided by γ. On weight edges
    λ is the back-propagated error (docs/theory.md, T5). Raises ValueError when more than the input
    is held. Cost: one adjoint sweep.
    """
    if not problem.holds_input_only:
        raise ValueError("the nudged residual needs the input held and nothing else")
    coboundary = problem.coboundary(at)
    zero = coboundary.domain.zeros(problem.batch, error)
    return coboundary.solve_adjoint(Cochain({**zero, name: error}))


@torch.no_grad()
def nudged_discord(
    problem: Problem, y: Tensor | None = None, *, output: str | None = None
) -> Discord:
    """Discord per edge and sample in the limit of a weak pull towards y, divided by γ².

    The pattern does not change and nothing has to be relaxed, so that it can be watched at every
    epoch of a training run. With the output held for good use `discord(harmonic_extension(...))`.
    `output` names the one that y belongs to, where the model has several.
    Raises ValueError for a y that does not fit, weights that are not finite, or when more than the
    input is held.

    >>> from torchsheaf.boundary import Pin, hold
    >>> from torchsheaf.diagnose.discord import discord
    >>> from torchsheaf.harmonic import harmonic_extension
    >>> from torchsheaf.sheaf import encode
    >>> net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
    >>> x, y = torch.randn(16, 2).double(), torch.randn(16, 1).double()
    >>> problem = hold(encode(net.double(), x), x)
    >>> weak = harmonic_extension(problem.pin(Pin("output", y, weight=1e-7)), tol=1e-13)
    >>> limit = discord(weak).values[:, :-1] / 1e-14
    >>> bool(torch.allclose(limit, nudged_discord(problem, y).values, rtol=1e-3, atol=1e-6))
    True
    """
    require_problem(problem)
    at = problem.start("forward")
    name = problem.sheaf.output(output)
    error = output_error(problem, name, at[name], y)
    residual = nudged_residual(problem, at, name, error)
    edges = discord_edges(problem)
    values = torch.stack([coordinates(residual[e.name]).square().sum(1) for e in edges], 1)
    return Discord(edges, values)
