"""Class numbers, as every diagnosis of a classifier reads them."""

import torch
from torch import Tensor

from torchsheaf.cochain import is_finite


def are_classes(y: Tensor, output: Tensor) -> bool:
    """Whether labels are class numbers `(batch,)` for an output `(batch, classes)`."""
    return not (y.is_floating_point() or y.is_complex()) and y.ndim == 1 and output.ndim == 2


def class_numbers(name: str, y: Tensor, output: Tensor) -> Tensor:
    """Labels `(batch,)` as int64 beside the output `(batch, classes)`; truth values are 0 and 1.

    An output of one number per sample, log-odds or a probability, has the classes 0 and 1. Raises
    TypeError or ValueError naming the argument when it is no tensor of one class per sample.
    """
    require_labels(name, y, len(output))
    if output.ndim != 2:
        raise ValueError(f"classes need outputs (batch, classes); got {tuple(output.shape)}")
    if not are_classes(y, output):
        raise ValueError(
            f"{name} is {y.dtype} of shape {tuple(y.shape)}; write class numbers ({len(output)},) "
            "of an integer type"
        )
    numbers = y.to(device=output.device, dtype=torch.int64)
    classes, least, most = max(2, output.shape[1]), int(numbers.min()), int(numbers.max())
    if least < 0 or most >= classes:
        raise ValueError(
            f"{name} has class numbers {least} … {most}; the output has {classes} classes, "
            f"numbered 0 … {classes - 1}"
        )
    return numbers


def require_finite_labels(values: Tensor) -> None:
    """Raise ValueError for wanted values that are NaN or infinite."""
    if not is_finite(values):
        raise ValueError("y contains NaN or infinity; pass finite labels")


def require_labels(name: str, y: object, samples: int) -> None:
    """Raise TypeError or ValueError naming the argument when y is no tensor of one label each."""
    if not isinstance(y, Tensor):
        raise TypeError(f"{name} is a {type(y).__name__}; pass a tensor of labels, batch first")
    if y.ndim == 0 or len(y) != samples:
        raise ValueError(
            f"{name} has shape {tuple(y.shape)} for {samples} samples; write one label per sample"
        )
