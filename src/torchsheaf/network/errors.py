"""What a model must be to be read, and what to do when it is not."""

import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass


@dataclass(frozen=True)
class Offender:
    """One node that could not be read."""

    node: str
    module: str
    source: str
    reason: str

    def __str__(self) -> str:
        where = f"module {self.module!r}" if self.module else "the top module"
        source = f", {self.source}" if self.source else ""
        return f"{self.node} in {where}{source}: {self.reason}"


class Unreadable(Exception):
    """One call cannot be read; the message says why."""


def first_line(error: BaseException) -> str:
    """What an error says, in one line; its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextmanager
def quiet_torch() -> Iterator[None]:
    """Without torch's warnings, logs and dumps of its graphs: our own errors say what happened."""
    names = ("torch.export", "torch.fx.experimental.symbolic_shapes")
    loggers = {logger: logger.disabled for logger in map(logging.getLogger, names)}
    try:
        for logger in loggers:
            logger.disabled = True
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, disabled in loggers.items():
            logger.disabled = disabled


class UnsupportedModel(ValueError):
    """The model cannot be read as a network; lists every offending node with its module path."""

    def __init__(self, summary: str, offenders: Sequence[Offender] = ()) -> None:
        lines = [summary, *(f"  - {o}" for o in offenders)]
        super().__init__("\n".join(lines))
        self.offenders = tuple(offenders)
