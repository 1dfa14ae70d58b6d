"""Numbers that a caller writes: checked where they come in, refused by name."""

import math
from numbers import Integral

from torchsheaf.boundary.pin import is_number


def check_positive(name: str, given: object, write: str = "a positive number") -> None:
    """Raise ValueError unless `given` is a finite real number > 0; `write` says what to write."""
    if not is_number(given) or not 0 < given < math.inf:  # type: ignore[operator]
        raise ValueError(f"{name} is {given!r}; write {write}")


def check_whole(name: str, given: object, least: int = 1, other: str = "") -> None:
    """Raise ValueError unless `given` is a whole number ≥ `least`; `other` names alternatives."""
    if isinstance(given, bool) or not isinstance(given, Integral) or given < least:
        raise ValueError(f"{name} is {given!r}; write a whole number, {least} or more{other}")
