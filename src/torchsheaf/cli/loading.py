"""The arguments that several commands share: a target, its weights, a seed."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from torchsheaf.cli.choices import EXAMPLES
from torchsheaf.progress import standard_error

if TYPE_CHECKING:
    from torchsheaf.network.target import Target

Command = Callable[..., Any]


def target_argument(command: Command) -> Command:
    """TARGET and --weights."""
    command = click.option(
        "--weights",
        metavar="FILE",
        help="A .safetensors file or a state dictionary (torch.save), read without unpickling.",
    )(command)
    return click.argument("target", metavar="TARGET")(command)


def seed_option(command: Command) -> Command:
    """--seed for whatever is random."""
    return click.option("--seed", default=0, show_default=True, help="Seed of all randomness.")(
        command
    )


def checked(read: Callable[[Any], Any]) -> Callable[[click.Context, click.Parameter, Any], Any]:
    """A callback that reads an option's value: a `ValueError` is a fault of the command line."""

    def callback(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
        try:
            return None if value is None else read(value)
        except ValueError as error:
            raise click.BadParameter(str(error), ctx, param) from error

    return callback


def budget_of(given: float) -> float:
    """--budget, as `ts.precision.plan` reads it."""
    from torchsheaf.precision.arguments import error_budget

    return error_budget(given)


def progress_bar() -> Progress:
    """A progress bar on stderr, so that stdout stays clean for piping."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=32),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=standard_error(),
    )


@contextmanager
def one_thread() -> Iterator[None]:
    """Small matrices are faster on one thread, and on a busy machine by far."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def load(target: str, weights: str | None = None, *, train: bool = True) -> Target:
    """Load a target as the command line means it: modules in the current folder are found.

    `train=False` leaves a shipped example untrained, for what needs its cells only.
    """
    from torchsheaf import examples
    from torchsheaf.network.target import Target, load_target

    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    if target not in EXAMPLES or weights is not None:
        return load_target(target, weights)
    if not train:
        raw = examples.load(target, train=False)
        return Target(raw.model, (raw.x,), raw.y)
    with progress_bar() as bar, one_thread():
        task = bar.add_task(f"training {target}", total=examples.EXAMPLES[target].epochs)
        return load_target(target, progress=lambda done, _: bar.update(task, completed=done))


TARGET_HELP = (
    f"TARGET is package.module:factory, a .pt2 file, or a shipped example ({', '.join(EXAMPLES)})."
)
"""One sentence for help texts."""
