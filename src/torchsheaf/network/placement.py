"""Where a model's weights are, and that what comes beside them is there too."""

from collections.abc import Iterable

import torch
from torch import Tensor


def placement(weights: Iterable[Tensor]) -> torch.device | None:
    """The device that all of these tensors are on; None for several, or where there is none."""
    devices = {t.device for t in weights}
    return devices.pop() if len(devices) == 1 else None


def require_beside(
    name: str, given: Tensor, device: torch.device | None, owner: str, write: str | None = None
) -> None:
    """Raise ValueError unless a tensor is on this device (None: no device is asked for).

    The message names both devices and what to write: `name` is the argument, `owner` whose device
    it should be on.
    """
    if device is not None and given.device != device:
        write = write or f"x.to({str(device)!r})"
        raise ValueError(f"{name} is on {given.device}, {owner} on {device}; write {write}")
