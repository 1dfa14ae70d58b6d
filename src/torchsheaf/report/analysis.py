"""Everything that a report shows, computed once."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from torchsheaf.arguments import whole_number
from torchsheaf.boundary import Pin, Problem, hold
from torchsheaf.diagnose import Discord, Finding, agreement, discord
from torchsheaf.diagnose import pathologies as known_faults
from torchsheaf.diagnose.classes import require_labels
from torchsheaf.flow import Trajectory, heat_flow
from torchsheaf.harmonic import Extension, Spectrum, harmonic_extension, spectrum
from torchsheaf.network import ExportedProgram
from torchsheaf.network.passing import split
from torchsheaf.report.labels import Labels, read_labels, require_hold
from torchsheaf.sheaf import Sheaf, encode

Progress = Callable[[str, int, int], None]
STAGES = ("reading the network", "forward pass", "spectrum", "relaxation", "labels", "page")
"""What `progress(stage, number, of)` announces."""

SPECTRUM_NUMBERS = 4e6
"""Numbers that Lanczos may keep: bounds the samples whose spectrum is computed."""
FLOW_NUMBERS = 4e4
"""Samples × free coordinates up to which the relaxation is computed."""
FLOW_WORK = 3e7
"""The same times the Euler steps."""
EXACT_UP_TO = 300
"""Free coordinates up to which the flow is exact; beyond, explicit Euler steps."""
LABEL_NUMBERS = 7e4
"""Samples × free coordinates relaxed with the label held (but at least four samples)."""
LABEL_WORK = 1.5e8
"""The same times the solver's passes."""


@dataclass(frozen=True, eq=False)
class Analysis:
    """The results behind a report.

    A result that could not be had is None, and `missing` says why, by section: "spectrum",
    "relaxation", "labels", "diagnosis", "precision". `given` counts the samples that came, of
    which the first `problem.batch` are analysed.
    """

    title: str
    problem: Problem
    inputs: tuple[Tensor, ...]
    given: int
    forward: Extension
    findings: tuple[Finding, ...]
    smallest: Spectrum | None
    largest: Spectrum | None
    flow: Trajectory | None
    labels: Labels | None
    pulled: Extension | None
    table: Discord | None
    missing: dict[str, str]
    seconds: float
    pathologies: tuple[Finding, ...] = ()
    nearest: int | None = None
    against: "Analysis | None" = None

    @property
    def sheaf(self) -> Sheaf:
        """The network as a sheaf."""
        return self.problem.sheaf

    @property
    def output(self) -> Tensor:
        """The forward pass at the output that the page is about, the first."""
        return self.forward.cochain[self.sheaf.outputs[0]]

    @property
    def gap(self) -> float | None:
        """Median over samples of the smallest eigenvalue."""
        return None if self.smallest is None else float(self.smallest.values[:, 0].median())


