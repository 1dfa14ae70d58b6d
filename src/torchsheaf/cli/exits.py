"""Exit codes of the command line, named."""

from enum import IntEnum


class Exit(IntEnum):
    """How a command ended; docs/cli.md has the same table."""

    OK = 0
    UNEXPECTED = 1
    USAGE = 2
    BAD_TARGET = 3
    UNSUPPORTED_MODEL = 4
    BAD_INPUT = 5
    NOT_CONVERGED = 6
    CANNOT_WRITE = 7
    NO_CHECKOUT = 8
    CHECK_FAILED = 9
    INTERRUPTED = 130

    @property
    def meaning(self) -> str:
        """One sentence for the person who meets this code."""
        return _MEANING[self]


_MEANING = {
    Exit.OK: "the command did what was asked",
    Exit.UNEXPECTED: "an error that no one foresaw; run again with --debug and report it",
    Exit.USAGE: "the command line itself is wrong: an unknown command, option or value",
    Exit.BAD_TARGET: "the target or its weights could not be loaded, or a file could not be read",
    Exit.UNSUPPORTED_MODEL: "the model has operations that torchsheaf has no rule for",
    Exit.BAD_INPUT: "the model was read, but its input, labels or a given value do not fit",
    Exit.NOT_CONVERGED: "a numerical computation did not reach its tolerance",
    Exit.CANNOT_WRITE: "the result was computed but could not be written",
    Exit.NO_CHECKOUT: "the command runs files of a source checkout, and this is not one",
    Exit.CHECK_FAILED: "everything ran, and a check on the model failed (see the findings)",
    Exit.INTERRUPTED: "interrupted from the keyboard",
}
