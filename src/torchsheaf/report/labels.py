"""What it means to hold a label: classes or values → the output that is wanted."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from torchsheaf.diagnose.classes import (
    are_classes,
    class_numbers,
    require_finite_labels,
    require_labels,
)

HOLDS = ("auto", "one-hot", "class mean")


@dataclass(frozen=True, eq=False)
class Labels:
    """Labels with the output they ask for.

    `target` is `(batch, *output shape)`; `is_classes` says whether `y` holds class numbers; `how`
    is a sentence for readers.
    """

    y: Tensor
    target: Tensor
    is_classes: bool
    how: str

    def wrong(self, output: Tensor) -> Tensor:
        """Which samples the model gets wrong, `(batch,)`; none for values."""
        if not self.is_classes:
            return torch.zeros(len(self.y), dtype=torch.bool)
        return (output.argmax(1) != self.y).cpu()


def read_labels(y: Tensor, output: Tensor, hold: str = "auto") -> Labels:
    """The output that labels ask for.

    Class numbers `(batch,)` for an output `(batch, classes)` become one-hot vectors, or with
    "class mean" the model's mean output over the samples of that class which it gets right;
    "auto" takes one-hot where the outputs are on that scale, between −1 and 2 for 95% of them.
    Values must have the output's shape (a missing last axis of length 1 is added).

    Raises ValueError or TypeError naming y.
    """
    require_hold(hold)
    require_labels("y", y, len(output))
    if are_classes(y, output) and output.shape[1] > 1:
        return _classes(class_numbers("y", y, output), output, hold)
    values = y.to(output)
    if values.shape == output.shape[:-1] and output.shape[-1] == 1:
        values = values.unsqueeze(-1)
    if values.shape != output.shape:
        raise ValueError(
            f"y has shape {tuple(y.shape)} and type {y.dtype}; write {tuple(output.shape)} values, "
            f"or {len(output)} class numbers of an integer type"
        )
    require_finite_labels(values)
    return Labels(values, values, False, "The output is held at the wanted value.")


def require_hold(hold: str) -> None:
    """Raise ValueError for a way to hold labels that there is not."""
    if hold not in HOLDS:
        raise ValueError(f"hold_labels is {hold!r}; write one of {', '.join(map(repr, HOLDS))}")


def _classes(y: Tensor, output: Tensor, hold: str) -> Labels:
    classes = output.shape[1]
    one_hot = functional.one_hot(y, classes).to(output)
    usual = float(((output >= -1) & (output <= 2)).double().mean()) >= 0.95
    if hold == "one-hot" or (hold == "auto" and usual):
        how = "The output is held at the label as a one-hot vector: 1 for its class, 0 elsewhere."
        return Labels(y, one_hot, True, how)
    right = output.argmax(1) == y
    means = []
    for k in range(classes):
        member = right & (y == k)
        member = member if bool(member.any()) else y == k
        # A class without samples is never asked for.
        means.append(output[member].mean(0) if bool(member.any()) else output.new_zeros(classes))
    how = (
        "The outputs are scores on a scale of their own, far from 0 and 1. So each sample's output "
        "is held at what this model typically answers for the label: its mean output over the "
        "samples of that class that it gets right."
    )
    return Labels(y, torch.stack(means)[y], True, how)
