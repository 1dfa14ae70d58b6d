"""Atomic checkpoints: a training run resumes from its last one with the same numbers."""

import os
import tempfile
from pathlib import Path
from typing import Any

import torch


def save_checkpoint(state: dict[str, Any], path: str | Path) -> None:
    """Write with `torch.save` to a temporary file beside `path`, then rename over it.

    A reader, or a process killed half-way, sees the old file or the new one, never a part.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint; nothing in it is unpickled but tensors and plain containers.

    Raises ValueError naming a file that is not a checkpoint of `ts.fit`.
    """
    try:
        state = torch.load(path, weights_only=True)
    except Exception as error:
        raise ValueError(
            f"{path} is not a readable checkpoint of ts.fit ({type(error).__name__}); "
            "pass resume=False (--restart) or another file"
        ) from error
    if not isinstance(state, dict) or "torchsheaf.fit" not in state:
        raise ValueError(f"{path} is not a checkpoint written by ts.fit")
    return state
