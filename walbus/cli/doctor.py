"""`walbus doctor`: checks the source and this machine, and says what mends each finding."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import SecretStr

from walbus.cli.failures import reporter_of
from walbus.cli.options import ConfigFile, chosen_file, load, require_source, secrets_of
from walbus.diagnostics import Redactor, passwords_in

if TYPE_CHECKING:
    from walbus.cli.doctor_report import Report

Admin = Annotated[
    str | None,
    typer.Option(
        "--admin",
        metavar="DSN",
        envvar="WALBUS_ADMIN_DSN",
        show_envvar=True,
        show_default=False,
        help="Who runs the statements of --fix: an owner or superuser of the same database; default source.dsn.",
    ),
]


def command(
    context: typer.Context,
    fix: Annotated[bool, typer.Option("--fix", help="Run the statements that are safe, then check again.")] = False,
    admin: Admin = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    config: ConfigFile = None,
) -> int:
    """Check the source and this machine; print the SQL or setting that mends each finding."""
    settings = load(context, config)
    require_source(settings, "walbus doctor")
    redactor = Redactor([*secrets_of(settings), *passwords_in(admin or "")])
    reporter_of(context).redactor = redactor
    from walbus.cli.doctor_examination import examined  # noqa: PLC0415 - the other commands need no driver
    from walbus.cli.doctor_report import document  # noqa: PLC0415

    report = examined(settings, chosen_file(config), fix=fix, admin=None if admin is None else SecretStr(admin))
    if as_json:
        typer.echo(redactor.text(json.dumps(document(report), indent=2)))
    else:
        _print(report, redactor)
    return report.exit_code


def _print(report: Report, redactor: Redactor) -> None:
    from rich.console import Console  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    from walbus.cli.doctor_report import lines  # noqa: PLC0415

    console = Console(highlight=False)
    for line in lines(report):
        for part in line.wrapped(console):
            starred = redactor.text(part.plain)
            console.print(part if starred == part.plain else Text(starred), soft_wrap=True)