def analyse(
    model: nn.Module | ExportedProgram,
    x: Tensor | Sequence[Tensor] | Mapping[str, Tensor],
    y: Tensor | None = None,
    *,
    title: str | None = None,
    max_samples: int = 500,
    hold_labels: str = "auto",
    weight: float = float("inf"),
    nearest: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Analysis:
    """Analyse a model on a batch: agreement, spectrum, relaxation, disagreement with labels.

    `x` is `(batch, *shape)` or a tuple; `y` class numbers or values, or None. At most
    `max_samples` samples are used. `hold_labels` is "one-hot", "class mean" or "auto" (see
    `read_labels`); a finite `weight` holds the label softly. `nearest` is the class that the
    page's section on changed inputs is to ask for. `seed` fixes the random start.

    Raises what `encode` and `hold` raise, and ValueError or TypeError naming the argument that does
    not fit, before anything long is computed.
    """
    seed = whole_number("seed", seed, least=0)
    max_samples = whole_number("max_samples", max_samples)
    require_hold(hold_labels)
    Pin("output", 0.0, weight=weight)  # refuses a bad weight
    began = time.perf_counter()
    announce = _announcer(progress)
    announce(0)
    sheaf = encode(model, x)
    inputs = tuple(sheaf.read_inputs(x).values())
    given = inputs[0].shape[0]
    if y is not None:
        require_labels("y", y, given)
    if sheaf.network.fixed_batch is None:
        inputs = tuple(t[:max_samples] for t in inputs)
    problem = hold(sheaf, inputs)
    announce(1)
    forward = harmonic_extension(problem)
    output = forward.cochain[sheaf.outputs[0]]
    labels = None
    if y is not None:
        labels = read_labels(y[: problem.batch], output, hold_labels)
    if nearest is not None:
        nearest = _class(problem, output, nearest)
    missing: dict[str, str] = {}
    announce(2)
    smallest, largest = _spectra(problem, missing)
    expected = _first_output(model, inputs, sheaf.network.keywords)
    findings = agreement(forward, expected, gap=smallest, output=sheaf.outputs[0])
    announce(3)
    flow = _relax(problem, smallest, largest, seed, missing)
    announce(4)
    pulled = _pull(problem, labels, weight, missing)
    table = None if pulled is None else discord(pulled)
    faults = _faults(problem, labels, missing)
    return Analysis(
        title or _title(model), problem, inputs, given, forward, findings, smallest, largest, flow,
        labels, pulled, table, missing, time.perf_counter() - began,
        faults, nearest=nearest,
    )  # fmt: skip


def beside(analysis: Analysis, other: Analysis) -> Analysis:
    """The analysis with another one to compare it with; both must be of the same samples.

    Raises ValueError when the inputs differ.
    """
    same = len(analysis.inputs) == len(other.inputs) and all(
        a.shape == b.shape and torch.equal(a, b.to(a))
        for a, b in zip(analysis.inputs, other.inputs, strict=False)
    )
    if not same:
        raise ValueError("the two analyses are of different samples; pass the same x to both")
    return replace(analysis, against=other)


def _faults(
    problem: Problem, labels: Labels | None, missing: dict[str, str]
) -> tuple[Finding, ...]:
    y = None if labels is None else labels.y if labels.is_classes else labels.target
    try:
        return known_faults(problem, y, output=problem.sheaf.outputs[0])
    except ValueError as error:
        missing["diagnosis"] = f"No known fault could be looked for: {error}."
        return ()


def _class(problem: Problem, output: Tensor, nearest: int) -> int:
    """The class that inputs are to be changed to; refused where the question cannot be asked."""
    nearest, network = whole_number("nearest", nearest, least=0), problem.sheaf.network
    if len(network.inputs) > 1:
        names = ", ".join(problem.sheaf.inputs)
        raise ValueError(f"nearest needs a network with one input; this one has {names}")
    if network.integral:
        raise ValueError("nearest needs an input of real numbers; this network's are integers")
    if network.fixed_batch is not None:
        raise ValueError("nearest needs a network that takes any batch; this one fixes its size")
    if output.ndim != 2 or output.shape[1] < 2:
        raise ValueError(f"nearest needs an output (batch, classes); it is {tuple(output.shape)}")
    if nearest >= output.shape[1]:
        raise ValueError(
            f"nearest is {nearest}; the output has {output.shape[1]} classes, numbered "
            f"0 … {output.shape[1] - 1}"
        )
    return nearest


def _announcer(progress: Progress | None) -> Callable[[int], None]:
    def announce(number: int) -> None:
        if progress is not None:
            progress(STAGES[number], number, len(STAGES))

    return announce


def _title(model: nn.Module | ExportedProgram) -> str:
    return type(model).__name__ if isinstance(model, nn.Module) else "exported program"


@torch.no_grad()
def _first_output(
    model: nn.Module | ExportedProgram, inputs: tuple[Tensor, ...], keywords: tuple[str, ...]
) -> Tensor:
    run = model if isinstance(model, nn.Module) else model.module()
    first, named = split(inputs, keywords)
    leaves = torch.utils._pytree.tree_leaves(run(*first, **named))
    return next(t for t in leaves if isinstance(t, Tensor) and t.is_floating_point())


def _some(problem: Problem, count: float) -> Problem:
    """The first samples, at least one; all of them where the model fixes its batch."""
    if problem.sheaf.network.fixed_batch is not None:
        return problem
    return problem.samples(torch.arange(max(1, min(problem.batch, int(count)))))


def _spectra(problem: Problem, missing: dict[str, str]) -> tuple[Spectrum | None, Spectrum | None]:
    some = _some(problem, min(100, SPECTRUM_NUMBERS / (60 * problem.free.dim)))
    found = [spectrum(some, which=which, throw=False) for which in ("smallest", "largest")]
    worst = max(float(s.residual.max()) for s in found)
    if not worst <= 1e-2:
        missing["spectrum"] = (
            f"Lanczos did not settle on the extreme eigenvalues (relative residual {worst:.1e})."
        )
        return None, None
    return found[0], found[1]


def _relax(
    problem: Problem,
    gap: Spectrum | None,
    top: Spectrum | None,
    seed: int,
    missing: dict[str, str],
) -> Trajectory | None:
    dim = problem.free.dim
    if dim > FLOW_NUMBERS:
        missing["relaxation"] = (
            f"With {dim:,} free coordinates the relaxation would take longer than the rest of "
            "this page together; torchsheaf.heat_flow computes it."
        )
        return None
    gated = any(e.node.gates for e in problem.sheaf.edges.values())
    exact = gated and dim <= EXACT_UP_TO and problem.sheaf.is_piecewise_affine
    some = _some(problem, 8 if exact else min(12, FLOW_NUMBERS / dim))
    slowest = 0.1 if gap is None else float(gap.values.min())
    until = min(max(12 / slowest, 20.0), 400.0)
    if not exact:
        # Steps of about 1/λ_max are stable with a margin; their number is what costs.
        fastest = 10.0 if top is None else float(top.values.max())
        steps = min(3000.0, max(300.0, FLOW_WORK / (some.batch * dim)))
        until = min(until, steps / fastest)
    for method in ("exact", "euler") if exact else ("euler",):
        try:
            return heat_flow(
                some, start="random", until=until, method=method, times=161, tol=0.0,
                max_steps=20_000, generator=torch.Generator().manual_seed(seed), progress=False,
                throw=False,
            )  # fmt: skip
        except ValueError as error:
            refusal = str(error)
    missing["relaxation"] = f"No flow takes this network: {refusal}."
    return None


def _pull(
    problem: Problem, labels: Labels | None, weight: float, missing: dict[str, str]
) -> Extension | None:
    if labels is None:
        missing["labels"] = (
            "No labels were given. With labels the page shows which steps resist them, and on "
            "which samples."
        )
        return None
    some = _some(problem, max(4, LABEL_NUMBERS / problem.free.dim))
    target = labels.target[: some.batch]
    held = some.pin(Pin(some.sheaf.outputs[0], target, weight=weight))
    passes = int(min(2000, max(100, LABEL_WORK / (some.batch * problem.free.dim))))
    try:
        return harmonic_extension(held, throw=False, max_passes=passes)
    except ValueError as error:
        missing["labels"] = (
            "Labels were given, but no solver can relax this network with its output held "
            f"({error})."
        )
        return None
