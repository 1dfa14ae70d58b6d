"""What a model must be to be read, and what to do when it is not."""

from collections.abc import Sequence
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


class UnsupportedModel(ValueError):
    """The model cannot be read as a network; lists every offending node with its module path."""

    def __init__(self, summary: str, offenders: Sequence[Offender] = ()) -> None:
        lines = [summary, *(f"  - {o}" for o in offenders)]
        super().__init__("\n".join(lines))
        self.offenders = tuple(offenders)
