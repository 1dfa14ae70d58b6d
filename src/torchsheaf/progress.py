"""A progress bar that appears only when somebody is waiting."""

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

from rich.console import Console
from rich.errors import LiveError
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

PATIENCE = 2.0
"""Seconds before the bar appears."""


@cache
def standard_error() -> Console:
    """The one console that bars are drawn on: where bars meet, it knows of both."""
    return Console(stderr=True)


@contextmanager
def progress_bar(show: bool | None, name: str) -> Iterator[Callable[[float], None]]:
    """Yields a function that takes the fraction done. `show=None`: only on a terminal.

    It appears after `PATIENCE` seconds and is gone at the end. Inside another bar, as of a command
    that asks for this as one of its steps, it stands below that one (with rich before 14.1 it does
    not appear).
    """
    if show is False or (show is None and not sys.stderr.isatty()):
        yield lambda fraction: None
        return
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeRemainingColumn(),
        console=standard_error(),
        transient=True,
    )
    task = bar.add_task(name, total=1.0)
    due = time.monotonic() + PATIENCE

    def tell(fraction: float) -> None:
        nonlocal due
        if not bar.live.is_started and time.monotonic() > due:
            try:
                bar.start()
            except LiveError:
                due = math.inf
        bar.update(task, completed=min(max(fraction, 0.0), 1.0))

    try:
        yield tell
    finally:
        if bar.live.is_started:
            bar.stop()
