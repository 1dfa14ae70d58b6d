"""What a plan costs beside the same model in one format; the error when there is no plan."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torchsheaf.outcome import ConvergenceError, Outcome
from torchsheaf.precision.assemble import sink_format
from torchsheaf.precision.dataflow import SINK, Dataflow
from torchsheaf.precision.execute import held_format, uniform
from torchsheaf.precision.formats import FORMATS
from torchsheaf.precision.measure import Measurement
from torchsheaf.precision.profile import Profile


class NoSection(ConvergenceError):
    """No assignment meets the budget; `reason` says which of the three ways it failed.

    reason: "empty stalk", "no consistent choice" or "budget". `measured` is the error of the most
    precise section, where one was run, and `reachable` the smallest budget that it is known to
    meet. `certificate` proves, where it is not None, that no section has a modelled mean-square
    error within the square of the budget.
    """

    def __init__(self, reason: str, text: str, measured: Measurement | None = None) -> None:
        # The text says what to do, better than the outcome's general advice would.
        RuntimeError.__init__(self, text)
        self.outcome = Outcome.STALLED
        self.result = measured
        self.reason = reason
        self.measured = measured
        self.reachable: float | None = None
        self.certificate: dict[str, Any] | None = None


@dataclass(frozen=True)
class Cost:
    """Cost of the plan in its profile, and of the same model in uniform fp32."""

    value: float
    operations: float
    casts: float
    fp32: float
    unit: str
    profile: str

    @property
    def relative(self) -> float:
        """Cost relative to uniform fp32."""
        return self.value / self.fp32 if self.fp32 else 1.0

    def __float__(self) -> float:
        return self.value


def price_assignment(
    flow: Dataflow, assignment: Mapping[str, str], profile: Profile
) -> tuple[float, float]:
    """(operations, casts) of any assignment by call, in the units of the profile.

    A value that several operations read in one format is converted once.
    """
    floating = set(flow.source)
    operations = sum(
        profile.operation(flow.calls[c], FORMATS[f], flow.shapes, floating)
        for c, f in assignment.items()
    )
    made: dict[tuple[str, str], float] = {}
    for e in flow.edge_list(constant=False):
        held = held_format(flow, assignment, e.source)
        wanted = sink_format(flow) if e.consumer == SINK else FORMATS[assignment[e.consumer]]
        if e.consumer == SINK and held.bits > wanted.bits:
            continue
        size = math.prod(flow.shapes[e.operand])
        made[e.operand, wanted.name] = profile.cast(held, wanted, size)
    return operations, sum(made.values())


def price(flow: Dataflow, assignment: Mapping[str, str], profile: Profile) -> Cost:
    """The cost of an assignment by call, beside uniform fp32."""
    operations, casts = price_assignment(flow, assignment, profile)
    plain = sum(price_assignment(flow, uniform(flow, "fp32"), profile))
    return Cost(operations + casts, operations, casts, plain, profile.unit, profile.name)
