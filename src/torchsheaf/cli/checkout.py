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


def named(folder: Path, suffix: str) -> list[str]:
    """What can be run: files below the folder, by path without suffix; `_private` ones left out.

    A package that runs as a whole (it has a `__main__`) is one of them; its parts are not.
    """
    whole = {main.parent for main in folder.rglob("__main__.py")}
    files = [f.with_suffix("") for f in folder.rglob(f"*{suffix}") if whole.isdisjoint(f.parents)]
    found = sorted(f.relative_to(folder) for f in (*files, *whole))
    return [f.as_posix() for f in found if not any(p.startswith(("_", ".")) for p in f.parts)]


def choose(available: list[str], name: str) -> str:
    """One of them: by its whole name, or by a beginning that fits only one."""
    fitting = [n for n in available if n == name] or [n for n in available if n.startswith(name)]
    if len(fitting) != 1:
        found = "fits none" if not fitting else f"fits {', '.join(fitting)}"
        raise click.BadParameter(f"{name!r} {found}; write one of: {', '.join(available)}")
    return fitting[0]


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("name", required=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def reproduce(name: str | None, arguments: tuple[str, ...]) -> None:
    """Run a script of reproduce/; without NAME, list them. ARGUMENTS go to the script."""
    folder = find("reproduce")
    available = named(folder, ".py")
    if name is None:
        click.echo("\n".join(available))
        return
    module = ".".join([folder.name, *choose(available, name).split("/")])
    run([sys.executable, "-m", module, *arguments], folder.parent, "Agg")


@click.command()
@click.argument("name", required=False)
def lab(name: str | None) -> None:
    """Execute a notebook of labs/ in place; without NAME, list them."""
    folder = find("labs")
    available = named(folder, ".ipynb")
    if name is None:
        click.echo("\n".join(available))
        return
    notebook = f"{folder.name}/{choose(available, name)}.ipynb"
    execute = [sys.executable, "-m", "jupyter", "execute", "--inplace", notebook]
    run(execute, folder.parent, "module://matplotlib_inline.backend_inline")


def run(command: list[str], folder: Path, backend: str) -> None:
    """Run in the checkout, pictures drawn by this backend; its exit status is ours."""
    finished = subprocess.run(command, cwd=folder, env={**os.environ, "MPLBACKEND": backend})
    if finished.returncode:
        raise SystemExit(finished.returncode)
