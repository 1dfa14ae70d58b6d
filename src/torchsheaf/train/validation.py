"""Loss and accuracy of the plain forward pass, batch by batch."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from torchsheaf.network.completeness import run
from torchsheaf.outcome import ConvergenceError, Outcome
from torchsheaf.train.batches import Input, tensors
from torchsheaf.train.losses import BinaryCrossEntropy, CrossEntropy
from torchsheaf.train.trainer import SheafTrainer

AT_ONCE = 1024
"""Samples per forward pass: memory does not grow with the validation set."""


@torch.no_grad()
def evaluate(trainer: SheafTrainer, x: Input, y: Tensor) -> dict[str, float]:
    """Mean `loss`, and `accuracy` where it makes sense, of the plain forward pass.

    The model's mode is left alone: the sheaf was read in that mode, and dropout and batch
    statistics were refused then. Cost: a forward pass, of at most 1,024 samples at a time.
    """
    return evaluate_all(trainer, [(x, y)])


@torch.no_grad()
def evaluate_all(trainer: SheafTrainer, pairs: Iterable[tuple[Input, Tensor]]) -> dict[str, float]:
    """As `evaluate`, over the samples of all pairs (x, y)."""
    sums: dict[str, float] = {}
    count = 0
    for x, y in pairs:
        xs, y = tensors(x, y)
        for start in range(0, y.shape[0], AT_ONCE):
            cut = slice(start, start + AT_ONCE)
            z = trainer.forward(tuple(one[cut] for one in xs))
            for name, value in _sums(trainer, z, y[cut]).items():
                sums[name] = sums.get(name, 0.0) + value
        count += y.shape[0]
    return {name: total / count for name, total in sums.items()}


def _sums(trainer: SheafTrainer, z: Tensor, y: Tensor) -> dict[str, float]:
    target = trainer.loss.target(z, y)
    out = {"loss": float(trainer.loss.potential(z, target).double().sum())}
    if isinstance(trainer.loss, CrossEntropy):
        out["accuracy"] = float((z.argmax(1) == target.argmax(1)).sum())
    elif isinstance(trainer.loss, BinaryCrossEntropy):
        right = (z > 0) == (target > 0.5)
        out["accuracy"] = float(right.double().mean()) * y.shape[0]
    return out


def validation_record(
    trainer: SheafTrainer, pairs: Iterable[tuple[Input, Tensor]]
) -> dict[str, float]:
    """What an epoch's record holds of it; `ConvergenceError` for a loss that is not finite."""
    found = evaluate_all(trainer, pairs)
    loss = found.pop("loss")
    if not math.isfinite(loss):
        raise ConvergenceError(
            Outcome.NONFINITE, f"the validation loss is {loss}; lower the learning rate"
        )
    return {"validation_loss": loss, **found}


def try_validation(trainer: SheafTrainer, x: Input, y: Tensor) -> None:
    """Validate once before the first step: on two samples, or on all where those do not fit."""
    xs, y = tensors(x, y)

    def attempt(given: tuple[Tensor, ...], wanted: Tensor) -> None:
        trainer.sheaf(given)  # refuses a mode in which a forward pass would change buffers
        run(trainer.model, given)  # its failure says what it was given
        evaluate(trainer, given, wanted)

    try:
        attempt(tuple(one[:2] for one in xs), y[:2])
    except torch.OutOfMemoryError:
        raise
    except (ValueError, RuntimeError):
        attempt(xs, y)
