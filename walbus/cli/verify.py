"""`walbus verify`: whether the bootstrap's rows are the source's, or a sink's the bootstrap's; and their mending."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Generator, Iterator
from contextlib import closing
from typing import Annotated, Any, Final

import structlog
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from walbus.cli.options import ConfigFile, start_room
from walbus.cli.verify_report import Status, is_left, text_of
from walbus.cli.verify_sink import compared_sink
from walbus.config import Settings
from walbus.errors import ConfigError, StoreError

_log = structlog.get_logger(__name__)

_ANSWER_SECONDS: Final = 20.0  # a bootstrap that runs looks at requests about twice a second
_SILENCE_SECONDS: Final = 30.0
_LOOK_SECONDS: Final = 0.2
_LINE_SECONDS: Final = 10.0  # between two lines of the log where there is no terminal
_FOUND: Final = 3  # exit code: a check found something


def command(  # noqa: PLR0913, PLR0917 - the command's options
    context: typer.Context,
    config: ConfigFile = None,
    table: Annotated[
        list[str] | None, typer.Option("--table", metavar="SCHEMA.NAME", help="Only this table; may be repeated.")
    ] = None,
    sink: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Compare this consumer's sink with the bootstrap instead; it must not run."),
    ] = None,
    repair: Annotated[bool, typer.Option("--repair", help="Mend what differs, in the log, store and sinks.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the outcome as JSON.")] = False,
) -> int:
    """Compare the bootstrap's rows with the source's, while both are written to; or a sink's with the bootstrap's."""
    settings = start_room(context, config, "verify")
    if sink is not None:
        status = compared_sink(settings, sink, table or [], repair=repair)
        return _printed(status, table or [], repair=repair, as_json=as_json)
    if not settings.bootstrap.enabled:
        raise ConfigError("there is no bootstrap", where="bootstrap.enabled", mend="set it to true")
    with closing(_looks(settings, table or [], repair=repair)) as looks:
        status = _told(looks)
    return _printed(status, table or [], repair=repair, as_json=as_json)


def _printed(status: Status, tables: list[str], *, repair: bool, as_json: bool) -> int:
    """Prints the outcome; the exit code."""
    typer.echo(json.dumps(status) if as_json else text_of(status, repair=repair))
    if status["state"] == "failed":
        raise StoreError(f"the comparison did not come to its end: {status['error']}")
    named = set(tables)
    return _FOUND if any(is_left(one, named, repair=repair) for one in status["tables"]) else 0


def _looks(settings: Settings, tables: list[str], *, repair: bool) -> Generator[Status, None, None]:
    """What the bootstrap says of the comparison, again and again, to its end."""
    from walbus.bootstrap.verify_requests import VerifyFolder  # noqa: PLC0415 - a command loads its own room alone

    folder = VerifyFolder(settings.verify_dir)
    request = folder.ask(tables, repair=repair)
    heard, seen = time.monotonic(), None
    try:
        while True:
            status = folder.status(request)
            if status != seen:
                heard, seen = time.monotonic(), status
            if status is not None:
                yield status
                if status["state"] != "running":
                    return
            patience = _ANSWER_SECONDS if status is None else _SILENCE_SECONDS
            if time.monotonic() - heard > patience and not _is_heard(settings):
                raise StoreError(
                    "no bootstrap answers",
                    where=str(settings.verify_dir),
                    mend="start `walbus bootstrap` (or `walbus run`) with this configuration",
                )
            time.sleep(_LOOK_SECONDS)
    finally:
        folder.withdraw(request)


def _is_heard(settings: Settings) -> bool:
    """Whether the bootstrap writes its status file: then it is busy with another request."""
    path = settings.status_dir / "bootstrap.json"
    return path.exists() and time.time() - path.stat().st_mtime < _SILENCE_SECONDS / 3


def _told(looks: Iterator[Status]) -> Status:
    """The last look; on the way there a bar for each table on a terminal, elsewhere lines of the process's log."""
    console = Console(file=sys.stderr)
    return _bars(looks, console) if console.is_terminal else _lines(looks)


def _bars(looks: Iterator[Status], console: Console) -> Status:
    status: Status = {}
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[note]}"))
    with Progress(*columns, console=console) as progress:
        bars: dict[str, Any] = {}
        for status in looks:
            for one in status["tables"]:
                if one["table"] not in bars:
                    bars[one["table"]] = progress.add_task(one["table"], total=None, note="")
                total = one["rows"] if one["state"] == "done" else max(one["rows"], one["rows_estimated"])
                note = f"{one['differing']} differ" if one["differing"] else one["state"]
                progress.update(bars[one["table"]], completed=one["rows"], total=total or 1, note=note)
    return status


def _lines(looks: Iterator[Status]) -> Status:
    status: Status = {}
    said = time.monotonic()
    for status in looks:
        if time.monotonic() - said >= _LINE_SECONDS:
            said = time.monotonic()
            for one in status["tables"]:
                if one["state"] == "running":
                    _log.info("verifying", table=one["table"], rows=one["rows"], of=one["rows_estimated"])
    return status
