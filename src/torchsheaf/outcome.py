"""How a computation can end, each ending with advice."""

from enum import Enum


class Outcome(Enum):
    """How a solver, a flow or a training run ended; `advice` says what to do about it."""

    SETTLED = "settled"
    COMPLETED = "completed"
    STEP_LIMIT = "step limit"
    STALLED = "stalled"
    NONFINITE = "non-finite"
    STOPPED_EARLY = "stopped early"

    @property
    def advice(self) -> str:
        """One sentence for the person who meets this ending."""
        return _ADVICE[self]

    @property
    def ok(self) -> bool:
        """Whether the result may be used without looking at its residual first."""
        return self in (Outcome.SETTLED, Outcome.COMPLETED, Outcome.STOPPED_EARLY)


_ADVICE = {
    Outcome.SETTLED: "the stationarity tolerance was met for every sample",
    Outcome.COMPLETED: "all that was asked for was done: every epoch, or the flow up to `until`",
    Outcome.STEP_LIMIT: (
        "the step limit came before the tolerance: raise the limit (`max_passes`, `max_basis`, "
        "`max_steps`), loosen `tol`, "
        "or start from a neighbouring solution"
    ),
    Outcome.STALLED: (
        "no step lowers the energy any further at this precision: use float64, "
        "loosen `tol`, or try another start"
    ),
    Outcome.NONFINITE: (
        "a NaN or infinity appeared: look at the scale of the weights, the input and the pins"
    ),
    Outcome.STOPPED_EARLY: "training ended early: `patience` epochs brought no gain",
}


class ConvergenceError(RuntimeError):
    """A numerical computation did not arrive; carries the outcome and the partial result.

    `advice` replaces the outcome's own where the computation knows better what to change.
    Pass `throw=False` to get the partial result instead of this error.
    """

    def __init__(
        self, outcome: Outcome, achieved: str, result: object = None, advice: str = ""
    ) -> None:
        super().__init__(f"{outcome.value}: {achieved}; {advice or outcome.advice}")
        self.outcome = outcome
        self.result = result
        self._said = (outcome, achieved, None, advice)

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        """Out of a worker process it comes without its result, which need not be picklable."""
        return type(self), self._said
