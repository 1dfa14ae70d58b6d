"""`torchsheaf relax TARGET`: run the heat equation and draw it."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from torchsheaf.cli.choices import FORMS, METHODS
from torchsheaf.cli.loading import TARGET_HELP, load, one_thread, seed_option, target_argument
from torchsheaf.cli.writing import writable_folder, writing
from torchsheaf.file import write_file

if TYPE_CHECKING:
    import torch

    from torchsheaf.boundary import Problem
    from torchsheaf.cochain import Cochain
    from torchsheaf.flow import Trajectory


@click.command(epilog=TARGET_HELP)
@target_argument
@click.option("--form", type=click.Choice(FORMS), default="unfused", show_default=True)
@click.option("--method", type=click.Choice(METHODS), default="auto", show_default=True)
@click.option("--dt", type=float, help="Step of --method euler. Default: half the bound.")
@click.option("--until", type=float, help="Last time. Default: until stationary.")
@click.option(
    "--start", type=click.Choice(["random", "zeros", "forward"]), default="random",
    show_default=True,
)  # fmt: skip
@click.option("--samples", default=8, show_default=True, type=click.IntRange(1))
@click.option("--hold-output", is_flag=True, help="Hold the output at the forward pass plus noise.")
@click.option(
    "--out", "folder", metavar="FOLDER", type=click.Path(file_okay=False, path_type=Path),
    help="Where to write the pictures (PNG) and the animation (GIF). Default: no pictures.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
@seed_option
def relax(target: str, weights: str | None, folder: Path | None, **options: Any) -> None:
    """Relax random activations into agreement along the sheaf heat equation."""
    if folder:
        writable_folder(folder)
    import torch

    from torchsheaf.boundary import hold
    from torchsheaf.flow import heat_flow
    from torchsheaf.sheaf import encode

    torch.manual_seed(options["seed"])
    model, inputs, _ = load(target, weights)
    x = tuple(t[: options["samples"]] for t in inputs)
    with one_thread():
        problem = hold(encode(model, x, form=options["form"]), x)
        forward = problem.start("forward")
        generator = torch.Generator().manual_seed(options["seed"])
        if options["hold_output"]:
            problem = _hold_output(problem, forward, generator)
        flow = heat_flow(
            problem, options["start"], options["until"], options["method"], dt=options["dt"],
            record="states" if folder else "energy", generator=generator, throw=False,
        )  # fmt: skip
        found = summary(flow, forward)
        if folder:
            found["pictures"] = draw(flow, folder, forward)
    if options["as_json"]:
        click.echo(json.dumps(found, indent=2))
    else:
        for key, value in found.items():
            click.echo(f"{key:<22} {', '.join(value) if isinstance(value, list) else value}")


def _hold_output(problem: Problem, forward: Any, generator: torch.Generator) -> Problem:
    from torchsheaf.boundary import Pin
    from torchsheaf.draws import standard_normal

    name = problem.sheaf.outputs[0]
    value = forward[name]
    noise = standard_normal(value.shape, generator, value.dtype, value.device)
    return problem.pin(Pin(name, value + noise))


def summary(flow: Trajectory, forward: Cochain) -> dict[str, Any]:
    """The run in numbers."""
    stopped = int(flow.stopped.isfinite().sum())
    return {
        "method": flow.method,
        "outcome": flow.outcome.value + (f": {flow.where}" if flow.where else ""),
        "samples": flow.problem.batch,
        "stationary samples": stopped,
        "last time": float(flow.times[-1]),
        "steps": flow.steps,
        "gate switches": len(flow.events),
        "of which slides": len(flow.events.slides),
        "energy at start": float(flow.energy[0].mean()),
        "energy at end": float(flow.energy[-1].mean()),
        "worst stationarity": float(flow.stationarity.max()),
        "output - forward pass": max(
            float((flow.final[name] - forward[name]).abs().max())
            for name in flow.problem.sheaf.outputs
        ),
    }


def draw(flow: Trajectory, folder: Path, forward: Any) -> list[str]:
    """Write every picture of a flow into a folder that is there; returns their paths."""
    from torchsheaf.figures.flow import (
        energy_shares_figure,
        flow_animation,
        flow_energy_figure,
        output_figure,
        pattern_bands_figure,
    )

    name = flow.problem.sheaf.outputs[0]
    pictures = {
        "energy": lambda: flow_energy_figure(flow),
        "energy-by-kind": lambda: energy_shares_figure(flow),
        "energy-by-layer": lambda: energy_shares_figure(flow, "layer"),
        "output": lambda: output_figure(flow, forward[name][0]),
    }
    if len(flow.events.walls):
        pictures["pattern"] = lambda: pattern_bands_figure(flow)
    written = []
    for stem, figure in pictures.items():
        path = folder / f"{stem}.png"
        with writing(path):
            write_file(path, partial(figure().savefig, dpi=130, facecolor="white"))
        written.append(str(path))
    goal = None if flow.problem.pins else forward
    path = folder / "relaxation.gif"
    with writing(path):
        flow_animation(flow, path, goal=goal, frames=40)
    return [*written, str(path)]
