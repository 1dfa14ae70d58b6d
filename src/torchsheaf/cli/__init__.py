"""The command line: one file per verb; parse, call one public function, print, exit by name."""

import click

from torchsheaf.cli.exits import Exit as Exit
from torchsheaf.cli.failures import GuardedGroup

# One line per verb: where its command is. A verb's module is imported when it is called.
VERBS = {
    "demo": "torchsheaf.cli.demo",
    "inspect": "torchsheaf.cli.inspect",
    "relax": "torchsheaf.cli.relax",
    "report": "torchsheaf.cli.report",
    "pin": "torchsheaf.cli.pin",
    "reproduce": "torchsheaf.cli.checkout",
    "lab": "torchsheaf.cli.checkout",
    "train": "torchsheaf.cli.train",
    "precision": "torchsheaf.cli.precision",
}


@click.group(
    cls=GuardedGroup, verbs=VERBS, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.version_option(package_name="torchsheaf")
@click.option("--debug", is_flag=True, help="Print the traceback of an error.")
def main(debug: bool) -> None:
    """Read PyTorch networks as cellular sheaves: inspect, report, relax, pin, train, precision."""
