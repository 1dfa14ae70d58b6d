"""Results that cannot be written: noticed before the work begins where that can be known."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torchsheaf.cli.exits import Exit
from torchsheaf.cli.failures import CommandFailed


def writable(out: str, option: str = "--out") -> Path:
    """A file's path; a folder that is not there is noticed before the work begins."""
    path = Path(out).absolute()
    if path.is_dir() or not path.parent.is_dir():
        what = "is a folder" if path.is_dir() else f"lies in {path.parent}, which does not exist"
        raise CommandFailed(f"{option}: {path} {what}; write a file name", Exit.CANNOT_WRITE)
    return path


def writable_folder(folder: Path, option: str = "--out") -> None:
    """Make a folder for results; where that fails, it is noticed before the work begins."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        said = f"{option}: {folder} cannot be made: {error.strerror}"
        raise CommandFailed(said, Exit.CANNOT_WRITE) from error


@contextmanager
def writing(result: str | Path) -> Iterator[None]:
    """Inside, an error of the system means that this result cannot be written."""
    try:
        yield
    except OSError as error:
        said = f"cannot write {result}: {error.strerror or error}"
        raise CommandFailed(said, Exit.CANNOT_WRITE) from error
