"""The house rules, read off the syntax trees: who may import whom, names, lengths, docstrings."""

import ast
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "torchsheaf"

# Each part imports itself and anything to its left. The package's own __init__ stands right of all.
ORDER = (
    "outcome draws cochain arguments file linalg examples network sheaf boundary harmonic flow "
    "train diagnose precision figures report labs cli"
).split()
# Modules that may be asked for anywhere: they import nothing from the package.
LEAVES = {"_version", "progress"}
TRACERS = ("torch.export", "torch.fx", "torch._export")
BANNED_NAMES = {"utils", "util", "misc", "helpers", "helper", "common", "core", "base"}
MAX_LINES = 400
MAX_BODY = 70


def part_of(file: Path, package: Path) -> str:
    """The part a file belongs to: its top folder or its stem; "" for the package's own __init__."""
    first = file.relative_to(package).parts[0]
    stem = first.removesuffix(".py")
    return "" if stem == "__init__" else stem


def absolute_name(node: ast.ImportFrom, file: Path, package: Path) -> str:
    """The dotted module that `from ... import` names, with leading dots resolved."""
    if not node.level:
        return node.module or ""
    # A package's __init__ and a plain module both count one dot as "the folder this file lies in".
    folder = [package.name, *file.relative_to(package).parts[:-1]]
    stem = folder[: len(folder) - (node.level - 1)]
    return ".".join([*stem, *([node.module] if node.module else [])])


def imported(file: Path, package: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every import in a file, those inside functions included."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            module = absolute_name(node, file, package)
            for alias in node.names:
                # `from torchsheaf import flow`, `from torch import fx`: the alias is a module.
                yield node.lineno, f"{module}.{alias.name}"
        elif is_dynamic_import(node):
            yield node.lineno, node.args[0].value  # type: ignore[attr-defined]


def is_dynamic_import(node: ast.AST) -> bool:
    """`importlib.import_module("x")` or `__import__("x")` with a literal name."""
    if not (isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant)):
        return False
    called = (
        node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    )
    return called in {"import_module", "__import__"} and isinstance(node.args[0].value, str)


