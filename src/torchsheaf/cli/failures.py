"""Errors → one readable message on stderr and a named exit code."""

import importlib
import sys
import traceback
from collections.abc import Mapping
from typing import Any, NoReturn

import click
from rich.console import Console

from torchsheaf.cli.exits import Exit


class CommandFailed(Exception):
    """A command's own failure with its exit code."""

    def __init__(self, message: str, code: Exit) -> None:
        super().__init__(message)
        self.code = code


def code_of(error: BaseException) -> Exit:
    """The exit code of an error; the most particular class decides."""
    if isinstance(error, CommandFailed):
        return error.code
    if isinstance(error, KeyboardInterrupt):
        return Exit.INTERRUPTED
    from torchsheaf.network import UnsupportedModel
    from torchsheaf.network.target import TargetError
    from torchsheaf.outcome import ConvergenceError

    if isinstance(error, TargetError):
        return Exit.BAD_TARGET
    if isinstance(error, UnsupportedModel):
        return Exit.UNSUPPORTED_MODEL
    if isinstance(error, ConvergenceError):
        return Exit.NOT_CONVERGED
    if isinstance(error, OSError):
        return Exit.BAD_TARGET
    if isinstance(error, ValueError | TypeError):
        return Exit.BAD_INPUT
    return Exit.UNEXPECTED


class GuardedGroup(click.Group):
    """A click group whose commands end with one message and a code, never with a traceback.

    With `--debug` the traceback is printed first. `verbs` says in which module each command is,
    and its line of help; the module is imported when the command is asked for.
    """

    def __init__(self, *args: Any, verbs: Mapping[str, tuple[str, str]], **options: Any) -> None:
        super().__init__(*args, **options)
        self.verbs = verbs

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The verbs, in alphabetical order."""
        return sorted(self.verbs)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of a verb; None for a word that is none."""
        if cmd_name not in self.verbs:
            return None
        module = importlib.import_module(self.verbs[cmd_name][0])
        command: click.Command = getattr(module, cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The verbs with their lines of help; no command is imported for them."""
        with formatter.section("Commands"):
            formatter.write_dl([(verb, self.verbs[verb][1]) for verb in self.list_commands(ctx)])

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; translate what it raises."""
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except (Exception, KeyboardInterrupt) as error:
            fail(error, debug=bool(ctx.params.get("debug")))


def fail(error: BaseException, *, debug: bool) -> NoReturn:
    """Print the error and leave with its code."""
    code = code_of(error)
    if debug:
        traceback.print_exception(error, file=sys.stderr)
    text = str(error).strip() or type(error).__name__
    if isinstance(error, KeyboardInterrupt):
        text = "interrupted"
    if isinstance(error, OSError) and error.filename is not None:
        text = f"cannot read {error.filename}: {error.strerror}"
    if code is Exit.UNEXPECTED:
        text = f"{type(error).__name__}: {text}"
        if not debug:
            text += "\n(this was not foreseen: run `torchsheaf --debug …` for the traceback)"
    elif code is Exit.BAD_INPUT and not isinstance(error, ValueError):
        text = f"{type(error).__name__}: {text}"
    console = Console(stderr=True, highlight=False)
    console.print(f"torchsheaf: {text}", markup=False, style="red", soft_wrap=True)
    raise SystemExit(int(code))
