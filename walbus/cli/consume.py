"""`walbus consume NAME`: keep one sink in step."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Annotated

import typer

from walbus.cli.options import ConfigFile, start_room
from walbus.cli.stopping import stop_event
from walbus.config_consumers import log_address
from walbus.credentials import credentials_of
from walbus.errors import ConfigError


def command(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="A [consumer.NAME] of the configuration.")],
    config: ConfigFile = None,
) -> None:
    """Keep the sink of one consumer in step with the source."""
    stop = stop_event()
    settings = start_room(context, config, f"consumer-{name}")
    consumer = settings.consumer.get(name)
    if consumer is None:
        raise unknown_consumer(name, list(settings.consumer))
    from walbus.consumers import run_consumer  # noqa: PLC0415 - a command loads its own room alone

    run_consumer(
        name,
        consumer,
        relay_url=log_address(settings, consumer),
        folder=settings.consumer_dir(name),
        status_path=settings.status_dir / f"consumer-{name}.json",
        stop=stop,
        credentials=credentials_of(settings.client, consumer.relay_token),
    )


def unknown_consumer(name: str, known: Sequence[str]) -> ConfigError:
    """The error for a consumer that the configuration does not have."""
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        mend = f"did you mean {close[0]}?"
    elif known:
        mend = f"the configuration has {', '.join(known)}"
    else:
        mend = f"write a section [consumer.{name}]"
    return ConfigError(f"there is no consumer {name!r}", where=f"key consumer.{name}", mend=mend)
