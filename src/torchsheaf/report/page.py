"""An analysis → one HTML page."""

import platform
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from torchsheaf.network import ExportedProgram
from torchsheaf.report.analysis import Analysis, Progress, analyse
from torchsheaf.report.headlines import headlines
from torchsheaf.report.markup import number
from torchsheaf.report.template import page_of, version

if TYPE_CHECKING:
    from torchsheaf.precision import Plan

GLOSSARY = {
    "vertex": "One intermediate value of the network: a list of numbers per sample.",
    "edge, step": "The rule that should produce a vertex from earlier ones: a layer, a gate…",
    "disagreement r": "A vertex's value minus what its step makes of the earlier values. Zero "
    "where the step has been carried out.",
    "discord, energy": "Discord of a step is ‖r‖², the squared length of its disagreement. Energy "
    "is half the sum over all steps.",
    "to hold, free": "A held value cannot move; a free one takes whatever value makes the energy "
    "smallest.",
    "sheaf": "The mathematician's name for this structure: values on vertices, and maps that carry "
    "them to the edges, where they are compared.",
}


def report(
    model: nn.Module | ExportedProgram,
    x: Tensor | Sequence[Tensor] | Mapping[str, Tensor],
    y: Tensor | None = None,
    *,
    title: str | None = None,
    max_samples: int = 240,
    hold_labels: str = "auto",
    weight: float = float("inf"),
    nearest: int | None = None,
    plan: "Plan | None" = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> str:
    """One self-contained HTML page about a model on a batch of samples.

    `x` is `(batch, *shape)`, a tuple of them or a dict by argument name; `y` class numbers
    `(batch,)` or values of the output's shape. At most `max_samples` samples are used. The label is
    held at the output, hard (`weight=inf`) or softly; for classes as one-hot vectors or at the
    class's mean output (`hold_labels`, see `torchsheaf.report.labels`). `nearest` adds pictures of
    what would have to change in the inputs for the network to say that class; `plan` (from
    `precision.plan`) adds the number format of every operation. The page needs no network and runs
    no script; sections that cannot be had (no labels, say) say why.

    Raises `UnsupportedModel` for a model that cannot be read, ValueError or TypeError naming an
    argument that does not fit. Cost: seconds for small networks; the relaxation dominates.

    >>> net = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1)).double()
    >>> page = report(net, torch.randn(20, 2).double(), title="<net>")
    >>> "&lt;net&gt;" in page and "<net>" not in page
    True
    """
    analysis = analyse(
        model, x, y, title=title, max_samples=max_samples, hold_labels=hold_labels, weight=weight,
        nearest=nearest, seed=seed, progress=progress,
    )  # fmt: skip
    return render(analysis, plan=plan)


def render(analysis: Analysis, *, plan: "Plan | None" = None) -> str:
    """The page of an analysis that has been made already."""
    # The sections draw: matplotlib is imported when a page is written, not with the package.
    from torchsheaf.report.sections import sections_of

    return page_of(
        sections_of(analysis, plan=plan), title=analysis.title, lead=_lead(analysis),
        headlines=headlines(analysis), footer=_footer(analysis), data=_data(analysis),
        glossary=GLOSSARY,
    )  # fmt: skip


def _lead(analysis: Analysis) -> str:
    used = analysis.problem.batch
    samples = f"{used} samples"
    if used < analysis.given:
        samples = f"the first {used} of {analysis.given} samples"
    return (
        "A trained network is a chain of local rules: every layer says what its own value should "
        "be, given the layers before it. This page looks at those rules on "
        f"{samples}: whether they agree, how they find agreement, and which of them give way last "
        "when the answer is prescribed."
    )


def _footer(analysis: Analysis) -> str:
    like = analysis.problem.like
    return (
        f"Computed in {number(analysis.seconds, 2)} s with torchsheaf {version()}, torch "
        f"{torch.__version__}, Python {platform.python_version()}, in {like.dtype} on "
        f"{like.device.type}. The construction is due to Bosca and Ghrist, Neural Networks as "
        "Local-to-Global Computations (arXiv 2603.14831, 2026)."
    )


def _data(analysis: Analysis) -> dict[str, Any]:
    """The numbers behind the page, for programs; values that are not finite become null."""

    def finite(value: float | None) -> float | None:
        return value if value is not None and abs(value) < float("inf") else None

    table = analysis.table
    return {
        "title": analysis.title,
        "findings": [
            {
                "name": f.name,
                "value": finite(f.value),
                "relation": f.relation,
                "bound": finite(f.bound),
                "verdict": f.verdict.value,
            }
            for f in (*analysis.findings, *analysis.pathologies)
        ],
        "gap": finite(analysis.gap),
        "discord": None
        if table is None
        else {e.name: float(v) for e, v in zip(table.edges, table.mean, strict=True)},
        "missing": analysis.missing,
    }
