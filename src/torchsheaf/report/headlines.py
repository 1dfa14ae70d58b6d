"""The findings in a few lines, for the top of the page and for the terminal."""

import math

import torch

from torchsheaf.harmonic import Spectrum
from torchsheaf.report.analysis import Analysis
from torchsheaf.report.diagnosis_section import looked_for
from torchsheaf.report.markup import number, percent


def headlines(analysis: Analysis) -> tuple[str, ...]:
    """One plain sentence or two per section, in the order of the page."""
    found = [
        _subject(analysis),
        _proof(analysis),
        _settling(analysis),
        _arrival(analysis),
        _accuracy(analysis),
        *_faults(analysis),
        _resistance(analysis),
    ]
    return tuple(line for line in found if line)


def _subject(analysis: Analysis) -> str:
    """Which output the page is about, where there are several."""
    names = tuple(dict.fromkeys(analysis.sheaf.outputs))
    if len(names) == 1:
        return ""
    return (
        f"This model has {len(names)} outputs: {', '.join(names)}. What the page says of the "
        f"output is about {names[0]}."
    )


def _proof(analysis: Analysis) -> str:
    steps = len(analysis.sheaf.edges)
    value = analysis.findings[0].value
    difference = f"relative difference to the model {number(value, 2)}" if value else (
        "equal to the model's output to the last bit"
    )  # fmt: skip
    if all(f.holds for f in analysis.findings):
        return (
            f"The forward pass is the one assignment on which all {steps} steps agree "
            f"({difference})."
        )
    failed = "; ".join(f.name for f in analysis.findings if not f.holds)
    return f"A check failed, so read the rest with care: {failed}."


def home(found: Spectrum) -> tuple[str, float]:
    """The vertex with the largest mean share of an eigenvector, and that share."""
    means = {name: float(share.mean()) for name, share in found.block_energy().items()}
    name = max(means, key=means.__getitem__)
    return name, means[name]


def half_life(gap: float) -> float:
    """Time in which the slowest mode of a disturbance halves."""
    return math.log(2) / gap


def _settling(analysis: Analysis) -> str:
    if analysis.smallest is None or analysis.gap is None:
        return ""
    name, share = home(analysis.smallest)
    return (
        f"Left to settle, the slowest part of a disturbance halves every "
        f"{number(half_life(analysis.gap), 2)} units of time; {percent(share)} of it sits on "
        f"{name}."
    )


def arrival(analysis: Analysis) -> float | None:
    """Largest difference between the relaxed output and the model's, relative to the latter."""
    flow = analysis.flow
    if flow is None:
        return None
    relaxed = flow.final[analysis.sheaf.outputs[0]]
    ours = analysis.output[: relaxed.shape[0]]
    scale = float(ours.abs().max()) or 1.0
    return float((relaxed - ours).abs().max()) / scale


ARRIVED = 1e-3
"""Relative difference of the outputs below which a relaxation is said to have arrived."""


def _arrival(analysis: Analysis) -> str:
    flow, distance = analysis.flow, arrival(analysis)
    if flow is None or distance is None:
        return ""
    end = number(float(flow.times[-1]))
    if distance <= ARRIVED:
        return (
            "From random values everywhere, the network finds its own output by local steps alone: "
            f"relative difference {number(distance, 2)} after {end} units of time."
        )
    first, last = (typical(flow.energy[i]) for i in (0, -1))
    return (
        f"From random values everywhere, local steps alone lower the energy from {number(first)} "
        f"to {number(last)} in {end} units of time; the output is then still {percent(distance)} "
        "away from the network's own, because its slowest part takes longer."
    )


def _accuracy(analysis: Analysis) -> str:
    labels = analysis.labels
    if labels is None:
        return ""
    table = analysis.table
    output = analysis.output
    if not labels.is_classes:
        error = float((output - labels.target).square().mean().sqrt())
        return f"The root-mean-square error on these samples is {number(error)}."
    wrong = labels.wrong(output)
    right = 1 - float(wrong.double().mean())
    line = f"{right:.1%} of {len(wrong)} samples are classified as labelled"
    held = wrong[: 0 if table is None else len(table.total)]
    count = int(held.sum())
    if table is not None and 0 < 2 * count < len(held):  # among all of them it says nothing
        top = table.worst(2 * count).cpu()
        caught = int(held[top].sum())
        among = "" if len(held) == len(wrong) else f" of the first {len(held)}"
        line += (
            f"; of the {count}{among} that are not, {caught} are among the {len(top)} that "
            "disagree most with their label"
        )
    return line + "."


def _faults(analysis: Analysis) -> list[str]:
    failed = [f for f in analysis.pathologies if not f.holds]
    if analysis.pathologies and not failed:
        return [f"None of {looked_for(analysis.pathologies)} known faults was found."]
    return [f"Look at this: {f.name}. {f.advice}" for f in failed]


def _resistance(analysis: Analysis) -> str:
    table = analysis.table
    if table is None or not float(table.total.sum()) > 0:
        return ""
    share = table.share
    i = int(share.argmax())
    edge = table.edges[i]
    kinds = {k: float(v.sum() / table.total.sum()) for k, v in table.by_kind.items()}
    spread = ", ".join(
        f"{percent(v)} {k}" for k, v in sorted(kinds.items(), key=lambda item: -item[1])
    )
    return (
        f"Held to its labels, the network disagrees most at {edge.name} ({edge.op}), "
        f"{percent(float(share[i]))} of the total; by kind of step: {spread}."
    )


def typical(values: torch.Tensor) -> float:
    """The median as a float."""
    return float(values.double().median())
