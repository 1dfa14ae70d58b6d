"""`torchsheaf pin TARGET`: hold a neuron at a value and see what moves, both ways."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from torchsheaf.cli.choices import EXAMPLES
from torchsheaf.cli.loading import TARGET_HELP, load, one_thread, target_argument
from torchsheaf.cli.writing import writable, writing
from torchsheaf.file import write_file

if TYPE_CHECKING:
    from torch import Tensor

    from torchsheaf.harmonic import Counterfactual


@click.command(epilog=TARGET_HELP)
@target_argument
@click.option(
    "--vertex",
    required=True,
    multiple=True,
    help="Vertex to pin; `torchsheaf inspect` lists them.",
)
@click.option("--index", type=int, multiple=True, help="Coordinate; repeat for several. [all]")
@click.option("--value", type=float, required=True, help="The value to hold it at.")
@click.option("--tol", type=float, help="dist(0, ∂E) to reach. [1e-8 in float64, 1e-4 in float32]")
@click.option("--max-passes", type=int, default=20_000, show_default=True, help="Give up then.")
@click.option("--weight", type=float, default=math.inf, help="Soft pin of this weight. [hard]")
@click.option("--sample", type=int, help="Report one sample instead of the mean over all.")
@click.option("--figure", type=click.Path(dir_okay=False), help="Save a picture here (.png, .svg).")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def pin(
    target: str, weights: str | None, vertex: tuple[str, ...], index: tuple[int, ...],
    value: float, tol: float | None, max_passes: int, weight: float, sample: int | None,
    figure: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Hold coordinates of one vertex and print how far every vertex moves, beside patching.

    "pinned" lets the rest settle around the pin (upstream too); "patched" overwrites the value in
    a forward pass, as a hook does.
    """
    if len(vertex) > 1:
        raise click.UsageError("one --vertex at a time; several pins: ts.counterfactual in Python")
    if figure is not None and writable(figure, "--figure").suffix not in (".png", ".svg"):
        raise click.UsageError(f"--figure is {figure}; write a name that ends in .png or .svg")
    from torchsheaf.boundary import Pin, hold
    from torchsheaf.harmonic import counterfactual
    from torchsheaf.sheaf import encode

    model, inputs, _ = load(target, weights, train=False)
    batch = inputs[0].shape[0]
    if sample is not None and not -batch <= sample < batch:
        raise ValueError(f"--sample is {sample}; the example batch has {batch} samples")
    chosen = Pin(vertex[0], value, list(index) or None, weight)
    with one_thread():
        sheaf = encode(model, inputs)
        hold(sheaf, inputs).pin(chosen)  # refused before an example is trained
    if target in EXAMPLES and weights is None:
        model, inputs, _ = load(target)
        sheaf = encode(model, inputs)
    with one_thread():
        found = counterfactual(sheaf, inputs, chosen, tol=tol, max_passes=max_passes)
    if as_json:
        click.echo(json.dumps(describe(found, sample), indent=2))
    else:
        print_changes(found, sample)
    if figure is not None:
        from torchsheaf.figures.pin import pin_figure

        with writing(figure):
            write_file(figure, pin_figure(found, sample=sample).savefig)


def describe(found: Counterfactual, sample: int | None) -> dict[str, Any]:
    """The counterfactual as plain data."""
    outputs = found.extension.problem.sheaf.outputs
    return {
        "pins": [str(p) for p in found.pins],
        "price": _level(found.price, sample),
        "stationarity": float(found.extension.stationarity.max()),
        "sweeps": found.extension.passes,
        "changes": [
            {
                "vertex": c.vertex,
                "side": c.side,
                "pinned": _level(c.pinned, sample),
                "patched": _level(c.patched, sample),
            }
            for c in found.changes
        ],
        "largest difference at the output": max(
            float((found.pinned[name] - found.patched[name]).abs().max()) for name in outputs
        ),
    }


def print_changes(found: Counterfactual, sample: int | None) -> None:
    """The same as a table on stdout."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("vertex", overflow="fold")
    table.add_column("side")
    for title in ("‖change‖ pinned", "‖change‖ patched"):
        table.add_column(title, justify="right", no_wrap=True)
    for c in found.changes:
        numbers = (f"{_level(v, sample):.4g}" for v in (c.pinned, c.patched))
        table.add_row(Text(c.vertex), c.side, *numbers)
    console = Console()
    console.print(table)
    which = "mean over the samples" if sample is None else f"sample {sample}"
    console.print(f"price of the pin (energy): {_level(found.price, sample):.4g}, {which}")


def _level(values: Tensor, sample: int | None) -> float:
    return float(values.double().mean() if sample is None else values[sample])
