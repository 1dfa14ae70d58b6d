"""What every integrator of the heat equation offers."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from torchsheaf.boundary import Problem
from torchsheaf.cochain import Cochain
from torchsheaf.flow.recorder import Recorder
from torchsheaf.flow.walls import Walls
from torchsheaf.outcome import Outcome


@dataclass(frozen=True, eq=False)
class Task:
    """One integration: what flows, from where, how far, what is kept.

    ċ = −α ∇E (with `adjoint_output=False` the output edge pulls without its Jacobian) from `start`
    to time `until`, or until dist(0, ∂E) ≤ `tol` per sample; at most `max_steps` steps.
    """

    problem: Problem
    walls: Walls
    start: Cochain
    alpha: float
    until: float
    tol: float
    max_steps: int
    recorder: Recorder
    adjoint_output: bool = True
    progress: Callable[[float], None] = field(default=lambda fraction: None)


@dataclass(frozen=True, eq=False)
class Course:
    """What an integrator hands back; `events` are rows for `Events.gather`.

    `steps` counts what `Task.max_steps` limits; `advice` says what to do where it stopped short.
    """

    final: Cochain
    start_states: Tensor
    events: list[tuple[Tensor, ...]]
    stopped: Tensor
    steps: int
    outcome: Outcome
    where: str = ""
    advice: str = ""


RAISE = "raise max_steps or loosen tol"
"""What helps after a step limit, whatever the method."""


class FlowMethod(ABC):
    """Integrates the heat equation. Settings live in the object; it keeps no state."""

    name: str

    @abstractmethod
    def refuses(self, problem: Problem, walls: Walls, adjoint_output: bool) -> str | None:
        """Why this method cannot take the problem, or None."""

    @abstractmethod
    def integrate(self, task: Task) -> Course:
        """Run the flow, writing to the task's recorder on the way."""


def never(problem: Problem) -> Tensor:
    """`Course.stopped` before anything has: ∞ for every sample; times are float64 everywhere."""
    return problem.like.new_full((problem.batch,), torch.inf, dtype=torch.float64)


def jumps(problem: Problem) -> str | None:
    """Why no flow is defined: the map of a vertex jumps, and the energy with it. Else None."""
    found = problem.sheaf.network.jump
    return f"the map of vertex {found[0]!r} jumps at {found[1]:g}" if found else None
