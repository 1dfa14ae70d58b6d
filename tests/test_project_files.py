"""What the project says about itself outside the code: versions, pins, targets, first example."""

import ast
import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import torchsheaf
from torchsheaf.network.rules import forget_rule

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def pins() -> dict[str, str]:
    lines = [line for line in text("constraints.txt").splitlines() if line[:1] not in {"", "#"}]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!]+", line) for line in lines), lines
    return {canonicalize_name(name): version for name, version in (x.split("==") for x in lines)}


def requirements() -> list[Requirement]:
    groups = PROJECT["optional-dependencies"].values()
    return [Requirement(r) for r in [*PROJECT["dependencies"], *(r for g in groups for r in g)]]


def test_one_version_everywhere() -> None:
    headings = re.findall(r"^## \[(.+?)\]", text("CHANGELOG.md"), re.MULTILINE)
    assert headings[0] == PROJECT["version"]
    assert torchsheaf.__version__ == PROJECT["version"]
    assert metadata.version("torchsheaf") == PROJECT["version"]
    assert yaml.safe_load(text("CITATION.cff"))["version"] == PROJECT["version"]


def test_every_requirement_is_pinned_within_its_bounds() -> None:
    pinned = pins()
    for requirement in requirements():
        version = pinned.get(canonicalize_name(requirement.name))
        assert version, f"{requirement} is not in constraints.txt"
        assert requirement.specifier.contains(version), f"{requirement} excludes its pin {version}"


def test_what_the_requirements_require_is_pinned_too() -> None:
    """Closure over what is installed here: an unpinned dependency could change under our feet."""
    pinned, seen = pins(), set()
    # On an accelerator build of torch these come along; the pinned plain build has none of them.
    accelerator = re.compile(r"nvidia-|triton|cuda-|pytorch-triton")
    waiting = [(canonicalize_name(r.name), frozenset(r.extras)) for r in requirements()]
    while waiting:
        name, extras = waiting.pop()
        if (name, extras) in seen or accelerator.match(name):
            continue
        seen.add((name, extras))
        try:
            needed = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue  # belongs to a group that is not installed, or to another platform
        assert name in pinned, f"{name} is installed but not pinned"
        for requirement in map(Requirement, needed):
            environments = [{"extra": extra} for extra in extras] or [{"extra": ""}]
            marker = requirement.marker
            if marker is None or any(marker.evaluate(e) for e in environments):
                waiting.append((canonicalize_name(requirement.name), frozenset(requirement.extras)))
    assert len(seen) > 30
    assert not [name for name in pinned if accelerator.match(name)]


def test_the_environment_is_the_pinned_one() -> None:
    pinned = pins()
    wrong = {
        distribution.name: (distribution.version, pinned[name])
        for distribution in metadata.distributions()
        if (name := canonicalize_name(distribution.name)) in pinned
        and distribution.version.split("+")[0] != pinned[name]
    }
    assert not wrong, f"installed, pinned: {wrong}; run make setup-test"


@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
def test_the_example_on_the_front_page_runs(page: str) -> None:
    (block,) = re.findall(r"^```python\n(.*?)^```", text(page), re.MULTILINE | re.DOTALL)
    assert len([line for line in block.splitlines() if line.strip()]) <= 15
    names: dict[str, Any] = {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        exec(compile(block, f"<{page}>", "exec"), names)
    forward, pulled = names["forward"], names["pulled"]
    assert torch.allclose(forward.output, names["model"](names["x"]), rtol=1e-12, atol=1e-12)
    assert float(forward.energy.max()) <= 1e-24
    assert (names["gap"] > 0).all()
    # The wanted output is not the forward pass, so the pull must cost something.
    assert float(pulled.energy.min()) >= 0 < float(pulled.energy.max())
    assert set(names["discord"]["edge"]) == set(names["sheaf"].edges)


PAGES = sorted(
    str(page.relative_to(ROOT))
    for page in (ROOT / "docs").rglob("*.md")
    if "```python" in page.read_text(encoding="utf-8")
)


@pytest.mark.parametrize("page", PAGES)
def test_the_examples_of_a_page_run_as_they_stand(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first block of a page needs nothing before it, later ones what stands above them."""
    monkeypatch.chdir(tmp_path)  # some write a file
    names: dict[str, Any] = {}
    try:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            for block in re.findall(r"^```python\n(.*?)^```", text(page), re.MULTILINE | re.DOTALL):
                exec(compile(block, f"<{page}>", "exec"), names)
    finally:
        forget_rule("aten.special_i0.default")  # docs/architectures.md registers it


def test_targets_that_the_documents_name_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", text("Makefile"), re.MULTILINE))
    pages = [text("README.md"), text("CONTRIBUTING.md"), text(".ci/run"), text("docs/index.md")]
    named = {t for page in pages for t in re.findall(r"^(?:\$ )?make ([a-z-]+)", page, re.M)}
    assert {"demo", "test", "mutants", "format"} <= named
    assert named <= targets


# Where a module is called otherwise than what is installed for it.
DISTRIBUTIONS = {"sklearn": "scikit-learn"}


def imported(folder: str) -> set[str]:
    """Distributions whose modules the files of a folder import, inside functions too."""
    found = set()
    for file in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module)
    roots = {name.partition(".")[0] for name in found} - sys.stdlib_module_names
    ours = {"torchsheaf", "benchmarks", "tests"}
    return {canonicalize_name(DISTRIBUTIONS.get(root, root)) for root in roots - ours}


def test_make_bench_installs_what_the_benchmarks_import() -> None:
    """From a fresh clone: the target's stamp names the groups that are installed for it."""
    (stamp,) = re.findall(r"^bench: \$\(VENV\)/(\S+)$", text("Makefile"), re.MULTILINE)
    recipe = text("Makefile").partition(f"\n$(VENV)/{stamp}:")[2].partition("\n\n")[0]
    (groups,) = re.findall(r"--editable '\.\[(.+)\]'", recipe)
    wanted = [*PROJECT["dependencies"]]
    for group in groups.split(","):
        wanted += PROJECT["optional-dependencies"][group]
    assert imported("benchmarks") <= {canonicalize_name(Requirement(r).name) for r in wanted}
