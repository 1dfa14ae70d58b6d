"""Atomic checkpoints: a training run resumes from its last one with the same numbers."""

import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from torchsheaf.file import write_file


def save_checkpoint(state: dict[str, Any], path: str | Path) -> None:
    """Write with `torch.save`; the folder is made where there is none.

    A reader, or a process killed half-way, sees the old file or the new one, never a part. Numbers
    of NumPy (a rate from `np.logspace`, say) become those of Python, which `load_checkpoint` reads.

    Raises ValueError where it could not read the file, of which the old one then stays. Cost: that
    of writing; the tensors are not read again.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    plain = _without_numpy(state)

    def write(part: Path) -> None:
        torch.save(plain, part)
        try:
            torch.load(part, map_location="cpu", weights_only=True, mmap=True)
        except pickle.UnpicklingError as error:
            found = re.search(r"GLOBAL (\S+)", str(error))
            raise ValueError(
                "a checkpoint takes tensors, numbers, text and plain containers; the state of this "
                f"run's optimizer, scheduler or rule holds {found[1] if found else 'other objects'}"
            ) from error

    write_file(path, write)


def _without_numpy(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if type(value) in (list, tuple):
        return type(value)(map(_without_numpy, value))
    if type(value) is dict:
        return {_without_numpy(k): _without_numpy(v) for k, v in value.items()}
    return value


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
