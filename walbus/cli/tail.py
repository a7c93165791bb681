"""`walbus tail`: changes, one a line."""

from __future__ import annotations

import enum
import os
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Annotated, BinaryIO

import typer

from walbus.cli.options import ConfigFile, load
from walbus.cli.tail_lines import Render, json_line, pretty_line
from walbus.cli.tail_place import Bound, TailRequest, parse_bound
from walbus.config import LogConfig, checked_patterns
from walbus.credentials import credentials_from_environment, credentials_of
from walbus.diagnostics import configure_logging
from walbus.errors import UsageError


class Format(enum.StrEnum):
    """How a change is written."""

    JSON = "json"
    PRETTY = "pretty"


def command(  # noqa: PLR0913, PLR0917 - each option is an argument
    context: typer.Context,
    tables: Annotated[list[str] | None, typer.Argument(metavar="[TABLE]...", help="schema.table or schema.*")] = None,
    start: Annotated[
        str | None,
        typer.Option("--from", metavar="P", help="A position, a time, earliest or latest.", show_default=False),
    ] = None,
    until: Annotated[
        str | None,
        typer.Option(metavar="P", help="A position, a time or latest; follows without end if not given."),
    ] = None,
    form: Annotated[
        Format | None,
        typer.Option("--format", help="Default: pretty on a terminal, json elsewhere.", show_default=False),
    ] = None,
    url: Annotated[str | None, typer.Option(metavar="URL", help="The relay; else the configuration's.")] = None,
    complete: Annotated[bool, typer.Option("--complete", help="Whole rows, before and behind each change.")] = False,
    config: ConfigFile = None,
) -> None:
    """Print changes as they are committed, one a line."""
    request = _request(tables or [], start, until, complete=complete)
    if url is None:
        settings = load(context, config)
        address, log_config, credentials = settings.relay_url, settings.log, credentials_of(settings.client)
    else:
        address, log_config, credentials = url.rstrip("/"), LogConfig(), credentials_from_environment()
    chosen = form or (Format.PRETTY if sys.stdout.isatty() else Format.JSON)
    render = json_line if chosen is Format.JSON else pretty_line(colour=sys.stdout.isatty())
    configure_logging(log_config, room="tail")
    from walbus.cli.tail_stream import batches  # noqa: PLC0415 - the other commands need no HTTP client

    with suppress(KeyboardInterrupt):  # the usual end of following
        print_changes(
            batches(address, request, credentials, now=time.time, sleep=time.sleep), render, sys.stdout.buffer
        )


def print_changes(changes: Iterable[list[bytes]], render: Render, out: BinaryIO) -> None:
    """Writes changes until there are no more, or nobody reads (`walbus tail | head`).

    Args:
        changes: JSON lines in batches; each batch is flushed.
        render: makes the line to print.
        out: takes the lines.
    """
    try:
        for batch in changes:
            out.writelines(render(line) + b"\n" for line in batch)
            out.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that exiting has nothing left to flush


def _request(tables: list[str], start: str | None, until: str | None, *, complete: bool) -> TailRequest:
    bound: Bound | None = None if until is None else parse_bound(until, "--until", words=("latest",))
    default = "latest" if until is None else "earliest"
    first = parse_bound(start or default, "--from", words=("earliest", "latest"))
    return TailRequest(_checked(tables), first, bound, complete)


def _checked(tables: list[str]) -> tuple[str, ...]:
    if not tables:
        return ()
    try:
        return checked_patterns(tuple(tables))
    except ValueError as error:
        raise UsageError(str(error), where="TABLE", mend="write it as in public.orders") from None
