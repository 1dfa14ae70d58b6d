"""The right-hand side of the heat equation, ċ = −α ∇E, in both output modes."""

from collections.abc import Mapping

import torch
from torch import Tensor

from torchsheaf.boundary import Problem
from torchsheaf.cochain import Cochain
from torchsheaf.network import Kind
from torchsheaf.sheaf import Coboundary


@torch.no_grad()
def descent(
    problem: Problem,
    c: Mapping[str, Tensor],
    coboundary: Coboundary | None = None,
    *,
    adjoint_output: bool = True,
) -> Cochain:
    """The gradient g with ċ = −αg, on the free coordinates, in the piece each gate selects.

    `coboundary` is δ at c, where it is not the plain one. With `adjoint_output` it is ∇E: the
    output edge pulls on the pre-output z with J_φ(z)ᵀ(φ(z) − y). Without, with φ(z) − y alone,
    which is the gradient of cross-entropy and does not saturate; that is not a gradient of E.
    Source: Bosca & Ghrist 2026, section 4.2.
    """
    residual = problem.residual(c)
    coboundary = coboundary or problem.coboundary(c)
    force = problem.force(residual)
    gradient = coboundary.adjoint(force)
    if adjoint_output:
        return gradient
    edge, parent = identity_output(problem)
    pulled = coboundary.maps[edge].pull(force[edge])[parent]
    changed = dict(gradient.items())
    if parent in changed:
        changed[parent] = changed[parent] + pulled - force[edge]
    return problem.free.project(changed)


def identity_output(problem: Problem) -> tuple[str, str]:
    """The output edge and its parent, if the mode without Jacobian makes sense for it."""
    (name, *others) = problem.sheaf.outputs
    edge = problem.sheaf.edges.get(name)
    vertices = problem.sheaf.vertices
    if (
        others
        or edge is None
        or len(edge.parents) != 1
        or edge.kind is not Kind.SMOOTH
        or vertices[edge.parents[0]].shape != vertices[name].shape
    ):
        raise ValueError(
            'output_force="identity" needs one output that is a smooth function of a single '
            "vertex of the same shape (sigmoid, softmax)"
        )
    return name, edge.parents[0]
