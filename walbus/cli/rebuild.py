"""`walbus rebuild NAME`: a sink's rows anew, beside those that are read, which they then replace at once."""

from __future__ import annotations

from typing import Annotated

import typer

from walbus.cli.consume import unknown_consumer
from walbus.cli.options import ConfigFile, start_room
from walbus.cli.stopping import stop_event
from walbus.config_consumers import log_address
from walbus.credentials import credentials_of
from walbus.errors import UsageError

Name = Annotated[str, typer.Argument(metavar="NAME", help="A [consumer.NAME] of the configuration.")]


def command(
    context: typer.Context,
    name: Name,
    config: ConfigFile = None,
    drop_old: Annotated[
        bool, typer.Option("--drop-old", help="Do nothing but drop what the last rebuild replaced.")
    ] = False,
    discard: Annotated[
        bool, typer.Option("--discard", help="Do nothing but drop the copy of a rebuild that was broken off.")
    ] = False,
) -> None:
    """Fill a copy of a sink from the bootstrap beside the live one, and swap them; the consumer may run meanwhile.

    A rebuild that was broken off is gone on with. What was replaced is kept until --drop-old.
    """
    stop = stop_event()
    settings = start_room(context, config, f"rebuild-{name}")
    consumer = settings.consumer.get(name)
    if consumer is None:
        raise unknown_consumer(name, list(settings.consumer))
    if drop_old and discard:
        raise UsageError("--drop-old and --discard are two things", where="--discard", mend="give one of them")
    from walbus.consumers import rebuilding  # noqa: PLC0415 - a command loads its own room alone

    folder = settings.consumer_dir(name)
    if drop_old:
        dropped = rebuilding.drop_kept(name, consumer, folder, stop)
        typer.echo(f"{name}: {_told(dropped, 'what was replaced is dropped', 'nothing was kept')}")
        return
    if discard:
        dropped = rebuilding.discard(name, consumer, folder, stop)
        typer.echo(f"{name}: {_told(dropped, 'the copy is dropped', 'there is no copy')}")
        return
    swapped = rebuilding.rebuild(
        name,
        consumer,
        relay_url=log_address(settings, consumer),
        folder=folder,
        stop=stop,
        credentials=credentials_of(settings.client, consumer.relay_token),
    )
    if swapped is None:
        typer.echo(f"{name}: stopped; the copy is kept, and the same command goes on with it")
        return
    typer.echo(f"{name} was swapped at {swapped}; `walbus rebuild {name} --drop-old` drops what it replaced")


def _told(dropped: bool | None, done: str, nothing: str) -> str:
    if dropped is None:
        return "stopped; the same command goes on with it"
    return done if dropped else nothing
