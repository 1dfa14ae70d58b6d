"""Images with labels: the embedded digits, or MNIST and CIFAR-10 through the `datasets` package."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchsheaf.precision.zoo import digits

NAMES = {"mnist": "ylecun/mnist", "cifar10": "uoft-cs/cifar10"}
IMAGE_KEYS, LABEL_KEYS = ("image", "img"), ("label", "labels")


def load_images(name: str, split: str = "train", limit: int = 4000) -> tuple[Tensor, Tensor]:
    """(images (n, channels, height, width) in [0, 1], labels (n,)).

    name: "digits" (embedded, needs nothing), "mnist" or "cifar10" (read by `datasets`, from its
    cache or the hub), or a folder of parquet files `<split>*.parquet` with the same columns
    (image or img, label). Raises `ModuleNotFoundError` saying what to install, `ValueError` for a
    name or columns that do not fit.
    """
    if name == "digits":
        x, y = digits()
        cut = slice(0, 1200) if split == "train" else slice(1200, None)
        return x[cut].view(-1, 1, 8, 8)[:limit], y[cut][:limit]
    try:
        import datasets
    except ModuleNotFoundError as missing:
        raise ModuleNotFoundError(
            f"{name!r} is read through the `datasets` package: pip install 'torchsheaf[zoo]'; "
            "the embedded 'digits' need nothing"
        ) from missing
    if name in NAMES:
        rows = datasets.load_dataset(NAMES[name], split=split)
    elif (folder := Path(name)).is_dir():
        found = sorted(str(p) for p in folder.glob(f"{split}*.parquet"))
        if not found:
            raise ValueError(f"data: {name!r} holds no {split}*.parquet file")
        rows = datasets.Dataset.from_parquet(found, cache_dir=str(folder / ".cache"))
    else:
        raise ValueError(f"data is {name!r}; write digits, {', '.join(NAMES)} or a folder")
    return rows_to_tensors(rows, limit)


def rows_to_tensors(rows: Iterable[Mapping[str, Any]], limit: int) -> tuple[Tensor, Tensor]:
    """Rows with an image (PIL, array, or {"bytes": …}) and a label as two tensors."""
    images: list[Tensor] = []
    labels: list[int] = []
    for row in rows:
        if len(images) == limit:
            break
        images.append(_image(row[_key(row, IMAGE_KEYS)]))
        labels.append(int(row[_key(row, LABEL_KEYS)]))
    if not images:
        raise ValueError("data: no rows")
    return torch.stack(images), torch.tensor(labels)


def _key(row: Mapping[str, Any], names: tuple[str, ...]) -> str:
    found = [n for n in names if n in row]
    if not found:
        raise ValueError(f"data: a row has {sorted(row)}; one of {names} is needed")
    return found[0]


def _image(value: Any) -> Tensor:
    if isinstance(value, Mapping):
        import io

        from PIL import Image

        value = Image.open(io.BytesIO(value["bytes"]))
    pixels = np.asarray(value)
    array = torch.from_numpy(pixels.astype(np.float32))
    if pixels.dtype == np.uint8:
        array = array / 255
    return array[None] if array.ndim == 2 else array.permute(2, 0, 1)
