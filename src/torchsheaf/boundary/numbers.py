"""Numbers that a caller gives: whole, positive or finite, and refused by their argument's name."""

import math
from numbers import Integral
from typing import Any

from torch import Tensor

from torchsheaf.boundary.pin import is_number


def whole_number(name: str, given: object, least: int = 1) -> int:
    """The given whole number, of Python, NumPy or a scalar tensor.

    Raises ValueError for anything else, truth values included, and below `least`.
    """
    value = _scalar(given)
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise ValueError(f"{name} is {given!r}; write a whole number, {least} or more")
    return int(value)


def finite_number(name: str, given: object) -> float:
    """The given number as a float. Raises ValueError for NaN, infinity and what is no number."""
    value = _scalar(given)
    if not is_number(value) or not math.isfinite(value):
        raise ValueError(f"{name} is {given!r}; write a finite number")
    return float(value)


def positive_number(name: str, given: object) -> float:
    """The given number as a float. Raises ValueError for 0 or less, and as `finite_number`."""
    value = _scalar(given)
    if not is_number(value) or not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} is {given!r}; write a positive number")
    return float(value)


def _scalar(given: object) -> Any:
    return given.item() if isinstance(given, Tensor) and given.ndim == 0 else given
