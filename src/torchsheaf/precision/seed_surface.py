"""`SheafPrecisionOptimizer`: the seed's names over the plan, with true meanings.

h0_dim counts the uniform formats that, run on the given input, stay within the target. h1_dim
counts the operations for which no 16-bit choice extends to a section within the target. Neither is
a dimension of a vector space; `Sections` and `Obstruction` have those.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from torchsheaf.precision.arguments import error_budget, read_inputs, read_model, runnable
from torchsheaf.precision.autocast import autocast_assignment
from torchsheaf.precision.curvature import measure_curvature
from torchsheaf.precision.dataflow import Dataflow
from torchsheaf.precision.execute import uniform
from torchsheaf.precision.formats import FORMATS
from torchsheaf.precision.measure import measure
from torchsheaf.precision.memory import count_memory
from torchsheaf.precision.plan import Plan, plan
from torchsheaf.precision.price import NoSection, price
from torchsheaf.precision.problem import mean_square
from torchsheaf.precision.refute import Refutation, refute

UNIFORM = ("fp64", "fp32", "bf16", "fp16")


@dataclass(frozen=True)
class LayerPrecision:
    """One operation's format: what it is, whether fewer bits are excluded, and why.

    curvature: measured second derivative at this input. obstruction: True where it is proved, in
    the stated error model, that no 16-bit format of this operation extends to a section.
    """

    precision_bits: int
    dtype: torch.dtype
    curvature: float
    obstruction: bool
    reason: str
    format: str


@dataclass(frozen=True)
class PrecisionResult:
    """The answer of `analyze`. impossibility_proof is None unless every uniform format is refuted.

    uniform_errors: largest error of every uniform format that could be run, inf where it overflows.
    plan: None where no section meets the target; then `failure` says why.
    """

    h0_dim: int
    h1_dim: int
    precision_map: Mapping[str, LayerPrecision]
    total_memory_mb: float
    impossibility_proof: str | None
    uniform_errors: Mapping[str, float]
    refutations: tuple[Refutation, ...]
    plan: Plan | None
    failure: str


class SheafPrecisionOptimizer:
    """The seed's interface: a model and a target accuracy (largest output error, absolute).

    >>> net = nn.Sequential(nn.Linear(6, 6), nn.Tanh())
    >>> result = SheafPrecisionOptimizer(net, target_accuracy=1e-2).analyze(torch.randn(2, 6))
    >>> result.h0_dim > 0 and result.impossibility_proof is None
    True
    """

    def __init__(self, model: nn.Module, target_accuracy: float = 1e-3, **options: Any) -> None:
        self.model = model
        self.target_accuracy = error_budget(target_accuracy, "target_accuracy")
        self.options: dict[str, Any] = {"formats": ("fp64", "fp32", "bf16", "fp16"), **options}

    @torch.inference_mode(False)
    def analyze(self, sample_input: Any, model: nn.Module | None = None) -> PrecisionResult:
        """Plan the model (or another one, which replaces it) on one input.

        Every call traces anew; nothing is kept from an earlier call. A module in training mode is
        read in evaluation mode.
        """
        self.model = model if model is not None else self.model
        modules = self.model.modules() if isinstance(self.model, nn.Module) else ()
        training = [m for m in modules if m.training]
        try:
            for m in training:
                m.training = False
            flow = read_model(self.model, sample_input)
        finally:
            for m in training:
                m.training = True
        inputs = runnable(flow, sample_input)
        errors = {f: uniform_error(flow, inputs, f) for f in UNIFORM}
        works = [f for f, e in errors.items() if e <= self.target_accuracy]
        proofs: tuple[Refutation, ...] = ()
        if not works:
            proofs = tuple(refute(flow.graph, inputs, f, self.target_accuracy) for f in UNIFORM)
        try:
            found: Plan | None = plan(flow.graph, inputs, self.target_accuracy, **self.options)
            failure = ""
        except NoSection as reason:
            found, failure = None, str(reason)
        layers = layer_map(flow, inputs, found)
        memory = count_memory(flow, found.by_call if found else uniform(flow, "fp64"))
        return PrecisionResult(
            len(works), sum(v.obstruction for v in layers.values()), layers, memory.total / 2**20,
            write_proof(proofs, self.target_accuracy), errors, proofs, found, failure,
        )  # fmt: skip

    def compare_with_amp(self, sample_input: Any, form: str = "fp16") -> dict[str, float]:
        """Memory, cost and error of the plan beside autocast's list, counted the same way."""
        result = self.analyze(sample_input)
        if result.plan is None:
            raise NoSection("budget", result.failure)
        p = result.plan
        inputs = read_inputs(sample_input)
        amp = autocast_assignment(p.flow, form)
        mine, theirs = count_memory(p.flow, p.by_call), count_memory(p.flow, amp)
        # Autocast keeps the weights in float32 and casts them at every call.
        amp_total = theirs.weights_fp32 + theirs.activations
        return {
            "sheaf_memory_mb": mine.total / 2**20,
            "amp_memory_mb": amp_total / 2**20,
            "fp32_memory_mb": (mine.weights_fp32 + mine.activations_fp32) / 2**20,
            "sheaf_vs_amp_improvement": 1 - mine.total / amp_total if amp_total else 0.0,
            "sheaf_error": p.measured.largest,
            "amp_error": measure(p.flow, inputs, amp, "max").largest,
            "sheaf_cost": p.cost.value,
            "amp_cost": price(p.flow, amp, p.profile).value,
        }


