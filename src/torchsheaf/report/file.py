"""Write a page so that a reader never sees half of it."""

import os
import tempfile
from pathlib import Path


def write_page(path: str | Path, html: str) -> Path:
    """Write to a neighbouring file, then rename: the old page or the new one, never a mixture.

    Raises OSError when the folder cannot be written. Returns the absolute path.
    """
    path = Path(path).absolute()
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(html)
        # mkstemp makes private files; a page gets what a plain open() would have given it.
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(name, 0o666 & ~mask)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return path
