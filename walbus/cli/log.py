"""`walbus log`: looks at the log's files. It reads only, beside a live writer or on a stopped log."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from walbus.cli.options import ConfigFile, load
from walbus.cli.tail import print_changes
from walbus.cli.tail_lines import json_line
from walbus.errors import DamagedRecord, LogError, LogMissing, UnknownFormat, UsageError

if TYPE_CHECKING:
    from walbus.relay.log_dump import Dumped

app = typer.Typer(
    help="Look at the log's files: what is in them, whether they are whole.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_FOUND = 3  # exit code of a check that found something

Folder = Annotated[
    Path | None,
    typer.Argument(
        metavar="[FOLDER]", readable=False, help="The log's folder; default: relay.dir of the configuration."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("info")
def info(context: typer.Context, folder: Folder = None, as_json: AsJson = False, config: ConfigFile = None) -> None:
    """Show bounds, segments, layouts, writer and holds."""
    from walbus.relay.log_info import log_info  # noqa: PLC0415 - the other commands need no log

    chosen = _folder(context, folder, config)
    with _readable(chosen):
        document = log_info(chosen)
    if as_json:
        typer.echo(json.dumps(document, indent=2))
        return
    from walbus.cli.log_text import info_text  # noqa: PLC0415

    typer.echo(info_text(document))


@app.command("check")
def check(context: typer.Context, folder: Folder = None, as_json: AsJson = False, config: ConfigFile = None) -> int:
    """Read every byte of the log, and tell what is not as it has to be (exit code 3)."""
    from walbus.cli.log_text import check_summary, finding_text  # noqa: PLC0415

    chosen = _folder(context, folder, config)
    with _readable(chosen):
        findings, counts = _checked(chosen)
    if as_json:
        typer.echo(json.dumps({"findings": findings, **counts}, indent=2))
    else:
        for finding in findings:
            typer.echo(finding_text(finding))
        typer.echo(check_summary(counts, len(findings)))
    return _FOUND if findings else 0


def _checked(folder: Path) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """The findings, and what was read."""
    from walbus.cli.log_progress import told_progress  # noqa: PLC0415
    from walbus.relay.log_check import LogCheck  # noqa: PLC0415

    try:
        log_check = LogCheck(folder)
    except UnknownFormat:
        raise
    except DamagedRecord as error:  # of the manifest, without which nothing else can be judged
        finding = {"what": error.what, "file": error.where, "segment": None, "offset": None}
        return [finding], {"segments": 0, "records": 0, "bytes": 0, "trimmed_meanwhile": 0}
    with closing(log_check), told_progress("checking the log", log_check.bytes, sys.stderr) as progress:
        findings = [dataclasses.asdict(finding) for finding in log_check.findings(progress)]
    return findings, {
        "segments": log_check.segments,
        "records": log_check.records,
        "bytes": log_check.bytes,
        "trimmed_meanwhile": log_check.trimmed,
    }


@app.command("dump")
def dump(  # noqa: PLR0913, PLR0917 - each option is an argument
    context: typer.Context,
    folder: Folder = None,
    start: Annotated[
        str | None, typer.Option("--from", metavar="P", help="A position, a time, seq:N or earliest.")
    ] = None,
    until: Annotated[str | None, typer.Option(metavar="P", help="A position, a time or seq:N.")] = None,
    segment: Annotated[int | None, typer.Option(metavar="N", min=1, help="Only this segment.")] = None,
    offset: Annotated[
        int | None, typer.Option("--from-offset", metavar="N", min=0, help="Begin at this offset of --segment.")
    ] = None,
    limit: Annotated[int | None, typer.Option(metavar="N", min=1, help="At most this many records.")] = None,
    changes: Annotated[bool, typer.Option("--changes", help="Print the changes, with their rows.")] = False,
    as_json: AsJson = False,
    config: ConfigFile = None,
) -> None:
    """Print records, or with --changes what is in them, one a line."""
    from walbus.cli.log_bounds import parse_log_bound  # noqa: PLC0415
    from walbus.relay import log_dump  # noqa: PLC0415

    if offset is not None and segment is None:
        raise UsageError("an offset lies in one segment", where="--from-offset", mend="name it with --segment")
    first = None if start is None else parse_log_bound(start, "--from")
    last = None if until is None else parse_log_bound(until, "--until")
    chosen = _folder(context, folder, config)
    with _readable(chosen):
        dumped = islice(log_dump.dump(chosen, log_dump.Range(first, last, segment, offset)), limit)
        render = _renderer(chosen, changes=changes, as_json=as_json)
        print_changes(([line] for line in map(render, dumped) if line), json_line, sys.stdout.buffer)


def _renderer(folder: Path, *, changes: bool, as_json: bool) -> Callable[[Dumped], bytes]:
    from walbus.cli import log_text  # noqa: PLC0415
    from walbus.relay.schemas import SchemaFiles  # noqa: PLC0415

    if changes:
        make = log_text.changes_json if as_json else log_text.changes_text
        return make(SchemaFiles(folder))
    return log_text.record_json if as_json else log_text.record_text


def _folder(context: typer.Context, given: Path | None, config: Path | None) -> Path:
    return given if given is not None else load(context, config).relay_dir


@contextmanager
def _readable(folder: Path) -> Iterator[None]:
    """Turns what the file system refuses into one line for an operator."""
    try:
        with os.scandir(folder):
            yield
    except PermissionError as error:
        where = str(error.filename or folder)
        mend = "run it as the user that capture runs as"
        raise LogError("the log cannot be read: permission denied", where=where, mend=mend) from None
    except (FileNotFoundError, NotADirectoryError) as error:
        if Path(str(error.filename)) != folder:
            raise
        raise LogMissing("there is no such folder", where=str(folder), mend="name the folder of a log") from None
