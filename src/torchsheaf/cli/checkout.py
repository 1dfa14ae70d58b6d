"""`torchsheaf reproduce` and `torchsheaf lab`: run what a source checkout carries."""

import os
import subprocess
import sys
from pathlib import Path

import click

from torchsheaf.cli.exits import Exit
from torchsheaf.cli.failures import CommandFailed


def find(folder: str, start: Path | None = None) -> Path:
    """The checkout's folder of that name, from the current folder upwards.

    Raises `CommandFailed` outside a checkout: an installed package does not carry these files.
    """
    start = Path.cwd() if start is None else start
    for place in (start, *start.parents):
        if (place / "src" / "torchsheaf").is_dir() and (place / folder).is_dir():
            return place / folder
    raise CommandFailed(
        f"{folder}/ belongs to the source checkout of torchsheaf, and {start} is not inside one; "
        "clone the repository and run the command there",
        Exit.NO_CHECKOUT,
    )


def named(folder: Path, suffix: str) -> dict[str, Path]:
    """What can be run: files below the folder, by path without suffix; `_private` ones left out.

    A folder with a `__main__.py` is one script, and what else lies in it are its parts.
    """
    mains = {f.parent for f in folder.rglob("__main__.py")}
    files = [f for f in folder.rglob(f"*{suffix}") if not mains & {f, *f.parents}]
    places = {p.relative_to(folder).with_suffix(""): p for p in sorted([*files, *mains])}
    return {
        str(place): path
        for place, path in places.items()
        if not any(part.startswith(("_", ".")) for part in place.parts)
    }


def choose(available: dict[str, Path], name: str) -> Path:
    """One of them: by its whole name, or by a beginning that fits only one."""
    fitting = [n for n in available if n == name] or [n for n in available if n.startswith(name)]
    if len(fitting) != 1:
        found = "fits none" if not fitting else f"fits {', '.join(fitting)}"
        raise click.BadParameter(f"{name!r} {found}; write one of: {', '.join(available)}")
    return available[fitting[0]]


@click.command()
@click.argument("name", required=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def reproduce(name: str | None, arguments: tuple[str, ...]) -> None:
    """Run a script of reproduce/; without NAME, list them. ARGUMENTS go to the script."""
    folder = find("reproduce")
    available = named(folder, ".py")
    if name is None:
        click.echo("\n".join(available))
        return
    script = choose(available, name).relative_to(folder.parent).with_suffix("")
    run([sys.executable, "-m", ".".join(script.parts), *arguments], folder.parent, "Agg")


@click.command()
@click.argument("name", required=False)
def lab(name: str | None) -> None:
    """Execute a notebook of labs/ in place; without NAME, list them."""
    folder = find("labs")
    available = named(folder, ".ipynb")
    if name is None:
        click.echo("\n".join(available))
        return
    notebook = choose(available, name)
    execute = [sys.executable, "-m", "jupyter", "execute", "--inplace", str(notebook)]
    run(execute, folder.parent, "module://matplotlib_inline.backend_inline")


def run(command: list[str], folder: Path, backend: str) -> None:
    """Run in the checkout, pictures drawn by this backend; its exit status is ours."""
    finished = subprocess.run(command, cwd=folder, env={**os.environ, "MPLBACKEND": backend})
    if finished.returncode:
        raise SystemExit(finished.returncode)
