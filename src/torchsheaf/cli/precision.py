"""`torchsheaf precision`: plan a model, check kernels, check certificates, run demonstrations."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from torchsheaf.cli.choices import DEMOS, FORMATS, NORMS, PROFILES
from torchsheaf.cli.exits import Exit
from torchsheaf.cli.failures import CommandFailed
from torchsheaf.cli.loading import TARGET_HELP, budget_of, checked, load, target_argument
from torchsheaf.cli.writing import writable, writing
from torchsheaf.file import write_file, write_text

if TYPE_CHECKING:
    from torchsheaf.precision import Plan
    from torchsheaf.precision.conformance import Conformance
    from torchsheaf.precision.demos import Demo


class TargetGroup(click.Group):
    """A group whose first argument may be a target instead of a command: then it is planned."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put the command `plan` in front of what is no command."""
        if args and args[0] not in self.commands and args[0] not in ("-h", "--help"):
            args = ["plan", *args]
        return super().parse_args(ctx, args)


def format_names(text: str) -> tuple[str, ...]:
    """Formats between commas."""
    from torchsheaf.precision.arguments import read_formats

    return tuple(f.name for f in read_formats([part.strip() for part in text.split(",")]))


@click.group(cls=TargetGroup)
def precision() -> None:
    """How few bits each operation needs: `torchsheaf precision TARGET --budget 1e-3`."""


