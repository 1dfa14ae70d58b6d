"""The least energy that makes a label win or lose: one signed number per sample."""

from dataclasses import dataclass

import torch
from torch import Tensor

from torchsheaf.arguments import finite_number, whole_number
from torchsheaf.boundary import Problem, require_problem
from torchsheaf.cochain import Cochain, coordinates
from torchsheaf.diagnose.classes import class_numbers
from torchsheaf.diagnose.discord import Discord, DiscordEdge, discord_edges
from torchsheaf.sheaf import Coboundary

SIGMOIDS = ("sigmoid", "hardsigmoid")
"""Operations after which an output of one number is a probability."""


@dataclass(frozen=True, eq=False)
class LabelEnergy:
    """What it takes to move each sample to the other side of its label's decision boundary.

    `signed` (batch,) is positive where the label loses (the energy that would make it win) and
    negative where it wins (minus the energy that would make it lose); the larger, the more suspect
    the label. `gap` (batch,) is the rival's output minus the label's, plus the margin; `rival`
    (batch,) the class that decides; `discord` how the energy spreads over the edges (twice its
    size).
    """

    signed: Tensor
    gap: Tensor
    rival: Tensor
    discord: Discord


@torch.no_grad()
def label_energy(
    problem: Problem, labels: Tensor, *, margin: float = 0.0, rivals: int | None = None,
    output: str | None = None,
) -> LabelEnergy:  # fmt: skip
    """Signed least energy E = ½ g|g| / uᵀKu, per sample, at the forward pass's pattern.

    With f the output `(batch, classes)`, y the label and j a rival, u = e_y − e_j and
    g = margin − uᵀf. Among all cochains over the same input and pattern with uᵀz_out = margin the
    least energy is ½ g²/(uᵀKu), where uᵀKu = Σ_e ‖λ_e‖²/w_e and λ = δ⁻ᵀu: one adjoint sweep per
    rival for the whole batch, no linear system. The rival with the largest signed energy counts;
    `rivals` limits the search to so many classes of largest output (None: all). An output of one
    number is read as the log-odds of label 1, as in `BCEWithLogitsLoss`; after a sigmoid as its
    probability, f − ½ standing for f. `output` names the
    one that the labels belong to, where the model has several.

    Known relative: the margin divided by the norm of its gradient with respect to hidden layers
    (Elsayed et al. 2018, large-margin deep networks); here the norm runs over every edge at once.
    Raises ValueError for labels that do not fit, weights that are not finite, or when more than the
    input is held.
    Source: docs/theory.md, T5, with the linear functional u in place of the whole output.

    >>> from torchsheaf.boundary import hold
    >>> from torchsheaf.sheaf import encode
    >>> net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    >>> x = torch.randn(20, 2)
    >>> found = label_energy(hold(encode(net, x), x), torch.zeros(20, dtype=torch.int64))
    >>> bool(torch.equal(found.signed > 0, net(x).argmax(1) != 0))
    True
    """
    require_problem(problem)
    if not problem.holds_input_only:
        raise ValueError("label_energy needs a problem with the input held and nothing else")
    margin = finite_number("margin", margin)
    rivals = None if rivals is None else whole_number("rivals", rivals)
    name = problem.sheaf.output(output)
    at = problem.start("forward")
    labels = class_numbers("labels", labels, at[name])
    coboundary, edges = problem.coboundary(at), discord_edges(problem)
    probability = at[name].shape[1] == 1 and problem.sheaf.edges[name].operation in SIGMOIDS
    boundary = 0.5 if probability else 0.0  # of the rest, both classes' numbers move alike
    best: LabelEnergy | None = None
    for rival, u in _directions(at[name], labels, rivals):
        found = _one(problem, coboundary, edges, name, at[name] - boundary, u, rival, margin)
        best = found if best is None else _larger(found, best)
    assert best is not None
    return best


def _directions(output: Tensor, labels: Tensor, rivals: int | None) -> list[tuple[Tensor, Tensor]]:
    """(rival, u) per rival, nearest first."""
    if output.shape[1] == 1:
        return [(1 - labels, (2 * labels - 1).to(output)[:, None])]
    others = output.scatter(1, labels[:, None], -torch.inf)
    count = output.shape[1] - 1 if rivals is None else min(rivals, output.shape[1] - 1)
    ranked = others.topk(count, dim=1).indices
    hot = torch.zeros_like(output).scatter_(1, labels[:, None], 1.0)
    return [(j, hot.scatter_add(1, j[:, None], -hot.new_ones(len(j), 1))) for j in ranked.T]


def _one(
    problem: Problem, coboundary: Coboundary, edges: tuple[DiscordEdge, ...], name: str,
    output: Tensor, u: Tensor, rival: Tensor, margin: float,
) -> LabelEnergy:  # fmt: skip
    pulled = coboundary.domain.zeros(problem.batch, output)
    swept = coboundary.solve_adjoint(Cochain({**pulled, name: u}))
    squares = torch.stack([coordinates(swept[e.name]).square().sum(1) for e in edges], 1)
    weights = squares.new_tensor([problem.weights.get(e.name, 1.0) for e in edges])
    stiffness = (squares / weights).sum(1)
    gap = margin - (u * output).sum(1)
    signed = 0.5 * gap * gap.abs() / stiffness
    scale = (gap / stiffness).square()
    values = squares * scale[:, None] / weights.square()
    return LabelEnergy(signed, gap, rival, Discord(edges, values))


def _larger(a: LabelEnergy, b: LabelEnergy) -> LabelEnergy:
    wins = a.signed > b.signed
    values = torch.where(wins[:, None], a.discord.values, b.discord.values)
    return LabelEnergy(
        torch.where(wins, a.signed, b.signed),
        torch.where(wins, a.gap, b.gap),
        torch.where(wins, a.rival, b.rival),
        Discord(a.discord.edges, values),
    )
