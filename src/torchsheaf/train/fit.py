"""The training loop: progress, validation on the forward pass, early stop, exact resume."""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torch.utils.data import DataLoader

from torchsheaf.arguments import positive_number, require_generator, whole_number
from torchsheaf.cochain import is_finite
from torchsheaf.network.placement import placement
from torchsheaf.outcome import ConvergenceError, Outcome
from torchsheaf.progress import standard_error
from torchsheaf.train.batches import Data, Input, every_epoch, every_validation, generators, sizes
from torchsheaf.train.checkpoint import load_checkpoint, save_checkpoint
from torchsheaf.train.parallel import is_parallel
from torchsheaf.train.random_state import device_states, restore_device_states
from torchsheaf.train.run import Run
from torchsheaf.train.trainer import SheafTrainer
from torchsheaf.train.validation import try_validation, validation_record

Callback = Callable[["Progressed"], None]


@dataclass(frozen=True)
class Progressed:
    """What a callback sees after an epoch."""

    epoch: int
    trainer: SheafTrainer
    record: dict[str, float]


@dataclass
class History:
    """One record per epoch (`loss`, `validation_loss`, `accuracy`), and how the run ended.

    `outcome` is COMPLETED after all epochs and STOPPED_EARLY by `patience`.
    """

    records: list[dict[str, float]] = field(default_factory=list)
    outcome: Outcome = Outcome.COMPLETED
    epochs: int = 0
    resumed: int = 0
    """How many of the epochs came from a checkpoint."""

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
    validation: Data | None = None,
    scheduler: LRScheduler | None = None,
    clip: float | None = None,
    patience: int | None = None,
    callbacks: Sequence[Callback] = (),
    checkpoint: str | Path | None = None,
    resume: bool = True,
    generator: torch.Generator | None = None,
    progress: bool = True,
    throw: bool = True,
) -> History:
    """Train by local gradients with any torch optimiser.

    `data` is a DataLoader, or tensors (x, y), x a tuple where the model has several inputs, cut
    into shuffled batches of `batch_size` with `generator`; without `batch_size` every step takes
    all samples. Batches are moved to the model's device. Validation, on tensors or a loader too, is
    always on the forward pass, in the mode that the model is in, 1,024 samples at a time.
    `progress` draws a bar on standard error where that is a terminal. `patience` stops when the
    validation (else training) loss has not improved for so many epochs. With `checkpoint`, every
    epoch ends in an atomic write of weights, optimiser, scheduler, rule memory, random state (that
    of torch) and history; a run that finds such a file resumes after its last epoch with the same
    numbers as an uninterrupted one (`History.resumed` says after which; where that is `epochs`,
    nothing is trained; the order of samples is that of the file, whatever `generator` came). Of the
    data their number and the batch size are compared, not the values. Under data parallelism every
    process passes its own shard, of equally many batches, and process r > 0 adds ".rank<r>" to the
    file's name.

    Raises TypeError or ValueError for arguments (validation is tried once before the first step),
    an empty loader, wrong targets, an optimiser of other parameters, or a checkpoint of another run
    (rule, loss or reluctance and their settings, output, optimiser, kind of scheduler or, without
    one, other settings of the optimiser, batch size, number of samples), or for LBFGS with a rule
    whose `.grad` is not the gradient of the loss; `ConvergenceError` for a loss or weights that are
    not finite and for a rule that fails (with `throw=False` the history is returned with that
    outcome). After any error, and after Ctrl-C, the weights, the optimiser and the rule's memory
    are those at the end of the last whole epoch, as in the checkpoint: a copy of them is kept,
    which takes their memory once more and is made anew after every epoch.

    >>> net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
    >>> x = torch.rand(64, 2)
    >>> data = (x, x.sum(1, keepdim=True))
    >>> trainer = SheafTrainer(net, loss="l2", rule="first-order")
    >>> step = torch.optim.Adam(net.parameters(), lr=0.01)
    >>> history = fit(trainer, data, step, epochs=20, progress=False)
    >>> history.losses[-1] < history.losses[0]
    True
    """
    epochs = whole_number("epochs", epochs)
    patience = None if patience is None else whole_number("patience", patience)
    if clip is not None:
        positive_number("clip", clip)
    _check_parts(trainer, optimizer, scheduler, callbacks)
    require_generator(generator)
    generator = generator or torch.Generator().manual_seed(0)
    device = placement(trainer.model.parameters())
    batches = every_epoch(data, batch_size, generator, device)
    held = None if validation is None else every_validation(validation, device)
    if held is not None:
        try_validation(trainer, *next(held()))
    history = History()
    run = Run(trainer, optimizer, scheduler, sizes(data, batch_size))
    loop = _Loop(run, generator, data, history)
    file = None if checkpoint is None else _own_file(Path(checkpoint))
    if file is not None and resume and file.exists():
        loop.load(load_checkpoint(file))
        history.resumed = history.epochs
    good = loop.snapshot()
    with _bar(progress) as bar:
        task = bar.add_task("training", total=epochs, completed=history.epochs, loss=float("nan"))
        while history.epochs < epochs:
            if patience is not None and _stale(history.records) >= patience:
                history.outcome = Outcome.STOPPED_EARLY
                break
            try:
                record = _epoch(trainer, batches(history.epochs), optimizer, clip)
                _require_finite(trainer)
                if held is not None:
                    record |= validation_record(trainer, held())
            except BaseException as error:  # Ctrl-C among them
                loop.restore(good)
                if isinstance(error, ConvergenceError):
                    history.outcome = error.outcome
                    if not throw:
                        break
                raise
            if scheduler is not None:
                _advance(scheduler, record)
            history.records.append(record)
            history.epochs += 1
            good = loop.snapshot()
            if file is not None:
                save_checkpoint(loop.run.heading | good, file)
            for callback in callbacks:
                callback(Progressed(history.epochs - 1, trainer, record))
            bar.update(task, advance=1, loss=record["loss"])
    return history


