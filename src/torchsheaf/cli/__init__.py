"""The command line: one file per verb; parse, call one public function, print, exit by name."""

import click

from torchsheaf.cli.exits import Exit as Exit
from torchsheaf.cli.failures import GuardedGroup
from torchsheaf.cli.inspect import inspect


@click.group(cls=GuardedGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="torchsheaf")
@click.option("--debug", is_flag=True, help="Print the traceback of an error.")
def main(debug: bool) -> None:
    """Read PyTorch networks as cellular sheaves: inspect, report, relax, pin, train."""


# One line per verb.
main.add_command(inspect)
