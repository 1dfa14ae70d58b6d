"""The global random states that a training run may draw from, to be saved and put back."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor


def device_states(weights: Iterable[Tensor]) -> dict[str, Tensor]:
    """torch's random state on every CUDA device that holds a weight, by the device's name."""
    return {str(d): torch.cuda.get_rng_state(d) for d in _cards(weights)}


def restore_device_states(weights: Iterable[Tensor], states: Mapping[str, Tensor]) -> None:
    """Put back those of `device_states` whose device holds a weight now."""
    for device in _cards(weights):
        if str(device) in states:
            torch.cuda.set_rng_state(states[str(device)], device)


def _cards(weights: Iterable[Tensor]) -> list[torch.device]:
    found = dict.fromkeys(t.device for t in weights)
    return [d for d in found if d.type == "cuda"]