def _check_parts(
    trainer: SheafTrainer,
    optimizer: Optimizer,
    scheduler: LRScheduler | None,
    callbacks: Sequence[Callback],
) -> None:
    if not isinstance(trainer, SheafTrainer):
        raise TypeError(f"trainer is a {type(trainer).__name__}; write ts.SheafTrainer(model)")
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer is {optimizer!r}; write torch.optim.SGD(model.parameters(), …)")
    if isinstance(optimizer, torch.optim.LBFGS) and not trainer.rule.descends:
        raise ValueError(
            "LBFGS searches along the gradient of the loss, which rule "
            f"{trainer.rule.name!r} does not give; write rule='first-order', or another optimizer"
        )
    if not isinstance(scheduler, LRScheduler | None):
        raise TypeError(f"scheduler is {scheduler!r}; write one of torch.optim.lr_scheduler")
    if scheduler is not None and scheduler.optimizer is not optimizer:
        raise ValueError("the scheduler drives another optimizer; make it from this run's")
    if not isinstance(callbacks, Sequence):
        raise TypeError(f"callbacks is {callbacks!r}; write a list of functions")
    for one in callbacks:
        if not callable(one):
            raise TypeError(f"callbacks holds {one!r}, which cannot be called")
    mine = {id(p) for p in trainer.learnable.values()}
    if not any(id(p) in mine for group in optimizer.param_groups for p in group["params"]):
        raise ValueError("the optimizer has no parameter of this model; write model.parameters()")


def _epoch(
    trainer: SheafTrainer,
    batches: Iterator[tuple[Input, Tensor]],
    optimizer: Optimizer,
    clip: float | None,
) -> dict[str, float]:
    total: Tensor | float = 0.0
    count = 0
    for x, y in batches:

        def gradients(x: Input = x, y: Tensor = y) -> Tensor:
            optimizer.zero_grad(set_to_none=True)
            loss = trainer.local_gradients(x, y)
            if clip is not None:
                torch.nn.utils.clip_grad_norm_(list(trainer.learnable.values()), clip)
            return loss

        if isinstance(optimizer, torch.optim.LBFGS):  # evaluates several times per step
            loss = optimizer.step(gradients)
        else:
            loss = gradients()
            optimizer.step()
        # summed where it is: nothing waits for a GPU here
        total, count = total + loss.double() * y.shape[0], count + y.shape[0]
    if count == 0:
        raise ValueError("the loader is empty: it gave no batch in a whole epoch")
    return {"loss": float(total) / count}


