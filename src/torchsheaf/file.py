"""Write a file so that a reader never sees half of it."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path


def write_file(path: str | Path, write: Callable[[Path], object]) -> Path:
    """Have `write` fill a neighbouring file, then rename it: the old one or the new, no mixture.

    The neighbour has a name of its own, which ends as `path` does, so that two runs never fill one
    file; it reaches the disk before the rename. The file may be read by those who might read one
    that was opened plainly: with the old one's permissions, else with those of the umask.

    Raises OSError when the folder cannot be written, and what `write` raises; the old file then
    stays. Returns the absolute path.

    >>> folder = Path(tempfile.mkdtemp())
    >>> write_file(folder / "a.txt", lambda part: part.write_text("all of it")).read_text()
    'all of it'
    """
    path = Path(path).absolute()
    handle, name = tempfile.mkstemp(
        dir=path.parent, prefix=f".{path.stem}.", suffix=f".part{path.suffix}"
    )
    os.close(handle)
    try:
        write(Path(name))
        with open(name, "r+b") as file:
            os.fsync(file.fileno())
        os.chmod(name, _permissions(path))  # mkstemp makes private files
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return path


def write_text(path: str | Path, text: str) -> Path:
    """As `write_file`, in UTF-8."""
    return write_file(path, lambda part: part.write_text(text, encoding="utf-8"))


def _permissions(path: Path) -> int:
    if path.exists():
        return path.stat().st_mode & 0o777
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask
