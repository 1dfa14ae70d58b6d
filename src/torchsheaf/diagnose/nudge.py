"""Discord under an infinitesimal pull of the output towards its target: one adjoint sweep."""

import torch
from torch import Tensor

from torchsheaf.boundary import Problem
from torchsheaf.cochain import Cochain, coordinates
from torchsheaf.diagnose.discord import Discord, discord_edges
from torchsheaf.network import Kind


def output_error(problem: Problem, output: Tensor, y: Tensor | None) -> Tensor:
    """Where the target pulls the output, `(batch, *shape)`: minus the slope of the usual loss.

    Class numbers: one-hot − softmax for an affine output edge, one-hot − output after a smooth one
    (probabilities); values: y − output; None: the deviation from the batch mean, so that the
    network can be probed without labels. One output and labels 0 or 1: read as log-odds.

    Raises ValueError when y fits none of these.
    """
    if y is None:
        return output - output.mean(0)
    if y.shape[0] != output.shape[0]:
        raise ValueError(f"y has {y.shape[0]} labels for {output.shape[0]} samples")
    probabilities = problem.sheaf.edges[problem.sheaf.outputs[0]].kind is Kind.SMOOTH
    if not y.is_floating_point() and y.ndim == 1 and output.ndim == 2:
        y = y.to(output.device)
        if output.shape[1] == 1:
            return y[:, None] - (output if probabilities else output.sigmoid())
        if int(y.min()) < 0 or int(y.max()) >= output.shape[1]:
            raise ValueError(f"y reaches {int(y.max())}; the output has {output.shape[1]} classes")
        hot = torch.nn.functional.one_hot(y, output.shape[1]).to(output)
        return hot - (output if probabilities else output.softmax(1))
    values = y.to(output)
    values = values[:, None] if values.ndim == 1 and output.shape[1:] == (1,) else values
    if values.shape != output.shape:
        raise ValueError(
            f"y has shape {tuple(y.shape)}; write class numbers ({output.shape[0]},) or values "
            f"{tuple(output.shape)}"
        )
    return values - output


@torch.no_grad()
def nudged_residual(problem: Problem, at: Cochain, error: Tensor) -> Cochain:
    """λ = δ⁻ᵀ e with e on the output's edge: the residuals of a soft pin of vanishing weight, /γ.

    On weight edges λ is the back-propagated error (docs/theory.md, T5). Raises ValueError when more
    than the input is held. Cost: one adjoint sweep.
    """
    if not problem.holds_input_only:
        raise ValueError("the nudged residual needs the input held and nothing else")
    coboundary = problem.coboundary(at)
    zero = coboundary.domain.zeros(problem.batch, error)
    return coboundary.solve_adjoint(Cochain({**zero, problem.sheaf.outputs[0]: error}))


@torch.no_grad()
def nudged_discord(problem: Problem, y: Tensor | None = None) -> Discord:
    """Discord per edge and sample in the limit of a weak pull towards y, divided by γ².

    The pattern does not change and nothing has to be relaxed, so that it can be watched at every
    epoch of a training run. With the output held for good use `discord(harmonic_extension(...))`.
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
    problem.sheaf.network.require_finite()
    at = problem.start("forward")
    error = output_error(problem, at[problem.sheaf.outputs[0]], y)
    residual = nudged_residual(problem, at, error)
    edges = discord_edges(problem)
    values = torch.stack([coordinates(residual[e.name]).square().sum(1) for e in edges], 1)
    return Discord(edges, values)