def _require_finite(trainer: SheafTrainer) -> None:
    for name, parameter in trainer.learnable.items():
        if not is_finite(parameter):
            raise ConvergenceError(
                Outcome.NONFINITE, f"{name} is no longer finite; lower the learning rate"
            )


def _advance(scheduler: LRScheduler, record: dict[str, float]) -> None:
    if isinstance(scheduler, ReduceLROnPlateau):
        scheduler.step(record.get("validation_loss", record["loss"]))
    else:
        scheduler.step()


def _own_file(path: Path) -> Path:
    rank = torch.distributed.get_rank() if is_parallel() else 0
    if path.is_dir():
        raise ValueError(f"checkpoint is {path}, a folder; write a file name")
    if path.suffix == ".safetensors":  # torch.load takes such a file for bare weights
        raise ValueError(f"checkpoint is {path}, a name of weights alone; write {path.stem}.pt")
    return path.with_name(f"{path.name}.rank{rank}") if rank else path


def _stale(records: list[dict[str, float]]) -> int:
    if not records:
        return 0
    values = [r.get("validation_loss", r["loss"]) for r in records]
    best = min(range(len(values)), key=values.__getitem__)
    return len(values) - 1 - best


@dataclass(frozen=True)
class _Loop:
    """Everything that must survive an interruption."""

    run: Run
    generator: torch.Generator
    data: Data
    history: History

    def state(self) -> dict[str, Any]:
        return {
            "model": self.run.trainer.model.state_dict(),
            "optimizer": self.run.optimizer.state_dict(),
            "scheduler": None if self.run.scheduler is None else self.run.scheduler.state_dict(),
            "rule": self.run.trainer.rule.state_dict(),
            "records": self.history.records,
            "random": [g.get_state() for g in self._generators()],
            "global_random": torch.get_rng_state(),
            "device_random": device_states(self.run.trainer.model.parameters()),
        }

    def snapshot(self) -> dict[str, Any]:
        """The state as it is now, detached from the live tensors; records are written once."""
        state = self.state()
        return copy.deepcopy({**state, "records": []}) | {"records": list(state["records"])}

    def load(self, state: dict[str, Any]) -> None:
        """Put back a checkpoint; raises ValueError for that of another run."""
        if len(state["random"]) != len(self._generators()):
            raise ValueError(
                "the checkpoint was written with other data (tensors, or a loader with generators "
                "of its own); pass resume=False (--restart) or another file"
            )
        for saved, generator in zip(state["random"], self._generators(), strict=True):
            if saved.shape != generator.get_state().shape:
                raise ValueError(
                    "the checkpoint's random numbers came from a generator on another kind of "
                    f"device than {generator.device}; pass one of that kind, resume=False "
                    "(--restart) or another file"
                )
        self.run.refuse_another(state)
        self.restore(state)

    def restore(self, state: dict[str, Any]) -> None:
        """Put everything back, as it was in this run or the one that a checkpoint continues."""
        try:
            self.run.trainer.model.load_state_dict(state["model"])
            self.run.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError, KeyError) as error:
            raise ValueError(f"the checkpoint does not fit this model: {error}") from error
        if self.run.scheduler is not None:
            self.run.scheduler.load_state_dict(copy.deepcopy(state["scheduler"]))
        self.run.trainer.rule.load_state_dict(state["rule"])
        for generator, saved in zip(self._generators(), state["random"], strict=True):
            generator.set_state(saved)
        torch.set_rng_state(state["global_random"])
        restore_device_states(self.run.trainer.model.parameters(), state.get("device_random", {}))
        self.history.records[:] = list(state["records"])
        self.history.epochs = len(state["records"])

    def _generators(self) -> list[torch.Generator]:
        loaders = generators(self.data) if isinstance(self.data, DataLoader) else []
        return list(dict.fromkeys([self.generator, *loaders]))


def _bar(shown: bool) -> Progress:
    console = standard_error()
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.4g}"), TimeRemainingColumn(), transient=True,
        disable=not (shown and console.is_terminal), console=console,
    )  # fmt: skip
