"""Gate switches along a flow: when, in which sample, at which neuron, from and to which piece."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from torchsheaf.flow.walls import Walls


@dataclass(frozen=True)
class Event:
    """One switch. `before` and `after` are "off", "on", "sliding" for a gate with one breakpoint,
    otherwise "piece k" or "wall k"."""

    time: float
    sample: int
    vertex: str
    neuron: int
    before: str
    after: str


@dataclass(frozen=True, eq=False, repr=False)
class Events:
    """All switches of a flow, sorted by time.

    Parallel tensors `(events,)`: `time`, `sample`, `wall` (which switching coordinate, see
    `walls.vertices` and `walls.neurons`), `before` and `after`. A state is 2k on the piece above
    k breakpoints and 2k + 1 while sliding on breakpoint k; for a ReLU 0 is off, 1 sliding, 2 on.
    """

    walls: Walls
    time: Tensor
    sample: Tensor
    wall: Tensor
    before: Tensor
    after: Tensor

    @classmethod
    def gather(cls, walls: Walls, parts: list[tuple[Tensor, ...]]) -> "Events":
        """Join the records of all rounds and sort them by time."""
        if not parts:
            none = torch.zeros(0, dtype=torch.int64)
            return cls(walls, torch.zeros(0, dtype=torch.float64), none, none, none, none)
        time, sample, wall, before, after = (
            torch.cat([p[i].cpu() for p in parts]) for i in range(5)
        )
        order = torch.argsort(time, stable=True)
        return cls(walls, time[order], sample[order], wall[order], before[order], after[order])

    def __repr__(self) -> str:
        if not len(self):
            return "Events(none)"
        first, last = float(self.time[0]), float(self.time[-1])
        return f"Events({len(self)} switches between t = {first:.4g} and {last:.4g})"

    def __len__(self) -> int:
        return self.time.numel()

    def __iter__(self) -> Iterator[Event]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, i: int) -> Event:
        w = int(self.wall[i])
        return Event(
            float(self.time[i]),
            int(self.sample[i]),
            self.walls.vertices[w],
            int(self.walls.neurons[w]),
            self.walls.label(w, int(self.before[i])),
            self.walls.label(w, int(self.after[i])),
        )

    def of_sample(self, sample: int) -> "Events":
        """The switches of one sample."""
        return self._where(self.sample == sample)

    @property
    def slides(self) -> "Events":
        """The switches that begin a slide."""
        return self._where(self.after % 2 == 1)

    def counts(self, batch: int) -> Tensor:
        """Number of switches per sample, `(batch,)`."""
        return torch.bincount(self.sample, minlength=batch)

    def _where(self, keep: Tensor) -> "Events":
        return Events(
            self.walls, self.time[keep], self.sample[keep], self.wall[keep],
            self.before[keep], self.after[keep],
        )  # fmt: skip
