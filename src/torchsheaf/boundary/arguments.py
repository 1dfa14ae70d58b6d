"""Numbers that a caller writes: checked where they come in, refused by name."""

import math
from numbers import Integral

import torch

from torchsheaf.boundary.pin import is_number


def check_positive(name: str, given: object, write: str = "a positive number") -> None:
    """Raise ValueError unless `given` is a finite real number > 0; `write` says what to write."""
    if not is_number(given) or not 0 < given < math.inf:  # type: ignore[operator]
        raise ValueError(f"{name} is {given!r}; write {write}")


def check_not_negative(name: str, given: object) -> None:
    """Raise ValueError unless `given` is a finite real number ≥ 0."""
    if not is_number(given) or given != 0:
        check_positive(name, given, "a number ≥ 0")


def check_whole(name: str, given: object, least: int = 1, other: str = "") -> None:
    """Raise ValueError unless `given` is a whole number ≥ `least`; `other` names alternatives."""
    if isinstance(given, bool) or not isinstance(given, Integral) or given < least:
        raise ValueError(f"{name} is {given!r}; write a whole number, {least} or more{other}")


def check_generator(given: object) -> None:
    """Raise TypeError unless `given` is a `torch.Generator` or None."""
    if not isinstance(given, torch.Generator | None):
        seed = given if isinstance(given, Integral) else 0
        raise TypeError(f"generator is {given!r}; write torch.Generator().manual_seed({seed})")