@precision.command("plan", epilog=TARGET_HELP)
@target_argument
@click.option(
    "--budget", type=float, required=True, callback=checked(budget_of),
    help="Allowed output error, output's units.",
)  # fmt: skip
@click.option("--norm", type=click.Choice(NORMS), default="max", show_default=True)
@click.option(
    "--formats", default="fp32,bf16,fp16", show_default=True, callback=checked(format_names),
    help=f"From {', '.join(FORMATS)}.",
)  # fmt: skip
@click.option("--pin", "pins", multiple=True, metavar="NAME=FORMAT", help="Fix a format.")
@click.option(
    "--profile", default="stated", show_default=True,
    help=f"Cost profile: {', '.join(PROFILES)} or a JSON file.",
)  # fmt: skip
@click.option(
    "--probes", default=4, show_default=True, type=click.IntRange(1), help="Random adjoints."
)
@click.option("--holdout", default=0.0, show_default=True, help="Share of the inputs kept out.")
@click.option("--certificate", metavar="FILE", help="Write the certificate as JSON.")
@click.option("--figures", metavar="PREFIX", help="Write PREFIX-error.svg and PREFIX-graph.svg.")
@click.option("--html", metavar="FILE", help="Write a page about the plan.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
def plan_command(
    target: str, weights: str | None, budget: float, norm: str, formats: tuple[str, ...],
    pins: tuple[str, ...], profile: str, probes: int, holdout: float, certificate: str | None,
    figures: str | None, html: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Choose a number format for every operation of TARGET within an output-error budget."""
    from torchsheaf.precision import plan
    from torchsheaf.precision.profile import load_profile

    fixed, costs = dict(pair(p) for p in pins), load_profile(profile)
    outputs = (("--certificate", certificate), ("--figures", figures), ("--html", html))
    for option, file in outputs:
        if file is not None:
            writable(f"{file}-error.svg" if option == "--figures" else file, option)
    model, inputs, _ = load(target, weights)
    used, kept = split(inputs, holdout)
    found = plan(
        model, used, budget, norm=norm, formats=formats, pins=fixed, profile=costs, probes=probes,
        holdout=kept,
        log=lambda line: click.echo(line, err=True),
    )  # fmt: skip
    if as_json:
        click.echo(json.dumps(describe(found), indent=2))
    else:
        print_plan(found)
    _write(found, target, certificate, figures, html)


def _write(
    found: Plan, target: str, certificate: str | None, figures: str | None, html: str | None
) -> None:
    from torchsheaf.figures.precision import assignment_figure, error_and_cost_figure
    from torchsheaf.precision.certificate import save_certificate
    from torchsheaf.report.precision_section import precision_page

    if certificate:
        with writing(certificate):
            save_certificate(found.certificate, certificate)
    if figures:
        with writing(f"{figures}-error.svg and {figures}-graph.svg"):
            write_file(f"{figures}-error.svg", error_and_cost_figure(found).savefig)
            write_file(f"{figures}-graph.svg", assignment_figure(found).savefig)
    if html:
        with writing(html):
            write_text(html, precision_page(found, target))


def pair(text: str) -> tuple[str, str]:
    """NAME=FORMAT."""
    name, sign, form = text.rpartition("=")
    if not sign or not name:
        raise click.BadParameter(f"--pin {text!r}: write NAME=FORMAT, for instance 2=fp32")
    return name, form


def split(inputs: tuple[Any, ...], share: float) -> tuple[tuple[Any, ...], Any]:
    """Inputs to plan on, and a multiple of as many to hold out (or None)."""
    if not 0 <= share < 1:
        raise click.BadParameter(f"--holdout is {share}; write a share in [0, 1)")
    if share == 0:
        return inputs, None
    from torchsheaf.precision.measure import batch_of

    batch = batch_of(inputs)
    if not batch:
        raise click.BadParameter(f"--holdout {share}: the inputs share no axis of samples")
    kept = int(batch * share)
    size = batch - kept
    kept -= kept % size
    if kept == 0:
        raise click.BadParameter(
            f"--holdout {share}: {batch} samples do not leave as many to hold out as to plan on; "
            "write 0.5 or more"
        )
    return tuple(x[:size] for x in inputs), tuple(x[size : size + kept] for x in inputs)


def describe(found: Plan) -> dict[str, Any]:
    """The plan as plain data."""
    memory = found.memory
    return {
        "budget": found.budget,
        "norm": found.norm,
        "predicted": found.predicted.value,
        "measured": found.measured.value,
        "cost_relative_to_fp32": found.cost.relative,
        "profile": found.cost.profile,
        "memory_bytes": memory.total,
        "memory_bytes_fp32": memory.weights_fp32 + memory.activations_fp32,
        "assignment": dict(found.assignment),
        "blame": [
            {"operation": s.operation, "format": s.format, "share": s.share, "error": s.error}
            for s in found.blame()
        ],
        "headroom": [
            {"operation": h.operation, "largest": h.largest, "refused": dict(h.refused)}
            for h in found.headroom
        ],
        "sections": str(found.sections.count),
        "flags": list(found.flags),
        "held_out": None if found.statement is None else str(found.statement),
    }


def print_plan(found: Plan, rows: int = 25) -> None:
    """Tables on stdout: operations by blame, then the sums."""
    console = Console()
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("operation", overflow="fold", min_width=14)
    table.add_column("kernel", overflow="fold", min_width=6)
    table.add_column("format", no_wrap=True)
    for title in ("of error", "error", "of cost", "largest"):
        table.add_column(title, justify="right", no_wrap=True)
    cost = {v: found.problem.cost[v][f] for v, f in found.assignment.items()}
    whole = sum(cost.values()) or 1.0
    reach = {h.operation: h.largest for h in found.headroom}
    shares = found.blame()
    for s in shares[:rows]:
        row = (
            s.operation, s.kind, s.format, f"{s.share:.1%}", f"{s.error:.2e}",
            f"{cost[s.operation] / whole:.1%}", f"{reach[s.operation]:.3g}",
        )  # fmt: skip
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)
    if len(shares) > rows:
        console.print(Text(f"… and {len(shares) - rows} operations with less of the error"))
    memory, before = found.memory, found.memory.weights_fp32 + found.memory.activations_fp32
    lines = [
        f"budget     {found.budget:g} ({found.norm} norm)",
        f"predicted  {found.predicted.value:.3g}",
        f"measured   {found.measured.value:.3g} on {len(found.measured.errors)} inputs",
        f"cost       {found.cost.relative:.1%} of fp32 in profile {found.cost.profile!r}, "
        f"casts {found.cost.casts / max(found.cost.value, 1e-300):.1%} of it",
        f"memory     {memory.total / 2**20:.3g} MiB, fp32 {before / 2**20:.3g} MiB",
        f"sections   {found.sections.count:,} assignments are supported",
    ]
    if found.statement is not None:
        lines.append(f"held out   {found.statement}")
    lines += [f"caution    {flag}" for flag in found.flags]
    console.print(Text("\n".join(lines)))


@precision.command("conformance")
@click.option("--device", default="cpu", show_default=True)
@click.option(
    "--formats", default="fp32,tf32,bf16,fp16,fp8_e4m3,fp8_e5m2", show_default=True,
    callback=checked(format_names),
)  # fmt: skip
@click.option("--all", "everything", is_flag=True, help="Print every check, not only failures.")
def conformance_command(device: str, formats: tuple[str, ...], everything: bool) -> None:
    """Run every kernel's error model against this machine and print what fails."""
    from torchsheaf.precision.conformance import conformance

    found = conformance(formats, device=device)
    print_conformance(found, everything)
    if found.failures:
        raise CommandFailed(f"{len(found.failures)} kernels break their model", Exit.CHECK_FAILED)


def print_conformance(found: Conformance, everything: bool) -> None:
    """The checks on stdout."""
    console = Console()
    shown = found.checks if everything else found.failures
    if shown:
        table = Table(box=SIMPLE_HEAD, pad_edge=False)
        for title in ("kernel", "format", "inputs", "error / allowed", "worst case"):
            table.add_column(title, overflow="fold")
        for c in sorted(shown, key=lambda c: -c.worst):
            inputs = f"all {c.inputs:,}" if c.exhaustive else f"{c.inputs:,}"
            note = " (emulated)" if c.emulated else ""
            row = (c.operator, c.format + note, inputs, f"{c.worst:.3g}", c.witness)
            table.add_row(*(Text(cell) for cell in row))
        console.print(table)
    full = sum(c.exhaustive for c in found.checks)
    console.print(
        Text(
            f"{len(found.checks)} checks on {found.device}, {full} of them over all inputs of the "
            f"format: {len(found.failures)} fail"
            + (f"; no kernel: {', '.join(found.missing)}" if found.missing else "")
        )
    )


@precision.command("check")
@click.argument("certificate", type=click.Path(exists=True, dir_okay=False))
def check_command(certificate: str) -> None:
    """Check a certificate in exact arithmetic and say what it proves."""
    from torchsheaf.precision import check_certificate

    try:
        data = dict(json.loads(Path(certificate).read_text(encoding="utf-8")))
    except (ValueError, TypeError, RecursionError) as error:
        text = f"{certificate} is no certificate: {error}; pass what --certificate wrote"
        raise CommandFailed(text, Exit.BAD_TARGET) from error
    try:
        said = check_certificate.check(data)
    except check_certificate.Rejected as claim:
        raise CommandFailed(f"REJECTED {certificate}: {claim}", Exit.CHECK_FAILED) from claim
    click.echo("\n".join([*said, "ACCEPTED"]))


@precision.command("profile")
@click.argument("file")
@click.option("--device", default="cpu", show_default=True)
def profile_command(file: str, device: str) -> None:
    """Time this machine's kernels and write a cost profile to FILE."""
    writable(file, "FILE")
    from torchsheaf.precision.profile import measure_profile, write_profile

    measured = measure_profile(Path(file).stem, device)
    with writing(file):
        write_profile(measured, file)
    click.echo(f"written to {file}")


@precision.command("demo")
@click.argument("name", type=click.Choice(DEMOS))
@click.option("--data", default="digits", help="images: digits, mnist, cifar10 or a folder.")
def demo_command(name: str, data: str) -> None:
    """Run a demonstration: feed-forward, images, transformer or pathological."""
    if data != "digits" and name != "images":
        raise click.BadParameter("--data belongs to `demo images`")
    from torchsheaf.precision import demos

    run = demos.DEMOS[name]
    print_demo(run(data) if name == "images" else run())


def print_demo(demo: Demo) -> None:
    """Story, ways and refutations on stdout."""
    console = Console()
    console.print(Text(demo.title, style="bold"))
    console.print(Text("\n".join(demo.story)))
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("way")
    for title in ("largest error", "cost / fp32", "memory MiB", "accuracy"):
        table.add_column(title, justify="right")
    for w in demo.ways:
        error = f"{w.error:.2e}" if math.isfinite(w.error) else "overflow"
        accuracy = "" if w.accuracy is None else f"{w.accuracy:.1%}"
        row = (w.name, error, f"{w.cost:.3f}", f"{w.memory_mb:.3g}", accuracy)
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)
    for budget, found in demo.plans.items():
        counts: dict[str, int] = {}
        for f in found.assignment.values():
            counts[f] = counts.get(f, 0) + 1
        mix = ", ".join(f"{n} × {f}" for f, n in counts.items())
        console.print(Text(f"budget {budget:g}: measured {found.measured.value:.3g}; {mix}"))
        for line in [*found.flags, *([str(found.statement)] if found.statement else [])]:
            console.print(Text(f"  {line}"))
    for r in demo.refutations:
        console.print(Text(f"\nuniform {r.format} at budget {r.budget:g}:\n{r}"))
