"""Where results are written: noticed before the work begins if that cannot be done."""

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
