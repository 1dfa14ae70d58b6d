"""The samples of a synchronous run that are still moving."""

from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

from torchsheaf.harmonic.kinks import Frozen
from torchsheaf.harmonic.reduction import Reduction


@dataclass
class Active:
    """Who they are (`index`), where they are (`c`, `m`), and what each carries from step to step.

    `turn`: which choice at tied windows is tried; `radius` of its trust region; `curved`: whether
    its last step was; `least` gradient, `lowest` energy and `failed` steps without progress; gates'
    `state`, whether it was `quiet` in the last step, and what is `frozen` on kinks.
    """

    index: Tensor
    reduction: Reduction
    c: Tensor
    m: Tensor
    turn: Tensor
    radius: Tensor
    curved: Tensor
    least: Tensor
    lowest: Tensor
    failed: Tensor
    state: Tensor | None = None
    quiet: Tensor | None = None
    frozen: Frozen | None = None

    def samples(self, keep: Tensor) -> "Active":
        """Those of a mask."""

        def pick(value: Any) -> Any:
            whole = isinstance(value, Reduction | Frozen)
            return value.samples(keep) if whole else None if value is None else value[keep]

        return Active(*(pick(getattr(self, f.name)) for f in fields(self)))
