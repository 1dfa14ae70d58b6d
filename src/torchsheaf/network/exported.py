"""Read an exported program from a `.pt2` file without unpickling anything."""

import ast
import json
import os
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from torchsheaf.network.errors import first_line, quiet_torch

# What `torch.export.save` writes for a model of plain tensors. Compiled libraries, script objects
# and opaque (pickled) constants are not on the list.
_MEMBERS = re.compile(
    r"archive_format|archive_version|byteorder|version|\.data/\w+|models/[\w.-]+\.json|"
    r"data/weights/weight_\d+|data/constants/tensor_\d+|"
    r"data/(weights|constants)/[\w.-]+_config\.json|data/sample_inputs/[\w.-]+\.pt|extra/.*"
)
# Sizes are written as sympy text, which torch evaluates: only arithmetic may stand there.
_SIZE_FUNCTIONS = {
    "Symbol", "Integer", "Rational", "Add", "Mul", "Pow", "Max", "Min", "Mod", "PythonMod",
    "FloorDiv", "CleanDiv", "ModularIndexing",
}  # fmt: skip
_SIZE_NODES = (
    ast.Expression, ast.Call, ast.Name, ast.Load, ast.Constant, ast.keyword, ast.BinOp,
    ast.UnaryOp, ast.operator, ast.unaryop, ast.Compare, ast.cmpop,
)  # fmt: skip


class UnsafeArchive(ValueError):
    """A `.pt2` file that holds something other than a graph and plain tensors."""


def load_exported(path: str | Path) -> ExportedProgram:
    """An exported program from a file.

    Raises OSError when the file cannot be read, `UnsafeArchive` when it is no `.pt2` archive or
    holds pickled objects or compiled code. Cost: reading the file twice.
    """
    path = Path(path)
    _inspect(path)
    with _weights_only(), quiet_torch():
        try:
            program = torch.export.load(str(path))
        except Exception as error:
            raise UnsafeArchive(
                f"{path} could not be read as an exported program: {first_line(error)}"
            ) from error
    # Guards are source text that torch would compile; shapes are checked by us anyway.
    if getattr(program, "_guards_code", None):
        program._guards_code = []
    return program


def _inspect(path: Path) -> None:
    """Refuse whatever is not a graph with plain tensors, before torch sees the file."""
    with path.open("rb"):
        pass  # an unreadable file is an OSError that names it
    if not zipfile.is_zipfile(path):
        raise UnsafeArchive(f"{path} is not a .pt2 archive; write one with torch.export.save")
    with zipfile.ZipFile(path) as archive:
        for member in archive.namelist():
            inner = member.split("/", 1)[1] if "/" in member else member
            if not _MEMBERS.fullmatch(inner):
                raise UnsafeArchive(
                    f"{path} contains {inner!r}: only graphs with plain tensors are read, no "
                    "pickled objects and no compiled code"
                )
            if inner.endswith(".json") and not inner.startswith("extra/"):
                for text in _size_texts(json.loads(archive.read(member))):
                    if not _is_arithmetic(text):
                        raise UnsafeArchive(f"{path} has a size that is not arithmetic: {text!r}")


def _size_texts(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            if key == "expr_str":
                yield str(inner)
            yield from _size_texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _size_texts(inner)


def _is_arithmetic(text: str) -> bool:
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError):
        return False
    for node in ast.walk(tree):
        if not isinstance(node, _SIZE_NODES):
            return False
        if isinstance(node, ast.Call) and not isinstance(node.func, ast.Name):
            return False
        if isinstance(node, ast.Name) and not (
            node.id in _SIZE_FUNCTIONS or re.fullmatch(r"[su]\d+", node.id)
        ):
            return False
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if not re.fullmatch(r"[a-z]\w*", node.value):
                return False
    return True


@contextmanager
def _weights_only() -> Iterator[None]:
    """torch.export falls back to full unpickling; this makes every load inside refuse that."""
    names = ("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD")
    before = {name: os.environ.pop(name, None) for name in names}
    os.environ[names[0]] = "1"
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
