"""Where every sample of an asynchronous run stands: its stage and all that it carries along."""

from dataclasses import dataclass, fields
from enum import IntEnum

import torch
from torch import Tensor


class Stage(IntEnum):
    """What a sample does with the next two sweeps."""

    GRADIENT = 0
    """The reverse sweep carries its forces: ∂E/∂u."""
    DESCENT = 1
    """One conjugate gradient step on the frozen model."""
    READY = 2
    """Its direction is good enough; it waits for a line search."""
    CHECK = 3
    """The reverse sweep carries its forces without substitution: ∂E/∂C, the test of arrival."""
    OVER = 4
    """Arrived, or unable to move."""


@dataclass
class Rows:
    """The samples in work, one row each.

    Where they are: C, M, E and its forces; the gates' states and the model frozen at them; the
    direction so far (`dc`, `dm`, with `slope` = φ′(0) along it) and its conjugate gradients.
    """

    index: Tensor
    stage: Tensor
    c: Tensor
    m: Tensor
    energy: Tensor
    on_c: Tensor
    on_m: Tensor
    gate_slope: Tensor
    gate_stuck: Tensor
    model_slope: Tensor
    model_scale: Tensor
    model_omega: Tensor
    dc: Tensor
    dm: Tensor
    r: Tensor
    p: Tensor
    rr: Tensor
    goal: Tensor
    slope: Tensor
    steps: Tensor
    quiet: Tensor
    tested: Tensor
    least: Tensor
    lowest: Tensor
    failed: Tensor

    def take(self, keep: Tensor) -> "Rows":
        """The chosen rows, by number."""
        return Rows(*(getattr(self, f.name).index_select(0, keep) for f in fields(self)))

    def at(self, stage: Stage) -> Tensor:
        """Which samples are at a stage."""
        return self.stage == stage

    def send(self, which: Tensor, stage: Stage) -> None:
        """Put the samples of a mask at a stage."""
        self.stage.masked_fill_(which, int(stage))

    def counts(self) -> list[int]:
        """How many samples are at each stage."""
        return torch.bincount(self.stage, minlength=len(Stage)).tolist()
