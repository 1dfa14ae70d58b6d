"""Which steps of a suspect network went wrong, told from a healthy run's values."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from torchsheaf.arguments import finite_number
from torchsheaf.boundary import Problem, require_problem
from torchsheaf.cochain import coordinates
from torchsheaf.diagnose.discord import DiscordEdge, discord_edges
from torchsheaf.diagnose.findings import Finding, at_most

SOURCE = "locality of the discrepancy: r_e depends on e's own operation and parents only"


@dataclass(frozen=True, eq=False)
class FaultProfile:
    """How far each step is from producing the reference's value out of the reference's values.

    `misfit` (edges,) is (Σ_m ‖r_e‖² / Σ_m ‖c_e‖²)^½ over the samples m, in the order of `edges`.
    """

    edges: tuple[DiscordEdge, ...]
    misfit: Tensor

    def ranked(self) -> list[tuple[str, float]]:
        """Edges with their misfit, worst first."""
        order = self.misfit.argsort(descending=True, stable=True).tolist()
        return [(self.edges[i].name, float(self.misfit[i])) for i in order]

    def findings(self, bound: float) -> tuple[Finding, ...]:
        """One finding per edge: its misfit against what the change of format may cost.

        Raises ValueError for a bound that is no finite number.
        """
        bound = finite_number("bound", bound)
        return tuple(
            at_most(
                f"misfit of {edge.name} with the reference, relative",
                float(value),
                bound,
                source=SOURCE,
                advice=(
                    "This step does what the reference's does."
                    if float(value) <= bound
                    else f"{edge.name} ({edge.op}) itself computes something else: compare its "
                    "weights, scales and layout with the reference's. Steps after it that keep "
                    "their bound are innocent, however far their outputs have drifted."
                ),
            )
            for edge, value in zip(self.edges, self.misfit, strict=True)
        )


@torch.no_grad()
def fault_profile(problem: Problem, reference: Mapping[str, Tensor]) -> FaultProfile:
    """Discord of a suspect network at another run's cochain: nonzero on the faulty edges only.

    `problem` belongs to the suspect; `reference` holds every vertex's value of a healthy run on the
    same inputs (the float32 original's, an older checkpoint's, another framework's dump). Because
    r_e = c_e − f_e(c_parents) involves no other edge, several faults do not mask each other, and
    what they did to later values does not matter. Comparing the two runs' activations instead
    shows every layer after the first fault as different.

    It is layer-wise checking on the reference's inputs ("teacher forcing"), done for a whole graph,
    joins included, in one pass. It finds where two computations differ; it cannot say which is
    right, nor see a fault that the reference shares.
    Raises ValueError when the reference lacks a vertex, has another shape or type or is not finite,
    and for weights that are not finite. Cost: one pass.

    >>> from torchsheaf.boundary import hold
    >>> from torchsheaf.sheaf import encode
    >>> net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    >>> problem = hold(encode(net, x := torch.randn(20, 2)), x)
    >>> healthy = problem.start("forward")
    >>> with torch.no_grad():
    ...     net[0].bias[0] += 1  # disturbs every later value as well
    >>> [name for name, misfit in fault_profile(problem, healthy).ranked() if misfit > 1e-6]
    ['0']
    """
    require_problem(problem)
    problem.require_values("reference", reference)
    residual = problem.sheaf.residual(reference)
    edges = tuple(e for e in discord_edges(problem) if e.kind != "pin")
    squares = torch.stack([coordinates(residual[e.name]).square().sum() for e in edges])
    sizes = torch.stack([coordinates(reference[e.name]).square().sum() for e in edges])
    return FaultProfile(edges, (squares / sizes.clamp_min(torch.finfo(sizes.dtype).tiny)).sqrt())
