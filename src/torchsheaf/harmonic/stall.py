"""When a sample cannot be moved any more: neither its energy nor its gradient gets smaller."""

import torch
from torch import Tensor

FLOOR = 1e-12
"""Relative fall of the energy that counts as progress."""


def note_progress(
    energy: Tensor, size: Tensor, lowest: Tensor, least: Tensor, failed: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Per sample the lowest energy and least gradient so far, and how often in a row neither fell.

    A step failed where E ≥ (1 − FLOOR) `lowest` and the gradient's norm, `size`, is above half of
    `least`: below rounding error both stay where they are, whatever the model of a step says.
    """
    better = (energy < (1 - FLOOR) * lowest) | (size <= 0.5 * least)
    failed = (failed + 1).masked_fill(better, 0)
    return torch.minimum(energy, lowest), torch.minimum(size, least), failed
