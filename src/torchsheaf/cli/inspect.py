"""`torchsheaf inspect TARGET`: the cells of a network."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from torchsheaf.cli.choices import FORMS
from torchsheaf.cli.loading import TARGET_HELP, load, target_argument

if TYPE_CHECKING:
    from torchsheaf.sheaf import Sheaf


@click.command(epilog=TARGET_HELP)
@target_argument
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.option("--form", type=click.Choice(FORMS), default="unfused", show_default=True)
def inspect(target: str, weights: str | None, as_json: bool, form: str) -> None:
    """Print the cells of a network: one vertex per value, one edge per operation."""
    from torchsheaf.sheaf import encode

    model, inputs, _ = load(target, weights, train=False)
    sheaf = encode(model, inputs, form=form)
    if as_json:
        click.echo(json.dumps(describe(sheaf), indent=2))
    else:
        print_cells(sheaf)


def describe(sheaf: Sheaf) -> dict[str, Any]:
    """The cells as plain data."""
    parameters = sheaf.network.parameters()
    return {
        "form": sheaf.form,
        "inputs": list(sheaf.inputs),
        "outputs": list(sheaf.outputs),
        "vertices": [
            {"name": v.name, "shape": list(v.shape), "dim": v.dim, "input": v.is_input}
            for v in sheaf.vertices.values()
        ],
        "edges": [
            {
                "name": e.name,
                "kind": str(e.kind),
                "op": e.op,
                "module": e.module,
                "parents": list(e.parents),
                "head": e.head,
                "shape": list(e.shape),
                "dim": e.dim,
                "parameters": {p: list(parameters[p].shape) for p in e.parameters},
            }
            for e in sheaf.edges.values()
        ],
    }


def print_cells(sheaf: Sheaf) -> None:
    """The cells as a table on stdout."""
    parameters = sheaf.network.parameters()
    console = Console()
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for title in ("vertex", "kind", "operation", "from"):
        table.add_column(title, overflow="fold")
    for title in ("shape", "dim", "parameters"):
        table.add_column(title, justify="right", no_wrap=True)
    # Text, not str: a module may be called "[red]".
    for name in sheaf.inputs:
        v = sheaf.vertices[name]
        row = (name, "input", "held", "", shape_text(v.shape), f"{v.dim:,}", "")
        table.add_row(*(Text(cell) for cell in row))
    for e in sheaf.edges.values():
        count = sum(parameters[p].numel() for p in e.parameters)
        row = (
            e.name, str(e.kind), e.operation, ", ".join(e.parents), shape_text(e.shape),
            f"{e.dim:,}", f"{count:,}" if count else "",
        )  # fmt: skip
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)
    free = sum(v.dim for v in sheaf.vertices.values() if not v.is_input)
    total = sum(t.numel() for t in parameters.values())
    console.print(
        Text(
            f"{len(sheaf.vertices)} vertices, {len(sheaf.edges)} edges; with the input held, "
            f"{free:,} free coordinates; {total:,} parameters"
        )
    )


def shape_text(shape: tuple[int, ...]) -> str:
    """`3×8×8`."""
    return "×".join(map(str, shape)) or "scalar"
