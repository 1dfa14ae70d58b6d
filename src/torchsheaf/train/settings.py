"""Settings of a rule, a loss or an optimiser as plain data, compared by value."""

import hashlib
from collections.abc import Mapping, Set
from dataclasses import fields, is_dataclass
from functools import partial
from numbers import Complex, Integral, Real
from typing import Any

import torch
from torch import Tensor


def settings(chosen: object) -> dict[str, object]:
    """The shown fields of a dataclass as plain data; those with `repr=False` are its memory.

    Empty for what is no dataclass: nothing is known of its settings. Numbers of every library are
    those of Python. A tensor is its dtype, shape and a digest of its values; a function is its
    name, as its code cannot be compared; of any other object only the type is kept.

    >>> from torchsheaf.train.losses import HuberLoss
    >>> settings(HuberLoss(0.5))
    {'class': 'HuberLoss', 'delta': 0.5, 'name': 'huber', 'curvature': 1.0}
    """
    if not is_dataclass(chosen) or isinstance(chosen, type):
        return {}
    shown = {f.name: plain(getattr(chosen, f.name)) for f in fields(chosen) if f.repr}
    return {"class": type(chosen).__qualname__, **shown}


def plain(value: Any) -> Any:
    """A value in types that a checkpoint holds, equal for equal values."""
    if value is None or isinstance(value, bool | str):
        return str(value) if isinstance(value, str) else value
    if isinstance(value, Tensor):
        return _digest(value) if value.ndim else plain(value.item())
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    if isinstance(value, Complex):
        return [float(value.real), float(value.imag)]
    if is_dataclass(value) and not isinstance(value, type):
        return settings(value)
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, Set):
        return sorted((plain(v) for v in value), key=str)
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, partial):
        return [plain(value.func), plain(value.args), plain(value.keywords)]
    if hasattr(value, "__array__"):  # of NumPy
        return plain(torch.as_tensor(value))
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{named.__module__}.{named.__qualname__}"


def difference(saved: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[str, str] | None:
    """The first setting that differs, as "name=value" of both; None where none does.

    What only one of the two has came with another version of the library, and is no difference.
    """
    for name, mine in now.items():
        if name in saved and not _same(saved[name], mine):
            return f"{name}={saved[name]!r}", f"{name}={mine!r}"
    return None


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[k], other[k]) for k in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other or (one != one and other != other))


def _digest(tensor: Tensor) -> str:
    held = tensor.detach().cpu().contiguous()
    values = held.reshape(-1).view(torch.uint8).numpy().tobytes()
    kind = str(held.dtype).removeprefix("torch.")
    return f"{kind} {tuple(held.shape)}, SHA-256 {hashlib.sha256(values).hexdigest()}"
