"""`torchsheaf train TARGET`: train by local rules, with checkpoints that resume."""

from __future__ import annotations

import importlib
import json
import math
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click
from click.core import ParameterSource
from rich.console import Console

from torchsheaf.cli.choices import LOSSES, OPTIMISERS, RULES, TASKS
from torchsheaf.cli.loading import load, seed_option
from torchsheaf.cli.writing import writable, writing
from torchsheaf.file import write_file

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from torchsheaf.train import SheafTrainer
    from torchsheaf.train.batches import Input


class Job(NamedTuple):
    """A model to train, its data, and the loss that fits it."""

    model: nn.Module
    x: Input
    y: Tensor
    validation: tuple[Tensor, Tensor] | None
    loss: str


@click.command(
    epilog=f"TARGET is one of the tasks {', '.join(TASKS)}, or package.module:factory for a model; "
    "its own labels are trained on, or what --data gives."
)
@click.argument("target", metavar="TARGET")
@click.option("--weights", metavar="FILE", help="Weights to start from.")
@click.option(
    "--data", metavar="MODULE:FACTORY",
    help="A function without arguments that returns (x, y) or (x, y, held_x, held_y).",
)  # fmt: skip
@click.option("--rule", type=click.Choice(RULES), default="edge", show_default=True)
@click.option("--loss", type=click.Choice(LOSSES), help="Default: what fits the labels.")
@click.option("--optimizer", type=click.Choice(OPTIMISERS), help="Default: what fits the rule.")
@click.option("--rate", type=float, help="Learning rate. Default: what fits the rule.")
@click.option("--epochs", default=20, show_default=True, type=click.IntRange(1))
@click.option("--batch-size", default=64, show_default=True, type=click.IntRange(1))
@click.option("--patience", type=click.IntRange(1), help="Stop after so many epochs without gain.")
@click.option("--checkpoint", metavar="FILE", help="Write after every epoch; resume from it.")
@click.option("--restart", is_flag=True, help="Do not resume from --checkpoint.")
@click.option("--save", metavar="FILE.safetensors", help="Where to write the trained weights.")
@click.option("--json", "as_json", is_flag=True, help="Print the history as JSON.")
@click.option("--progress/--no-progress", default=True, show_default=True)
@seed_option
@click.pass_context
def train(ctx: click.Context, **options: Any) -> None:
    """Train a model by local rules: no autograd runs through the network."""
    _check_files(options["checkpoint"], options["save"])
    import torch

    from torchsheaf.train import SheafTrainer, fit
    from torchsheaf.train.validation import evaluate

    seed = _seed(options["checkpoint"], options["seed"], options["restart"])
    job = _job(options["target"], options["weights"], options["data"], seed)
    loss, rule = options["loss"] or job.loss, options["rule"]
    trainer = SheafTrainer(job.model, loss=loss, rule=rule)
    optimiser, rate = _optimiser(trainer, rule, options["optimizer"], options["rate"])
    whole = rule == "equilibrium" and _is_default(ctx, "batch_size")
    with writing(options["checkpoint"]) if options["checkpoint"] else nullcontext():
        history = fit(
            trainer, (job.x, job.y), optimiser, epochs=options["epochs"],
            batch_size=None if whole else options["batch_size"], validation=job.validation,
            patience=options["patience"], checkpoint=options["checkpoint"],
            resume=not options["restart"], progress=options["progress"],
            generator=torch.Generator().manual_seed(seed),
        )  # fmt: skip
    if options["save"]:
        _save(job.model, options["save"])
    final = evaluate(trainer, *(job.validation or (job.x, job.y)))
    found = {
        "target": options["target"], "rule": rule, "loss": loss, "rate": rate,
        "optimizer": type(optimiser).__name__, "seed": seed, "epochs": history.epochs,
        "resumed after": history.resumed, "epochs now": history.epochs - history.resumed,
        "outcome": history.outcome.value, "records": history.records, "final": final,
        "final_on": "held-out data" if job.validation else "the training data",
    }  # fmt: skip
    if history.resumed:
        _say_resumed(found, options["checkpoint"], options["seed"])
    if options["as_json"]:
        click.echo(json.dumps(found, indent=2))
    else:
        _print(found)


def _check_files(checkpoint: str | None, save: str | None) -> None:
    files = [
        writable(given, option)
        for option, given in (("--checkpoint", checkpoint), ("--save", save))
        if given is not None
    ]
    if save is not None and files[-1].suffix != ".safetensors":
        raise click.UsageError(
            f"--save is {save}; write a name that ends in .safetensors, by which --weights will "
            "know it"
        )
    if len(files) == 2 and files[0] == files[1]:
        raise click.UsageError(f"--checkpoint and --save both name {save}; write two names")


def _seed(checkpoint: str | None, given: int, restart: bool) -> int:
    """The seed of the checkpoint that is resumed: it split the data and orders the samples."""
    if checkpoint is None or restart or not Path(checkpoint).is_file():
        return given
    import torch

    from torchsheaf.train.checkpoint import load_checkpoint

    random = torch.Generator()
    random.set_state(load_checkpoint(checkpoint)["random"][0])
    return random.initial_seed()


