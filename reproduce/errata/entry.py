"""One erratum that can be run: what was claimed, what was measured, whether that refutes it."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Shown:
    """What a script measured, line by line, and whether the claim is refuted by it."""

    lines: tuple[str, ...]
    refuted: bool


@dataclass(frozen=True)
class Entry:
    """A named claim with the function that tests it."""

    name: str
    claim: str
    show: Callable[[], Shown]

    def report(self) -> tuple[str, bool]:
        """(text to print, refuted)."""
        shown = self.show()
        verdict = "refuted" if shown.refuted else "NOT refuted: the erratum itself is wrong"
        lines = [self.name, f"  claim:    {self.claim}"]
        lines += [f"  measured: {line}" for line in shown.lines]
        return "\n".join([*lines, f"  verdict:  {verdict}"]), shown.refuted


class Register:
    """Collects the entries of one file: `@register("lab12.sign", claim="…")` above a function."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []

    def __call__(
        self, name: str, claim: str
    ) -> Callable[[Callable[[], Shown]], Callable[[], Shown]]:
        def keep(show: Callable[[], Shown]) -> Callable[[], Shown]:
            self.entries.append(Entry(name, claim, show))
            return show

        return keep
