"""Does the suite notice a wrong formula? Apply each change of mutants.toml, run the tests it names.

    python tests/mutants.py [--list mutants.toml] [--only TEXT] [--jobs 2] [--timeout 120]

The working tree is never touched: every mutant lives in its own temporary copy of the sources,
which PYTHONPATH puts before the installed ones. Exit code 0 when every mutant is caught, 1 when one
survives, 2 when the list itself is wrong (text not found exactly once, tests that fail anyway).
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CAUGHT, SURVIVED, BAD_LIST = 0, 1, 2
# pytest's exit codes: 1 is "tests ran, some failed"; beyond 1, nothing was shown either way.
PYTEST_PASSED, PYTEST_FAILED = 0, 1


class BadList(Exception):
    """The list asks for something that cannot be done; the message names the mutant."""


@dataclass(frozen=True)
class Mutant:
    """One changed line and the tests that must notice it."""

    file: str
    original: str
    mutated: str
    tests: tuple[str, ...]
    why: str

    def __str__(self) -> str:
        return f"{self.file}: {self.original.strip()!r} -> {self.mutated.strip()!r}"

    def apply(self, package: Path) -> None:
        """Write the change into a copy of the package."""
        path = package / self.file
        if not path.is_file():
            raise BadList(f"{self}: no such file")
        text = path.read_text(encoding="utf-8")
        if (count := text.count(self.original)) != 1:
            raise BadList(f"{self}: the original text occurs {count} times, not once")
        path.write_text(text.replace(self.original, self.mutated), encoding="utf-8")


def read_list(path: Path) -> list[Mutant]:
    """The mutants of a TOML file; every field is required and nothing else is allowed."""
    fields = {"file", "original", "mutated", "tests", "why"}
    mutants = []
    for number, entry in enumerate(tomllib.loads(path.read_text("utf-8")).get("mutant", []), 1):
        if set(entry) != fields:
            raise BadList(f"mutant {number}: fields {sorted(entry)}, expected {sorted(fields)}")
        if entry["original"] == entry["mutated"] or not entry["tests"]:
            raise BadList(f"mutant {number}: changes nothing, or names no tests")
        mutants.append(Mutant(**{**entry, "tests": tuple(entry["tests"])}))
    return mutants


def run_tests(source: Path, tests: Sequence[str], timeout: float, root: Path) -> tuple[int, str]:
    """pytest's exit code and output on a copy of the sources; a hang counts as a failed test."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "-p", "no:cacheprovider"]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(source), os.environ.get("PYTHONPATH", "")]).rstrip(":"),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    try:
        done = subprocess.run(
            [*command, *tests],
            cwd=root,
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
    except subprocess.TimeoutExpired:
        return PYTEST_FAILED, f"no end within {timeout:g} s"
    return done.returncode, done.stdout + done.stderr


def attempt(tests: Sequence[str], mutant: Mutant | None, timeout: float, root: Path) -> int:
    """Run tests on a fresh copy of src, changed by the mutant if there is one."""
    with tempfile.TemporaryDirectory(prefix="torchsheaf-mutant-") as folder:
        source = Path(folder) / "src"
        shutil.copytree(root / "src", source, ignore=shutil.ignore_patterns("__pycache__"))
        if mutant:
            mutant.apply(source / "torchsheaf")
        code, output = run_tests(source, tests, timeout, root)
    if code not in (PYTEST_PASSED, PYTEST_FAILED):
        raise BadList(f"{mutant or 'no mutant'}: pytest ended with code {code}\n{output[-2000:]}")
    if code == PYTEST_FAILED and not mutant:
        raise BadList(f"{' '.join(tests)} fail without any mutant\n{output[-2000:]}")
    return code


def hunt(mutants: Sequence[Mutant], *, jobs: int, timeout: float, root: Path) -> list[Mutant]:
    """The mutants that survive; the tests must first pass on the sources as they are."""
    with ThreadPoolExecutor(jobs) as pool:
        selections = sorted({mutant.tests for mutant in mutants})
        list(pool.map(lambda tests: attempt(tests, None, timeout, root), selections))

        def caught(mutant: Mutant) -> bool:
            begin = time.perf_counter()
            code = attempt(mutant.tests, mutant, timeout, root)
            verdict = "caught" if code == PYTEST_FAILED else "SURVIVED"
            print(f"{verdict:>8} {time.perf_counter() - begin:6.1f} s  {mutant}", flush=True)
            return code == PYTEST_FAILED

        return [m for m, ok in zip(mutants, pool.map(caught, mutants), strict=True) if not ok]


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--list", type=Path, default=root / "tests" / "mutants.toml")
    parser.add_argument("--only", default="", help="mutants whose description contains this text")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds per test run")
    options = parser.parse_args(arguments)
    try:
        mutants = [m for m in read_list(options.list) if options.only in str(m)]
        if not mutants:
            raise BadList(f"{options.list}: no mutants to try")
        survivors = hunt(mutants, jobs=options.jobs, timeout=options.timeout, root=root)
    except BadList as problem:
        print(f"error: {problem}", file=sys.stderr)
        return BAD_LIST
    print(f"{len(mutants) - len(survivors)} of {len(mutants)} mutants caught")
    for mutant in survivors:
        print(f"survived: {mutant}\n  {mutant.why}\n  {' '.join(mutant.tests)}")
    return SURVIVED if survivors else CAUGHT


if __name__ == "__main__":
    sys.exit(main())
