"""What a flow leaves behind: energies, chosen states, switches, the end."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from torchsheaf.boundary import Problem
from torchsheaf.cochain import Cochain
from torchsheaf.flow.events import Events
from torchsheaf.outcome import Outcome


@dataclass(frozen=True, eq=False, repr=False)
class Trajectory:
    """A relaxation of a held problem, T recorded times of a batch.

    `times` (T,); `energy` (T, batch) is E; `edge_energy[e]` (T, batch) is ½ w_e ‖r_e‖², soft pins
    included; `states[v]` (T, batch, *shape) where recorded (chosen coordinates: (T, batch, k)).
    `start_states` (batch, walls) are the gate states just after t = 0 and `events` the switches
    since. `stopped` (batch,) is the time at which a sample was found stationary (∞: it was not),
    after which it stands still; `stationarity` (batch,) is dist(0, ∂E) at the end. `steps` counts
    what `max_steps` limits: steps (Euler), linear pieces of the sample that has most (exact) or
    accepted steps (ode).
    """

    problem: Problem
    method: str
    alpha: float
    times: Tensor
    energy: Tensor
    edge_energy: Mapping[str, Tensor]
    states: Mapping[str, Tensor]
    start_states: Tensor
    events: Events
    final: Cochain
    stopped: Tensor
    stationarity: Tensor
    steps: int
    outcome: Outcome
    where: str = ""

    def __repr__(self) -> str:
        begin, end = (float(self.energy[i].sum()) for i in (0, -1))
        return (
            f"Trajectory({self.method}: {self.outcome.name.lower()} after {self.steps} steps; "
            f"{len(self.times)} times up to {float(self.times[-1]):.4g}, "
            f"energy {begin:.6g} to {end:.6g})"
        )

    @property
    def output(self) -> Tensor:
        """Final value of the output vertex; ValueError where there are several (`.final[name]`)."""
        return self.final[self.problem.sheaf.only_output(".final")]

    def states_of_walls(self, sample: int = 0) -> tuple[Tensor, Tensor]:
        """The gate states of a sample over time: start of each band `(m,)`, states `(m, walls)`.

        The states are those of `Events`: 0 off, 1 sliding, 2 on for a ReLU.
        """
        events = self.events.of_sample(sample)
        states = [self.start_states[sample].cpu().clone()]
        starts = [0.0]
        for i in range(len(events)):
            after = states[-1].clone()
            after[events.wall[i]] = events.after[i]
            if float(events.time[i]) == starts[-1]:
                states[-1] = after
                continue
            starts.append(float(events.time[i]))
            states.append(after)
        return torch.tensor(starts, dtype=torch.float64), torch.stack(states)