def uniform_error(flow: Dataflow, inputs: tuple[Any, ...], form: str) -> float:
    """Largest error of the uniform run, inf where it overflows or has no kernel."""
    try:
        return measure(flow, inputs, uniform(flow, form), "max").largest
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, NotImplementedError):
        return math.inf


def layer_map(
    flow: Dataflow, inputs: tuple[Any, ...], found: Plan | None
) -> dict[str, LayerPrecision]:
    """One entry per operation, by label."""
    if found is None:
        return {}
    curvature = measure_curvature(flow, inputs)
    blame = {s.operation: s for s in found.blame()}
    forced = forced_wide(found)
    layers = {}
    for c, label in flow.labels.items():
        f = FORMATS[found.assignment[label]]
        share = blame[label].share
        reason = (
            f"{f.name}: causes {share:.1%} of the predicted error of {found.predicted.value:.2g}"
        )
        if label in forced:
            reason += f"; {forced[label]}"
        layers[label] = LayerPrecision(
            8 * f.bytes, f.storage, curvature[c], label in forced, reason, f.name
        )
    return layers


def forced_wide(found: Plan) -> dict[str, str]:
    """Operations that no section within the budget gives 16 bits, each with its reason.

    Sound in the error model: every other operation is taken at its most precise format and casts
    as free, and the budget is still exceeded; or range leaves no 16-bit format.
    """
    row, problem = found.problem.rows[0], found.problem
    # The mean square is at most the square of the budget in every norm that bounds the rms.
    limit = mean_square(found.budget) if found.norm != "relative" else row.limit
    least = {
        v: min((row.unary.get(v, {}).get(f, 0.0) for f in s), default=0.0)
        for v, s in problem.stalks.items()
    }
    total = sum(least.values())
    forced = {}
    for v in found.assignment:
        narrow = [f for f in problem.stalks[v] if FORMATS[f].bits <= 11 and f != "tf32"]
        if not narrow:
            forced[v] = "no 16-bit format holds its range"
            continue
        best = min(row.unary.get(v, {}).get(f, 0.0) for f in narrow)
        if total - least[v] + best > limit:
            forced[v] = (
                f"in 16 bits it alone would cause {math.sqrt(best):.2g} rms of "
                f"{math.sqrt(limit):.2g} allowed"
            )
    return forced


def write_proof(proofs: tuple[Refutation, ...], target: float) -> str | None:
    """Text only where every uniform format has a proof that was rechecked."""
    if not proofs or not all(r.refuted for r in proofs):
        return None
    lines = [f"No uniform format among {', '.join(r.format for r in proofs)} meets {target:g}:"]
    for r in proofs:
        lines.append(f"{r.format}: {r.proofs[0].text} (excludes {r.proofs[0].scope})")
    return "\n".join(lines)
