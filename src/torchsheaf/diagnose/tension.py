"""Tension correction: what the stalks that training left behind would add to the output."""

from dataclasses import dataclass

import torch
from torch import Tensor

from torchsheaf.boundary import Problem, require_problem
from torchsheaf.cochain import Cochain


@dataclass(frozen=True, eq=False)
class Tension:
    """The forward pass, the mean tension of each edge, and the forward pass with it added.

    `corrected` is a diagnostic, not a better prediction: the tensions belong to the training
    samples and their targets, and a network judged with them has been told the answers' mean.
    """

    plain: Tensor
    corrected: Tensor
    tension: dict[str, Tensor]

    @property
    def shift(self) -> Tensor:
        """What the correction adds to each output, `(batch, *shape)`."""
        return self.corrected - self.plain


@torch.no_grad()
def tension_correction(
    trained: Problem, stalks: Cochain, inference: Problem, *, output: str | None = None
) -> Tension:
    """Run `inference` forward with the mean residual of `stalks` added on every edge.

    `stalks` is where training (or an extension with targets held) left the cochain of `trained`;
    its mean residual over samples, r̄_e, is added to f_e in topological order:
    c_v = f_v(c_parents) + r̄_v; what `inference` holds stays as it is held, and free coordinates of
    its input are those it was given. Zero tension gives the forward pass. `output` names the one to
    return, where the model has several.

    Source: the tension-corrected inference of Bosca & Ghrist's notebook on discord; kept as a
    diagnostic of how much of the fit lives in the stalks rather than in the weights.
    Raises ValueError for problems of different networks and for weights that are not finite.
    """
    for problem in (trained, inference):
        require_problem(problem)
    if trained.sheaf.edges.keys() != inference.sheaf.edges.keys():
        raise ValueError("trained and inference problems have different edges; use one network")
    name = inference.sheaf.output(output)
    trained.require_values("stalks", stalks)
    residual = trained.sheaf.residual(stalks)
    tension = {edge: residual[edge].mean(0, keepdim=True) for edge in trained.sheaf.edges}
    return Tension(inference.forward()[name], inference.forward(tension)[name], tension)
