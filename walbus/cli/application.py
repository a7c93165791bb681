"""The command line as a whole, and `main`."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer

from walbus import __version__
from walbus.cli.commands import Commands
from walbus.cli.failures import Reporter, reporter_of, run_reported
from walbus.config import LogConfig
from walbus.diagnostics import configure_logging

app = typer.Typer(
    name="walbus",
    cls=Commands,
    help="Change data capture for PostgreSQL: an ordered, durable, replayable log of committed changes.",
    epilog="Exit codes: 0 done, 1 failed, 2 usage or configuration, 3 a check found something.",
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"walbus {__version__}")
        raise typer.Exit


@app.callback()
def _global_options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", envvar="WALBUS_DEBUG", help="Print the traceback of an unexpected error.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
    else:  # until the command reads a configuration, if it does: stdout is for what was asked for
        configure_logging(LogConfig(), room=context.invoked_subcommand)
    if debug:
        reporter_of(context).debug = True
        os.environ["WALBUS_DEBUG"] = "1"  # for the processes that this one starts


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs one command and exits with its code.

    Args:
        arguments: those behind the program's name; `sys.argv`'s if None.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    reporter = Reporter(sys.stderr)
    code = run_reported(lambda: app(given, prog_name="walbus", standalone_mode=False, obj=reporter), reporter)
    gc.freeze()  # the interpreter would look at all of it once more, which takes a sixth of a short command's time
    sys.exit(code)
