"""Labels that a network holds for wrong, beyond the errors that it makes itself."""

import torch
from torch import Tensor

from torchsheaf.boundary import Problem
from torchsheaf.diagnose.findings import Finding, at_most, listed, noted
from torchsheaf.diagnose.label_energy import label_energy

SUSPECT = 0.01
"""Share of samples whose label may lose by a fair part of the energy that labels win by."""
FAIR_PART = 0.5
"""That part, of the median winning energy: errors of a sound network lose by less, most of them."""
TAIL = 0.35
"""Share of the labels that lose which may lose by that much: errors crowd at the boundary."""
SURE = 3.6
"""Deviations from which losses do not decline with the distance, so that `TAIL` excuses none."""
JUDGES = 2 / 3
"""Share of the labels that a network must agree with before it can say anything against some."""


def suspicious_labels(problem: Problem, y: Tensor, output: str | None = None) -> Finding:
    """Labels that lose by half or more of the energy that typical ones win by.

    A sound network is wrong ever more seldom the farther from its decision boundary: at the
    distance d = √E, P(the label loses) = 1/(1 + exp(a d)); wrong labels lose at any distance, with
    some probability ε more. So up to `TAIL` of the labels that lose are put down to the network,
    unless the likelihood of both together shows ε > 0 (`constant_part`).
    """
    signed = label_energy(problem, y, output=output).signed.double()
    won = -signed[signed < 0]
    agreed, lost = len(won) / problem.batch, float((signed > 0).double().mean())
    source = "signed least energy of the label against the median energy of winning labels"
    bar = FAIR_PART * float(won.median()) if len(won) else 0.0
    flagged = (signed > bar).nonzero().flatten()
    ranked = flagged[signed[flagged].argsort(descending=True)].tolist()
    shown = listed(ranked, 8)
    share = len(ranked) / problem.batch
    if agreed < JUDGES:
        return noted(
            "suspicious labels", share, unit="of the samples", source=source,
            advice=f"The network says the same as {agreed:.1%} of the labels only: too few for it "
            "to say anything against one. Train it first.",
        )  # fmt: skip
    sure = share > SUSPECT and constant_part(signed)[1] > SURE
    allowed = SUSPECT if sure else max(SUSPECT, TAIL * lost)
    if share <= allowed:
        advice = "The network holds no label for wrong beyond what its own errors explain."
        advice += f" Look at: {shown}." if ranked else ""
    else:
        advice = (
            f"{len(ranked)} labels lose by a fair part of the energy that the typical label wins "
            f"by. Look at samples {shown}: relabel them, or find out what the network "
            f"misses; it says the same as {agreed:.1%} of the labels, and the "
            "fewer, the less it can say against one. A network that has memorised its labels hides "
            "such errors: ask one that was stopped early, or was trained without the sample."
        )
    return at_most(
        "suspicious labels", share, allowed, unit="of the samples", source=source, advice=advice
    )


def constant_part(signed: Tensor) -> tuple[float, float]:
    """Likeliest ε, and how sure ε > 0 is: √(2 log of the likelihood ratio), in deviations.

    `signed` (batch,) is positive where a label loses. Both likelihoods are the largest over a grid
    of slopes. Cost: elementwise, batch × 2,000.
    """
    distance = (signed.abs() / signed[signed < 0].neg().median()).sqrt()
    sign = torch.where(signed > 0, -1.0, 1.0).to(distance)
    parts = torch.cat([sign.new_zeros(1), torch.logspace(-4, -0.4, 31).to(sign)])
    best = parts.new_full(parts.shape, -torch.inf)
    for slope in torch.logspace(-1.3, 1.7, 64).tolist():
        odds = torch.sigmoid(slope * distance * sign)
        mixed = parts[:, None] + (1 - 2 * parts[:, None]) * odds
        best = best.maximum(mixed.clamp_min(1e-300).log().sum(1))
    chosen = int(best.argmax())
    return float(parts[chosen]), float((2 * (best[chosen] - best[0])).sqrt())
