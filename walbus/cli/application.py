"""The commands by name, and `main`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer

from walbus import __version__
from walbus.cli.bootstrap import command as bootstrap
from walbus.cli.capture import command as capture
from walbus.cli.consume import command as consume
from walbus.cli.consumers import app as consumers
from walbus.cli.dead_letters import app as dead_letters
from walbus.cli.demo import command as demo
from walbus.cli.doctor import command as doctor
from walbus.cli.failures import Reporter, reporter_of, run_reported
from walbus.cli.log import app as log
from walbus.cli.promote import command as promote
from walbus.cli.ready import command as ready
from walbus.cli.rebuild import command as rebuild
from walbus.cli.relay import command as relay
from walbus.cli.run import command as run
from walbus.cli.snapshot import command as snapshot
from walbus.cli.status import command as status
from walbus.cli.tail import command as tail
from walbus.cli.token import app as token
from walbus.cli.verify import command as verify
from walbus.config import LogConfig
from walbus.diagnostics import configure_logging

app = typer.Typer(
    name="walbus",
    help="Change data capture for PostgreSQL: an ordered, durable, replayable log of committed changes.",
    epilog="Exit codes: 0 done, 1 failed, 2 usage or configuration, 3 a check found something.",
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("demo")(demo)
app.command("run")(run)
app.command("capture")(capture)
app.command("relay")(relay)
app.command("bootstrap")(bootstrap)
app.command("consume")(consume)
app.command("doctor")(doctor)
app.command("promote")(promote)
app.command("snapshot")(snapshot)
app.command("tail")(tail)
app.command("status")(status)
app.command("ready")(ready)
app.command("verify")(verify)
app.command("rebuild")(rebuild)
app.add_typer(consumers, name="consumers")
app.add_typer(dead_letters, name="dead-letters")
app.add_typer(log, name="log")
app.add_typer(token, name="token")


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
    sys.exit(run_reported(lambda: app(given, prog_name="walbus", standalone_mode=False, obj=reporter), reporter))
