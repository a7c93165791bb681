"""`walbus snapshot`: seeds tables again now, and says how far that is; all of them behind a slot that was lost."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from walbus.cli.options import ConfigFile, start_room
from walbus.cli.reconciling import consent
from walbus.cli.snapshot_progress import SeedingWatch, told_seeding
from walbus.config import Settings
from walbus.errors import ConfigError, StoreError, UsageError

#: Seconds in which a bootstrap that runs answers; it looks at requests about every second.
_ANSWER_SECONDS = 20.0
_LOOK_SECONDS = 0.25


def command(  # noqa: PLR0913, PLR0917  (its options)
    context: typer.Context,
    tables: Annotated[
        list[str] | None,
        typer.Argument(metavar="TABLE...", help="SCHEMA.NAME of published tables.", show_default=False),
    ] = None,
    config: ConfigFile = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until they are consistent.")] = True,
    reconcile: Annotated[
        bool, typer.Option("--reconcile", help="Let capture go on behind a slot that was lost; all tables are read.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="With --reconcile: although nothing seems to be lost.")
    ] = False,
) -> None:
    """Read tables from the source again, beside the rows that are served until the new ones are consistent.

    A part of a table is kept by a row filter of the publication (ALTER PUBLICATION ... SET TABLE ... WHERE).
    """
    settings = start_room(context, config, "snapshot")
    if reconcile:
        if tables:
            raise UsageError("a lost slot concerns every table", mend="leave the tables out")
        consent(settings, force=force)
        return
    if not tables:
        raise UsageError("which tables", mend="name them as SCHEMA.NAME, or give --reconcile behind a lost slot")
    if not settings.bootstrap.enabled:
        raise ConfigError("there is no bootstrap", where="bootstrap.enabled", mend="set it to true")
    generations = _ask(settings, list(dict.fromkeys(tables)))
    for table, generation in sorted(generations.items()):
        typer.echo(f"{table}: generation {generation}")
    if wait:
        told_seeding(SeedingWatch(settings.status_dir / "bootstrap.json", generations))


def _ask(settings: Settings, tables: list[str]) -> dict[str, int]:
    from walbus.bootstrap.requests import RequestFolder  # noqa: PLC0415 - a command loads its own room alone

    folder = RequestFolder(settings.requests_dir)
    request = folder.ask(tables)
    deadline = time.monotonic() + _ANSWER_SECONDS
    try:
        while (answer := folder.answer(request)) is None:
            if time.monotonic() > deadline:
                raise StoreError(
                    f"no bootstrap took the request within {_ANSWER_SECONDS:.0f} s",
                    where=str(settings.requests_dir),
                    mend="start `walbus bootstrap` (or `walbus run`) with this configuration",
                )
            time.sleep(_LOOK_SECONDS)
    finally:
        folder.withdraw(request)
    return answer
