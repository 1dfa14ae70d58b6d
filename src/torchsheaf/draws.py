"""Random numbers from a generator on any device, for tensors on any other.

torch draws only where the generator is. Here numbers are drawn there and moved: the same generator
gives the same numbers whichever device the model is on.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def standard_normal(
    size: Sequence[int],
    generator: torch.Generator | None,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Independent standard normal numbers of shape `size`; None draws from torch's own source.

    >>> seeded = torch.Generator().manual_seed(0)
    >>> standard_normal((2, 3), seeded, torch.float64).shape == (2, 3)
    True
    """
    place = source_device(generator)
    return torch.randn(tuple(size), generator=generator, dtype=dtype, device=place).to(device)


def random_signs(like: Tensor, generator: torch.Generator) -> Tensor:
    """±1 with equal chances, as many as `like` has entries, of its dtype and on its device."""
    drawn = random_integers(2, like.shape, generator)
    return (drawn * 2 - 1).to(device=like.device, dtype=like.dtype)


def random_integers(high: int, size: Sequence[int], generator: torch.Generator) -> Tensor:
    """Integers 0, …, high − 1 with equal chances, of shape `size`, on the CPU."""
    place = source_device(generator)
    return torch.randint(0, high, tuple(size), generator=generator, device=place).cpu()


def random_order(count: int, generator: torch.Generator | None) -> Tensor:
    """A permutation of 0, …, count − 1, on the CPU: the index of data that may lie anywhere."""
    return torch.randperm(count, generator=generator, device=source_device(generator)).cpu()


def source_device(generator: torch.Generator | None) -> torch.device:
    """Where a generator's numbers come from."""
    return torch.device("cpu") if generator is None else generator.device
