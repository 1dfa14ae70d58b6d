"""The Newton system of a held problem at a cochain, as the solvers build it."""

import torch
from torch import Tensor

import torchsheaf as ts
from torchsheaf.harmonic.frozen_system import FrozenSystem
from torchsheaf.harmonic.reduced_energy import Forces, branch, forces
from torchsheaf.harmonic.reduction import Reduction


@torch.no_grad()
def frozen_at(
    problem: ts.Problem, start: ts.Cochain
) -> tuple[Reduction, Tensor, Tensor, Forces, FrozenSystem]:
    """What is eliminated, C, M, the forces there, and the system without second derivatives."""
    reduction = Reduction.of(problem)
    c = reduction.layout.gather(start)
    m = reduction.incoming(c)
    here = forces(reduction, c, m)
    network, point = problem.sheaf.network, reduction.point(c)
    maps = {x.node.name: network.linearise(x.node, point, {}) for x in reduction.layout.cells}
    return reduction, c, m, here, FrozenSystem(
        reduction.layout, maps, branch(reduction, c, here.gates)
    )  # fmt: skip
