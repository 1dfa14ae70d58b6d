"""The command line: one file per verb; parse, call one public function, print, exit by name."""

import click

from torchsheaf.cli.exits import Exit as Exit
from torchsheaf.cli.failures import GuardedGroup

# Per verb: where its command is, and its line in --help. The module is imported when it is called.
VERBS = {
    "demo": (
        "torchsheaf.cli.demo",
        "Train a small classifier, read it as a sheaf, write a report.",
    ),
    "inspect": ("torchsheaf.cli.inspect", "Print the cells of a network as a table."),
    "relax": ("torchsheaf.cli.relax", "Relax random activations along the sheaf heat equation."),
    "report": ("torchsheaf.cli.report", "Write one self-contained HTML page about a network."),
    "pin": ("torchsheaf.cli.pin", "Hold a neuron at a value and see what moves, both ways."),
    "reproduce": ("torchsheaf.cli.checkout", "Run a script of a checkout's reproduce/."),
    "lab": ("torchsheaf.cli.checkout", "Execute a notebook of a checkout's labs/."),
    "train": (
        "torchsheaf.cli.train",
        "Train a model by local rules, with checkpoints that resume.",
    ),
    "precision": ("torchsheaf.cli.precision", "How few bits each operation needs."),
}


@click.group(
    cls=GuardedGroup, verbs=VERBS, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.version_option(package_name="torchsheaf")
@click.option("--debug", is_flag=True, help="Print the traceback of an error.")
def main(debug: bool) -> None:
    """Read PyTorch networks as cellular sheaves: inspect, report, relax, pin, train, precision."""
