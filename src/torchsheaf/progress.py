"""A progress bar that appears only when somebody is waiting."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

PATIENCE = 2.0
"""Seconds before the bar appears."""


@contextmanager
def progress_bar(show: bool | None, name: str) -> Iterator[Callable[[float], None]]:
    """Yields a function that takes the fraction done. `show=None`: only on a terminal.

    It appears on stderr after `PATIENCE` seconds and is gone at the end.
    """
    if show is False or (show is None and not sys.stderr.isatty()):
        yield lambda fraction: None
        return
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    task = bar.add_task(name, total=1.0)
    begun = time.monotonic()

    def tell(fraction: float) -> None:
        if not bar.live.is_started and time.monotonic() - begun > PATIENCE:
            bar.start()
        bar.update(task, completed=min(max(fraction, 0.0), 1.0))

    try:
        yield tell
    finally:
        if bar.live.is_started:
            bar.stop()
