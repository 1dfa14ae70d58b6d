"""`torchsheaf report TARGET`: one HTML page about a model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.text import Text

from torchsheaf.cli.choices import HOLDS
from torchsheaf.cli.exits import Exit
from torchsheaf.cli.failures import CommandFailed
from torchsheaf.cli.loading import (
    TARGET_HELP,
    budget_of,
    checked,
    load,
    progress_bar,
    seed_option,
    target_argument,
)
from torchsheaf.cli.writing import writable, writing
from torchsheaf.file import write_text

if TYPE_CHECKING:
    from torch import Tensor, nn

    from torchsheaf.network import ExportedProgram
    from torchsheaf.network.target import Target
    from torchsheaf.precision import Plan
    from torchsheaf.report import Analysis
    from torchsheaf.report.analysis import Progress


@click.command(epilog=TARGET_HELP)
@target_argument
@click.option(
    "-o", "--out", default="torchsheaf-report.html", show_default=True, metavar="FILE",
    help="Where to write the page.",
)  # fmt: skip
@click.option(
    "--dtype", type=click.Choice(["as is", "float64"]), default="as is", show_default=True,
    help="Analyse the model as it is, or converted to float64.",
)  # fmt: skip
@click.option(
    "--samples", type=click.IntRange(min=1), default=500, show_default=True,
    help="Samples to use at most.",
)  # fmt: skip
@click.option(
    "--hold-labels", type=click.Choice(HOLDS), default="auto", show_default=True,
    help="What output a class label asks for.",
)  # fmt: skip
@click.option(
    "--against", metavar="TARGET", help="A second model to put beside it, on the same samples."
)
@click.option(
    "--nearest", type=int, metavar="CLASS",
    help="Add pictures: what must change in the inputs for the network to say CLASS.",
)  # fmt: skip
@click.option(
    "--budget", type=float, metavar="ERROR", callback=checked(budget_of),
    help="Add the number format of every operation within this output error.",
)  # fmt: skip
@seed_option
def report(
    target: str, weights: str | None, out: str, dtype: str, samples: int, hold_labels: str,
    against: str | None, nearest: int | None, budget: float | None, seed: int,
) -> None:  # fmt: skip
    """Write one self-contained HTML page: structure, agreement, spectrum, disagreement."""
    path = writable(out)
    from torchsheaf.report import analyse, beside, render

    model, inputs, labels = in_dtype(load(target, weights), dtype)
    with stages() as progress:
        analysis = analyse(
            model, inputs, labels, title=target, max_samples=samples, hold_labels=hold_labels,
            nearest=nearest, seed=seed, progress=progress,
        )  # fmt: skip
        if against is not None:
            other = in_dtype(load(against), dtype)
            second = analyse(
                other.model, inputs, labels, title=against, max_samples=samples,
                hold_labels=hold_labels, seed=seed, progress=progress,
            )  # fmt: skip
            analysis = beside(analysis, second)
        formats = None if budget is None else within(budget, model, inputs, analysis.missing)
        page = render(analysis, plan=formats)
    publish(analysis, page, path)


def within(
    budget: float, model: nn.Module | ExportedProgram, inputs: tuple[Tensor, ...],
    missing: dict[str, str],
) -> Plan | None:  # fmt: skip
    """The plan, or None and the reason in `missing`: the rest of the page does not need it."""
    from torchsheaf.network import UnsupportedModel
    from torchsheaf.precision import NoSection, plan

    try:
        return plan(model, inputs, budget=budget)
    except (NoSection, UnsupportedModel) as reason:
        missing["precision"] = str(reason)
        return None


def in_dtype(target: Target, dtype: str) -> Target:
    """The target as it is, or with weights and inputs in float64."""
    if dtype == "as is":
        return target
    import torch
    from torch import nn

    from torchsheaf.network.target import Target

    if not isinstance(target.model, nn.Module):
        raise ValueError("an exported program has its own dtype; leave out --dtype")

    def wide(t: Tensor) -> Tensor:
        return t.to(torch.float64) if t.is_floating_point() else t

    return Target(target.model.double(), tuple(map(wide, target.inputs)), target.labels)


@contextmanager
def stages() -> Iterator[Progress]:
    """A progress bar over the stages of an analysis."""
    from torchsheaf.report.analysis import STAGES

    with progress_bar() as bar:
        task = bar.add_task("analysing", total=len(STAGES))

        def announce(stage: str, number: int, of: int) -> None:
            bar.update(task, description=stage, completed=number)

        yield announce
        bar.update(task, description="done", completed=len(STAGES))


def publish(analysis: Analysis, page: str, path: Path) -> None:
    """Write the page, print the findings and the path; exit by name when a check failed."""
    from torchsheaf.report import headlines

    with writing(path):
        write_text(path, page)
    console = Console(highlight=False)
    for line in headlines(analysis):
        console.print(Text(f"• {line}"))
    for section, reason in analysis.missing.items():
        console.print(Text(f"• not on the page, {section}: {reason}"))
    console.print(Text("\nThe page: "), end="")
    # No wrapping: a path is to be copied.
    console.print(Text(str(path), style="bold"), soft_wrap=True)
    failed = [f for f in analysis.findings if not f.holds]
    if failed:
        raise CommandFailed("; ".join(map(str, failed)), Exit.CHECK_FAILED)