def uses_attribute(tree: ast.AST, dotted: str) -> Iterator[int]:
    """Lines where an attribute chain such as `torch.fx` or `torch.export.export` is written out."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node) == dotted:
            yield node.lineno


def is_tracer(name: str) -> bool:
    return any(name == tracer or name.startswith(tracer + ".") for tracer in TRACERS)


def import_faults(file: Path, package: Path) -> Iterator[str]:
    part, where = part_of(file, package), file.relative_to(package)
    rank = ORDER.index(part) if part in ORDER else len(ORDER)
    for line, name in imported(file, package):
        head, *rest = name.split(".")
        if is_tracer(name) and part != "network":
            yield f"{where}:{line} imports {name}; only network/ reads torch.export and torch.fx"
        if head != package.name or part == "":
            continue
        if not rest:
            yield f"{where}:{line} imports the whole package; name the part instead"
            continue
        target = rest[0]
        if target in ORDER and ORDER.index(target) > rank:
            yield f"{where}:{line} imports {target}, which stands to the right of {part}"
        elif target not in ORDER and target not in LEAVES:
            yield f"{where}:{line} imports {name} from the top level; name the part instead"
    if part != "network":
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for tracer in TRACERS:
            for line in uses_attribute(tree, tracer):
                yield f"{where}:{line} uses {tracer}; only network/ reads torch.export and torch.fx"


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0  # type: ignore[operator]


def shape_faults(file: Path, package: Path) -> Iterator[str]:
    """Names, lengths and docstrings of one file."""
    where, text = file.relative_to(package), file.read_text(encoding="utf-8")
    tree = ast.parse(text)
    for piece in where.with_suffix("").parts:
        if piece.lower().lstrip("_") in BANNED_NAMES:
            yield f"{where}: {piece!r} says nothing; name the file after its noun"
    if part_of(file, package) not in {*ORDER, *LEAVES, "", "__main__"}:
        yield f"{where}: not a part of the house; the parts are {', '.join(ORDER)}"
    if not (ast.get_docstring(tree) or "").strip():
        yield f"{where}: no module docstring"
    if (lines := text.count("\n") + 1) > MAX_LINES:
        yield f"{where}: {lines} lines; split at {MAX_LINES}"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and body_lines(node) > MAX_BODY:
            length = body_lines(node)
            yield f"{where}:{node.lineno} {node.name} has {length} lines; at most {MAX_BODY}"


def faults(package: Path) -> list[str]:
    """Every breach of the house rules in a package directory, one sentence each."""
    found = []
    for file in sorted(package.rglob("*.py")):
        found += [*import_faults(file, package), *shape_faults(file, package)]
    for folder in sorted({file.parent for file in package.rglob("*.py")}):
        if not (folder / "__init__.py").is_file():
            found.append(f"{folder.relative_to(package)}: a folder without __init__.py")
    return found


def test_the_package_obeys_the_house_rules() -> None:
    assert len(list(PACKAGE.rglob("*.py"))) > 5, "the walk found no package to check"
    found = faults(PACKAGE)
    assert not found, "\n" + "\n".join(found)


def tracked_files() -> list[Path]:
    try:
        listing = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            capture_output=True,
            check=True,
            text=True,
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout: the list of the project's files is not known")
    return [ROOT / name for name in listing.split("\0") if name]


def test_the_project_stands_alone() -> None:
    """No tracked file points outside the repository at the folder the design was drawn up in."""
    files = tracked_files()
    assert ROOT / "pyproject.toml" in files
    # Spelt in two pieces, or this file would name it.
    words = ["../" + "shared", str(ROOT) + "/"]
    guilty = []
    for file in files:
        if file.is_file():
            content = file.read_bytes().decode("utf-8", errors="ignore")
            guilty += [
                f"{file.relative_to(ROOT)} names {word}" for word in words if word in content
            ]
    assert not guilty, "\n".join(guilty)


# ---- the checker itself: a small tree with one fault of each kind, and one without any -----------

SOUND = {
    "__init__.py": '"""Top."""\nfrom torchsheaf.cli import main\nfrom . import sheaf\n',
    "outcome.py": '"""How it ends."""\nimport torch\n',
    "cochain.py": '"""Blocks."""\nfrom torchsheaf.outcome import Outcome\n',
    "network/__init__.py": '"""Network."""\nfrom torchsheaf.network.capture import capture\n',
    "network/capture.py": '"""Capture."""\nimport torch.export\nfrom torch import fx\n',
    "sheaf/__init__.py": '"""Sheaf."""\nfrom ..cochain import Cochain\nfrom .cells import Edge\n',
    "sheaf/cells.py": '"""Cells."""\ndef f():\n    from torchsheaf.network import capture\n',
    "cli/__init__.py": '"""Command line."""\nfrom torchsheaf import sheaf\n',
}

UNSOUND = [
    ("sheaf/cells.py", '"""C."""\nimport torchsheaf.flow\n', "right of sheaf"),
    ("sheaf/cells.py", '"""C."""\nfrom torchsheaf.flow.heat import field\n', "right of sheaf"),
    ("sheaf/cells.py", '"""C."""\nfrom torchsheaf import flow\n', "right of sheaf"),
    ("sheaf/cells.py", '"""C."""\nfrom ..harmonic import solve\n', "right of sheaf"),
    ("sheaf/__init__.py", '"""S."""\nfrom .. import harmonic\n', "right of sheaf"),
    ("sheaf/cells.py", '"""C."""\ndef f():\n    from ..cli import main\n', "right of sheaf"),
    ("outcome.py", '"""O."""\nfrom .cochain import Cochain\n', "right of outcome"),
    (
        "sheaf/cells.py",
        '"""C."""\nimport importlib\nimportlib.import_module("torchsheaf.report")\n',
        "right of sheaf",
    ),
    ("sheaf/cells.py", '"""C."""\nfrom torchsheaf import encode\n', "from the top level"),
    ("sheaf/cells.py", '"""C."""\nimport torchsheaf as ts\n', "the whole package"),
    ("sheaf/cells.py", '"""C."""\nimport torch.fx\n', "only network/"),
    ("sheaf/cells.py", '"""C."""\nfrom torch import export\n', "only network/"),
    ("sheaf/cells.py", '"""C."""\ndef f():\n    from torch.fx import Node\n', "only network/"),
    ("cli/__init__.py", '"""C."""\nimport torch\np = torch.export.load("x")\n', "only network/"),
    ("sheaf/utils.py", '"""U."""\n', "says nothing"),
    ("core/__init__.py", '"""U."""\n', "says nothing"),
    ("sheaf/__init__.py", "from .cells import Edge\n", "no module docstring"),
    ("magic/__init__.py", '"""M."""\n', "not a part of the house"),
    ("sheaf/deep/leaf.py", '"""L."""\n', "without __init__"),
    ("sheaf/cells.py", '"""C."""\n' + "x = 1\n" * 400, "split at 400"),
    ("sheaf/cells.py", '"""C."""\ndef f():\n' + "    x = 1\n" * 71, "f has 71 lines"),
]


def write_tree(package: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text, encoding="utf-8")
    return package


def test_the_checker_accepts_a_sound_tree(tmp_path: Path) -> None:
    assert faults(write_tree(tmp_path / "torchsheaf", SOUND)) == []


@pytest.mark.parametrize(("name", "text", "expected"), UNSOUND)
def test_the_checker_catches(tmp_path: Path, name: str, text: str, expected: str) -> None:
    found = faults(write_tree(tmp_path / "torchsheaf", {**SOUND, name: text}))
    assert any(expected in fault for fault in found), found
    assert all(name.split("/")[0] in fault for fault in found), found
