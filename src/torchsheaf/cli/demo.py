"""`torchsheaf demo`: train a small classifier, analyse it, write the page."""

import click
from rich.console import Console
from rich.text import Text

from torchsheaf.cli.loading import one_thread, progress_bar, seed_option
from torchsheaf.cli.report import publish, stages
from torchsheaf.cli.writing import writable

NAME = "digits-mlp"


@click.command()
@click.option(
    "-o", "--out", default="torchsheaf-report.html", show_default=True, metavar="FILE",
    help="Where to write the page.",
)  # fmt: skip
@seed_option
def demo(out: str, seed: int) -> None:
    """Train a small digit classifier, read it as a sheaf, and write a report about it."""
    path = writable(out)
    from torchsheaf import examples
    from torchsheaf.report import analyse, render

    example = examples.EXAMPLES[NAME]
    console = Console(stderr=True, highlight=False)
    console.print(Text(f"{NAME}: {example.summary}"))
    with progress_bar() as bar, one_thread():
        task = bar.add_task("training", total=example.epochs)
        trained = examples.load(
            NAME, seed=seed, progress=lambda done, _: bar.update(task, completed=done)
        )
    with stages() as progress, one_thread():
        analysis = analyse(
            trained.model, trained.x, trained.y, seed=seed, progress=progress,
            title="A small network that reads handwritten digits",
        )  # fmt: skip
        page = render(analysis)
    publish(analysis, page, path)
