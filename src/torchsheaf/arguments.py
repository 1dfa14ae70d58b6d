"""What a caller writes: numbers, generators, inputs, refused by name; what stands for none."""

import math
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor


def number(name: str, given: object, fits: Callable[[float], bool], write: str) -> float:
    """A number of Python, NumPy or a tensor without axes as a float.

    Raises ValueError naming the argument, what came and what to write (`write`) for NaN, truth
    values and what is no number, and where it does not fit.
    """
    plain, found = _plain(given), math.nan
    if isinstance(plain, Real):
        try:
            found = float(plain)
        except OverflowError:  # an integer past the largest float
            found = math.inf
    if math.isnan(found) or not fits(found):
        raise ValueError(f"{name} is {given!r}; write {write}")
    return found


def finite_number(name: str, given: object, write: str = "a finite number") -> float:
    """As `number`, of either sign."""
    return number(name, given, math.isfinite, write)


def positive_number(name: str, given: object, write: str = "a positive number") -> float:
    """As `number`, finite and above 0."""
    return number(name, given, lambda v: 0 < v < math.inf, write)


def nonnegative_number(name: str, given: object, write: str = "a number ≥ 0") -> float:
    """As `number`, finite and 0 or more."""
    return number(name, given, lambda v: 0 <= v < math.inf, write)


def whole_number(name: str, given: object, least: int = 1, otherwise: str = "") -> int:
    """A whole number of at least `least`, 1e3 included, as an int.

    Raises ValueError that says so, and `otherwise`.
    """
    plain = _plain(given)
    whole = isinstance(plain, Integral) or (
        isinstance(plain, Real) and math.isfinite(plain) and plain == math.floor(plain)
    )
    if not whole or plain < least:
        wanted = f"a whole number, {least} or more{otherwise}"
        raise ValueError(f"{name} is {given!r}; write {wanted}")
    return int(plain)


def tolerance_of(dtype: torch.dtype, *, float64: float, float32: float) -> float:
    """The tolerance where none was given: what float64 can keep, or what the shorter types can."""
    return float64 if dtype == torch.float64 else float32


def input_tuple(name: str, given: object) -> tuple[Any, ...]:
    """A model's inputs, one tensor or a tuple or list of them, as a tuple.

    Raises TypeError naming the argument for anything else and for none; what is in the tuple is
    for the caller to look at.
    """
    several = (given,) if isinstance(given, Tensor) else given
    if not isinstance(several, tuple | list) or not several:
        raise TypeError(f"{name} is {kind(given)}; write {INPUTS}")
    return tuple(several)


INPUTS = "a tensor (batch, *shape), or a tuple of them for several inputs"


def kind(given: object) -> str:
    """What came, in words: its type, and how many of a tuple or list."""
    if isinstance(given, tuple | list):
        name = type(given).__name__
        return f"{type_of(given)} of {len(given)}" if given else f"an empty {name}"
    return type_of(given)


def require_generator(given: object) -> None:
    """Raise TypeError unless `given` is a `torch.Generator` or None."""
    if not isinstance(given, torch.Generator | None):
        seed = int(given) if isinstance(given, Integral) else 0
        raise TypeError(f"generator is {given!r}; write torch.Generator().manual_seed({seed})")


def type_of(given: object) -> str:
    """The type of what came, with its article: "an Extension", "a list"."""
    name = type(given).__name__
    return f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"


def cochain_of(given: object) -> str:
    """The attribute to write where a cochain was meant and a result came that has one; or ""."""
    named = (f"its .{name}" for name in ("cochain", "final") if hasattr(given, name))
    return next(named, "")


def _plain(given: object) -> Any:
    """What a tensor without axes holds; None for a truth value, which counts nothing."""
    plain = given.item() if isinstance(given, Tensor) and given.ndim == 0 else given
    return None if isinstance(plain, bool) else plain