def _say_resumed(found: dict[str, Any], checkpoint: str, given: int) -> None:
    now = found["epochs now"]
    text = f"resumed {checkpoint} after epoch {found['resumed after']}: {now} epochs trained now"
    if not now:
        text += ", as --epochs counts those of the file; raise it, or --restart"
    if given != found["seed"]:
        text += f"; the file's seed {found['seed']} goes on, not --seed {given}"
    click.echo(text, err=True)


def _job(target: str, weights: str | None, data: str | None, seed: int) -> Job:
    from torch import nn

    from torchsheaf.network.target import TargetError, load_weights

    if target in TASKS and data is None:
        job = _task(target, seed)
        if weights is not None:
            load_weights(job.model, Path(weights))
        return job
    model, inputs, labels = load(target, weights)
    if not isinstance(model, nn.Module):
        raise TargetError("an exported program has fixed weights; name a module:factory to train")
    split: tuple[Any, ...]
    if data:
        split = _data(data)
    elif labels is not None:
        split = (inputs if len(inputs) > 1 else inputs[0], labels)
    else:
        raise TargetError(
            f"{target} gives no labels to train on; let its factory return (model, x, labels), or "
            "write --data MODULE:FACTORY"
        )
    x, y, *held = split
    validation = (held[0], held[1]) if held else None
    return Job(model, x, y, validation, "l2" if y.is_floating_point() else "cross_entropy")


def _task(name: str, seed: int) -> Job:
    import torch

    from torchsheaf.examples.paper_tasks import PAPER_TASKS
    from torchsheaf.examples.shipped import digits

    if name in PAPER_TASKS:
        task = PAPER_TASKS[name]
        x, y, held_x, held_y = task.data()
        return Job(task.network(seed), x, y, (held_x, held_y), task.loss)
    generator = torch.Generator().manual_seed(seed)
    x, y, held_x, held_y = digits(generator)
    return Job(_classifier(generator), x.float(), y, (held_x.float(), held_y), "cross_entropy")


def _classifier(generator: torch.Generator) -> nn.Sequential:
    """64–256–256–10, He-normal weights from the generator."""
    from torch import nn

    from torchsheaf.examples.example import he_normal

    net = nn.Sequential(
        nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)
    )
    he_normal(net, generator)
    return net


def _data(text: str) -> tuple[Tensor, ...]:
    from torch import Tensor

    from torchsheaf.network.target import TargetError

    module, _, name = text.partition(":")
    try:
        made = getattr(importlib.import_module(module), name)()
    except Exception as error:  # the user's code: whatever it raises is the answer
        said = f"{type(error).__name__}: {error}"
        raise TargetError(f"--data is {text!r}, which cannot be loaded: {said}") from error
    good = isinstance(made, tuple) and len(made) in (2, 4)
    if not good or not all(isinstance(t, Tensor) for t in made):
        raise TargetError(
            f"--data: {text} returned a {type(made).__name__}; return tensors (x, y) or "
            "(x, y, held_x, held_y)"
        )
    return made


def _optimiser(
    trainer: SheafTrainer, rule: str, name: str | None, rate: float | None
) -> tuple[torch.optim.Optimizer, float]:
    """The least-squares rules carry their own step length, so SGD; the others take Adam."""
    import torch

    from torchsheaf.network.parameters import learns

    solves = rule in ("edge", "recursive")
    kinds: dict[str, Any] = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}
    chosen = kinds[name or ("sgd" if solves else "adam")]
    if rate is None:
        layers = sum(p.ndim > 1 for p in trainer.model.parameters() if learns(p))
        if rule == "edge" and chosen is torch.optim.SGD:
            rate = 1 / max(layers, 1)  # docs/learning.md has the measurements
        elif rule == "recursive" and chosen is torch.optim.SGD:
            rate = 1.0 if layers < 10 else 0.1
        else:
            rate = 0.1 if chosen is torch.optim.SGD else 0.01
    if not 0 < rate < math.inf:
        raise click.BadParameter(f"{rate} is not a positive finite number", param_hint="--rate")
    return chosen(trainer.model.parameters(), lr=rate), rate


def _is_default(ctx: click.Context, name: str) -> bool:
    return ctx.get_parameter_source(name) is ParameterSource.DEFAULT


def _save(model: nn.Module, path: str | Path) -> None:
    from safetensors.torch import save_model

    with writing(path):
        write_file(path, lambda part: save_model(model, str(part)))


def _print(found: dict[str, Any]) -> None:
    console = Console(highlight=False)
    first, last = found["records"][0], found["records"][-1]
    console.print(
        f"rule {found['rule']}, loss {found['loss']}, {found['optimizer']} at {found['rate']:.3g}: "
        f"{found['epochs']} epochs, {found['outcome']}"
    )
    console.print(f"training loss {first['loss']:.4g} → {last['loss']:.4g}")
    text = ", ".join(f"{k} {v:.4g}" for k, v in found["final"].items())
    console.print(f"forward pass on {found['final_on']}: {text}")
