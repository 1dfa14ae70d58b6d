"""Run an assignment beside float64 and say by how much they differ, sample by sample."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torchsheaf.precision.arguments import read_inputs
from torchsheaf.precision.check_certificate import clopper_pearson
from torchsheaf.precision.dataflow import Dataflow
from torchsheaf.precision.execute import Assignment, Execution, run_assigned, run_exact

NORMS = ("max", "rms", "relative")


@dataclass(frozen=True)
class Measurement:
    """Error of one assignment against float64.

    value: the worst sample, in the budget's norm. errors: one number per sample. rms, largest,
    relative: over all outputs together. reference_bound: rigorous bound on the error of the float64
    reference itself (max norm; often loose for deep networks), or nan where it was not asked for.
    reference_estimate: its expected rms error by the same model as the prediction.
    """

    norm: str
    value: float
    errors: tuple[float, ...]
    rms: float
    largest: float
    relative: float
    reference_bound: float = math.nan
    reference_estimate: float = math.nan

    def __float__(self) -> float:
        return self.value

    def join(self, other: "Measurement") -> "Measurement":
        """Both together; the overall rms weighs them by their samples."""
        n, m = len(self.errors), len(other.errors)

        def mix(a: float, b: float) -> float:
            return math.sqrt((n * a * a + m * b * b) / (n + m))

        return Measurement(
            self.norm,
            max(self.value, other.value),
            self.errors + other.errors,
            mix(self.rms, other.rms),
            max(self.largest, other.largest),
            mix(self.relative, other.relative),
            max(self.reference_bound, other.reference_bound),
            max(self.reference_estimate, other.reference_estimate),
        )


@dataclass(frozen=True)
class Statement:
    """Clopper–Pearson: with `violations` of `samples` independent inputs over budget, the
    probability that a new one is over is at most `probability`, at this confidence.
    """

    samples: int
    violations: int
    confidence: float
    probability: float

    def __str__(self) -> str:
        return (
            f"{self.violations} of {self.samples} held-out inputs over budget: "
            f"P(violation) ≤ {self.probability:.3g} at {self.confidence:.0%} confidence"
        )


def state(errors: Sequence[float], budget: float, confidence: float = 0.95) -> Statement:
    """The statement that these errors allow; a non-finite error is a violation."""
    over = sum(not e <= budget for e in errors)
    return Statement(len(errors), over, confidence, clopper_pearson(over, len(errors), confidence))


def floating_outputs(run: Execution) -> list[Tensor]:
    """The outputs that carry an error."""
    return [o for o in run.outputs if isinstance(o, Tensor) and o.is_floating_point()]


def by_sample(outputs: Sequence[Tensor], batch: int | None) -> Tensor:
    """Outputs as (samples, elements) in float64; one sample where the batch axis is not shared."""
    if batch and all(o.ndim > 0 and o.shape[0] == batch for o in outputs):
        return torch.cat([o.detach().double().reshape(batch, -1) for o in outputs], dim=1)
    return torch.cat([o.detach().double().reshape(1, -1) for o in outputs], dim=1)


def batch_of(inputs: Sequence[Any]) -> int | None:
    """Length of the first axis that all tensor inputs share, or None."""
    sizes = {x.shape[0] if x.ndim else None for x in inputs if isinstance(x, Tensor)}
    return sizes.pop() if len(sizes) == 1 else None


def norm_of(error: Tensor, reference: Tensor, norm: str) -> Tensor:
    """Per-sample norm of an error (samples, elements)."""
    if norm == "max":
        return error.abs().amax(dim=1)
    rms = error.square().mean(dim=1).sqrt()
    if norm == "rms":
        return rms
    size = reference.square().mean(dim=1).sqrt()
    return rms / size.clamp_min(torch.finfo(size.dtype).tiny)


def difference(actual: Tensor, reference: Tensor) -> Tensor:
    """actual − reference; 0 at the same infinity (a masked score), ∞ at any other and at NaN."""
    error = torch.where(actual == reference, 0.0, actual - reference)
    return torch.nan_to_num(error, nan=math.inf, posinf=math.inf, neginf=math.inf)


def measured_error(exact: Execution, actual: Execution) -> Tensor:
    """|actual − exact| flattened over all outputs of two executions."""
    a, b = (by_sample(floating_outputs(run), None).reshape(-1) for run in (actual, exact))
    return difference(a, b).abs()


def compare(actual: Tensor, reference: Tensor, norm: str) -> Measurement:
    """Measurement from outputs by sample."""
    error = difference(actual, reference)
    finite = torch.where(torch.isfinite(reference), reference, torch.zeros_like(reference))
    errors = tuple(torch.nan_to_num(norm_of(error, finite, norm), nan=math.inf).tolist())
    rms = float(error.square().mean().sqrt())
    scale = float(finite.square().mean().sqrt())
    return Measurement(
        norm, max(errors), errors, rms, float(error.abs().max()), rms / max(scale, 1e-300)
    )


def measure(
    flow: Dataflow,
    inputs: Sequence[Any],
    assignment: Assignment,
    norm: str = "max",
    reference: Tensor | None = None,
) -> Measurement:
    """Execute the assignment and compare with float64, per sample in `norm`.

    Cost: one run of the assignment and, without `reference`, one in float64.
    """
    batch = batch_of(inputs)
    if reference is None:
        reference = by_sample(floating_outputs(run_exact(flow, inputs)), batch)
    actual = by_sample(floating_outputs(run_assigned(flow, inputs, assignment)), batch)
    return compare(actual, reference, norm)


def chunks(flow: Dataflow, inputs: Any, name: str = "inputs") -> list[tuple[Any, ...]]:
    """Inputs of any batch size cut into batches of the traced size, or a list of batches as it is.

    Raises `ValueError` where shapes or dtypes do not fit the traced ones; `name` is the argument's.
    """
    if isinstance(inputs, list):
        if not inputs:
            raise ValueError(f"{name} is an empty list; pass at least one batch")
        return [part for item in inputs for part in chunks(flow, item, name)]
    parts = read_inputs(inputs, name)
    traced = [flow.graph.input_meta[n] for n in flow.graph.inputs if n in flow.graph.input_meta]
    shapes = [shape for shape, _ in traced]
    given = [tuple(x.shape) for x in parts if isinstance(x, Tensor)]
    if len(given) != len(shapes):
        raise ValueError(
            f"{name}: {len(given)} tensors came, the model takes {len(shapes)}; write several "
            "inputs as a tuple (a list is a list of batches)"
        )
    for x, (_, dtype) in zip((x for x in parts if isinstance(x, Tensor)), traced, strict=True):
        if x.dtype != dtype:
            raise ValueError(
                f"{name}: a tensor has dtype {x.dtype}, the traced one {dtype}; write x.to({dtype})"
            )
    if given == shapes:
        return [parts]
    size = shapes[0][0] if shapes and shapes[0] else 0
    same = all(g[1:] == s[1:] and len(g) == len(s) for g, s in zip(given, shapes, strict=True))
    if not same or not size or any(g[0] != given[0][0] or g[0] % size for g in given):
        raise ValueError(
            f"{name} of shapes {given} do not cut into batches of the traced shapes {shapes}; "
            f"pass a multiple of {size} samples, or a list of batches"
        )
    return [
        tuple(x[i : i + size] if isinstance(x, Tensor) else x for x in parts)
        for i in range(0, given[0][0], size)
    ]


def measure_all(
    flow: Dataflow, batches: Sequence[tuple[Any, ...]], assignment: Assignment, norm: str,
    references: Sequence[Tensor] | None = None,
) -> Measurement:  # fmt: skip
    """One measurement over several batches, of which `references` are the float64 outputs."""
    known: Sequence[Tensor | None] = references or [None] * len(batches)
    runs = (
        measure(flow, batch, assignment, norm, reference)
        for batch, reference in zip(batches, known, strict=True)
    )
    return functools.reduce(Measurement.join, runs)
