"""Which linear piece every gate has selected."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from torchsheaf.cochain import coordinates


@dataclass(frozen=True)
class ActivationPattern(Mapping[str, Tensor]):
    """Selections per gate operation, batch first; read off a cochain or set by hand.

    For a coordinatewise gate the selection is its slope (1 where a ReLU is active), and may be
    fractional, as the Filippov velocity on a sliding surface needs; for max-pooling it is the
    index of the chosen input. `edges` maps gate operations to the edge they belong to.
    """

    selections: Mapping[str, Tensor]
    edges: Mapping[str, str]

    def __getitem__(self, operation: str) -> Tensor:
        return self.selections[operation]

    def __iter__(self) -> Iterator[str]:
        return iter(self.selections)

    def __len__(self) -> int:
        return len(self.selections)

    def equal(self, other: "ActivationPattern") -> Tensor:
        """Per sample, whether two patterns select the same pieces, `(batch,)`."""
        if not self:
            raise ValueError("this sheaf has no gates, so there is no pattern to compare")
        return torch.stack([coordinates(self[k] == other[k]).all(1) for k in self]).all(0)
