"""`walbus status`: what every room is doing."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from walbus.cli.failures import reporter_of
from walbus.cli.options import ConfigFile, load

_WIDTH_ELSEWHERE = 160  # columns where there is no terminal to measure


def command(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    config: ConfigFile = None,
) -> None:
    """Show slot, log, lag, seeding and consumers; says which rooms are down."""
    settings = load(context, config)
    from walbus.cli.status_report import gather  # noqa: PLC0415 - the other commands need no driver

    report = gather(settings)
    if as_json:
        typer.echo(reporter_of(context).redactor.text(json.dumps(report, default=str, indent=2)))
        return
    from rich.console import Console  # noqa: PLC0415

    from walbus.cli.status_table import table_of  # noqa: PLC0415

    console = Console()
    if not console.is_terminal:
        console.width = _WIDTH_ELSEWHERE
    console.print(table_of(report))
