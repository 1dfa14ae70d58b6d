"""Atomic checkpoints: a training run resumes from its last one with the same numbers."""

from pathlib import Path
from typing import Any

import torch

from torchsheaf.file import write_file


def save_checkpoint(state: dict[str, Any], path: str | Path) -> None:
    """Write with `torch.save`; the folder is made where there is none.

    A reader, or a process killed half-way, sees the old file or the new one, never a part.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_file(path, lambda part: torch.save(state, part))


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint; nothing in it is unpickled but tensors and plain containers.

    Tensors come on the CPU, wherever they were written: what takes them moves them.

    Raises ValueError naming a file that is not a checkpoint of `ts.fit`.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"{path} is not a readable checkpoint of ts.fit ({type(error).__name__}); "
            "pass resume=False (--restart) or another file"
        ) from error
    if not isinstance(state, dict) or "torchsheaf.fit" not in state:
        raise ValueError(f"{path} is not a checkpoint written by ts.fit")
    return state
