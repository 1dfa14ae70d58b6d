"""The command line: one file per verb; parse, call one public function, print, exit by name."""

import click

from torchsheaf.cli.checkout import lab, reproduce
from torchsheaf.cli.demo import demo
from torchsheaf.cli.exits import Exit as Exit
from torchsheaf.cli.failures import GuardedGroup
from torchsheaf.cli.inspect import inspect
from torchsheaf.cli.pin import pin
from torchsheaf.cli.precision import precision
from torchsheaf.cli.relax import relax
from torchsheaf.cli.report import report
from torchsheaf.cli.train import train


@click.group(cls=GuardedGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="torchsheaf")
@click.option("--debug", is_flag=True, help="Print the traceback of an error.")
def main(debug: bool) -> None:
    """Read PyTorch networks as cellular sheaves: inspect, report, relax, pin, train, precision."""


# One line per verb.
main.add_command(demo)
main.add_command(inspect)
main.add_command(relax)
main.add_command(report)
main.add_command(pin)
main.add_command(reproduce)
main.add_command(lab)
main.add_command(train)
main.add_command(precision)
