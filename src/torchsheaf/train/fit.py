"""The training loop: progress, validation on the forward pass, early stop, exact resume."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader

from torchsheaf.outcome import Outcome
from torchsheaf.train.checkpoint import load_checkpoint, save_checkpoint
from torchsheaf.train.trainer import SheafTrainer

Data = DataLoader[Any] | tuple[Tensor, Tensor]
Callback = Callable[["Progressed"], None]


@dataclass(frozen=True)
class Progressed:
    """What a callback sees after an epoch."""

    epoch: int
    trainer: SheafTrainer
    record: dict[str, float]


@dataclass
class History:
    """One record per epoch (`loss`, `validation_loss`, `accuracy`), and how the run ended."""

    records: list[dict[str, float]] = field(default_factory=list)
    outcome: Outcome = Outcome.STEP_LIMIT
    epochs: int = 0

    @property
    def losses(self) -> list[float]:
        """Mean training loss per epoch."""
        return [r["loss"] for r in self.records]


def fit(
    trainer: SheafTrainer,
    data: Data,
    optimizer: Optimizer,
    *,
    epochs: int,
    batch_size: int | None = None,
    validation: tuple[Tensor, Tensor] | None = None,
    scheduler: LRScheduler | None = None,
    clip: float | None = None,
    patience: int | None = None,
    callbacks: Sequence[Callback] = (),
    checkpoint: str | Path | None = None,
    resume: bool = True,
    generator: torch.Generator | None = None,
    progress: bool = True,
) -> History:
    """Train by local gradients with any torch optimiser.

    `data` is a DataLoader, or tensors (x, y) cut into shuffled batches of `batch_size` with
    `generator`. Validation is always on the forward pass. `patience` stops when the validation
    (else training) loss has not improved for so many epochs. With `checkpoint`, every epoch ends
    in an atomic write of weights, optimiser, rule memory, random state and history; a run that
    finds such a file resumes after its last epoch with the same numbers as an uninterrupted one.

    Raises ValueError for an empty loader; `ConvergenceError` for a loss that is not finite (the
    checkpoint then still holds the last good epoch).
    """
    if epochs < 1:
        raise ValueError(f"epochs is {epochs}; write a number ≥ 1")
    generator = generator or torch.Generator().manual_seed(0)
    batches = _batches(data, batch_size, generator)
    history = History()
    loop = _Loop(trainer, optimizer, scheduler, generator, data, history)
    if checkpoint is not None and resume and Path(checkpoint).exists():
        loop.load(load_checkpoint(checkpoint))
    with _bar(progress) as bar:
        task = bar.add_task("training", total=epochs, completed=history.epochs, loss=float("nan"))
        for epoch in range(history.epochs, epochs):
            record = _epoch(trainer, batches(), optimizer, clip)
            if scheduler is not None:
                scheduler.step()
            if validation is not None:
                record |= evaluate(trainer, *validation)
            history.records.append(record)
            history.epochs = epoch + 1
            if checkpoint is not None:
                save_checkpoint(loop.state(), checkpoint)
            for callback in callbacks:
                callback(Progressed(epoch, trainer, record))
            bar.update(task, advance=1, loss=record["loss"])
            if patience is not None and _stale(history.records) >= patience:
                history.outcome = Outcome.STOPPED_EARLY
                break
    return history


@torch.no_grad()
def evaluate(trainer: SheafTrainer, x: Tensor, y: Tensor) -> dict[str, float]:
    """Loss, and accuracy where it makes sense, of the plain forward pass."""
    mode = trainer.model.training
    trainer.model.eval()
    z = trainer.model(x)
    trainer.model.train(mode)
    target = trainer.loss.target(z, y)
    out = {"validation_loss": float(trainer.loss.potential(z, target).mean())}
    if trainer.loss.name == "cross_entropy":
        out["accuracy"] = float((z.argmax(1) == target.argmax(1)).double().mean())
    elif trainer.loss.name == "bce":
        out["accuracy"] = float(((z > 0) == (target > 0.5)).double().mean())
    return out


def _epoch(
    trainer: SheafTrainer,
    batches: Iterator[tuple[Tensor, Tensor]],
    optimizer: Optimizer,
    clip: float | None,
) -> dict[str, float]:
    total, count = 0.0, 0
    for x, y in batches:
        optimizer.zero_grad(set_to_none=True)
        loss = trainer.local_gradients(x, y)
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(list(trainer.learnable.values()), clip)
        optimizer.step()
        total, count = total + float(loss) * x.shape[0], count + x.shape[0]
    if count == 0:
        raise ValueError("the loader is empty: it gave no batch in a whole epoch")
    return {"loss": total / count}


def _batches(
    data: Data, size: int | None, generator: torch.Generator
) -> Callable[[], Iterator[tuple[Tensor, Tensor]]]:
    if isinstance(data, DataLoader):
        return lambda: iter(data)
    x, y = data
    if x.shape[0] != y.shape[0]:
        raise ValueError(f"{x.shape[0]} inputs came with {y.shape[0]} targets")
    if x.shape[0] == 0:
        raise ValueError("the loader is empty: x has no sample")
    size = x.shape[0] if size is None else size
    if size < 1:
        raise ValueError(f"batch_size is {size}; write a number ≥ 1")

    def shuffled() -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(x.shape[0], generator=generator).to(x.device)
        for start in range(0, x.shape[0], size):
            index = order[start : start + size]
            yield x[index], y[index]

    return shuffled


def _stale(records: list[dict[str, float]]) -> int:
    values = [r.get("validation_loss", r["loss"]) for r in records]
    best = min(range(len(values)), key=values.__getitem__)
    return len(values) - 1 - best


@dataclass(frozen=True)
class _Loop:
    """Everything that must survive an interruption."""

    trainer: SheafTrainer
    optimizer: Optimizer
    scheduler: LRScheduler | None
    generator: torch.Generator
    data: Data
    history: History

    def state(self) -> dict[str, Any]:
        return {
            "torchsheaf.fit": 1,
            "model": self.trainer.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
            "rule": self.trainer.rule.state_dict(),
            "records": self.history.records,
            "random": [g.get_state() for g in self._generators()],
            "global_random": torch.get_rng_state(),
        }

    def load(self, state: dict[str, Any]) -> None:
        self.trainer.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scheduler is not None and state["scheduler"] is not None:
            self.scheduler.load_state_dict(state["scheduler"])
        self.trainer.rule.load_state_dict(state["rule"])
        for generator, saved in zip(self._generators(), state["random"], strict=True):
            generator.set_state(saved)
        torch.set_rng_state(state["global_random"])
        self.history.records[:] = state["records"]
        self.history.epochs = len(state["records"])

    def _generators(self) -> list[torch.Generator]:
        found = [self.generator]
        if isinstance(self.data, DataLoader):
            found += [
                g
                for g in (self.data.generator, getattr(self.data.sampler, "generator", None))
                if isinstance(g, torch.Generator) and all(g is not f for f in found)
            ]
        return found


def _bar(shown: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.4g}"), TimeRemainingColumn(), disable=not shown,
        transient=True,
    )  # fmt: skip
