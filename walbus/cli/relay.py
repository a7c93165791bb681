"""`walbus relay`: the log, over HTTP."""

from __future__ import annotations

from functools import partial

import typer

from walbus.cli.options import ConfigFile, start_room
from walbus.cli.stopping import stop_event
from walbus.credentials import credentials_of


def command(context: typer.Context, config: ConfigFile = None) -> None:
    """Serve the relay log to consumers over HTTP."""
    stop = stop_event()
    settings = start_room(context, config, "relay")
    from walbus.relay import serve_relay  # noqa: PLC0415 - a command loads its own room alone

    serve = partial(
        serve_relay,
        settings.relay_dir,
        settings.relay,
        bootstrap_url=settings.bootstrap_url,
        status_dir=settings.status_dir,
        stop=stop,
    )
    if settings.relay.engine == "kafka":
        from walbus.cli.kafka import cluster_of  # noqa: PLC0415
        from walbus.relay.chain_service import serve_beside  # noqa: PLC0415
        from walbus.relay.kafka.mirror import KafkaMirror  # noqa: PLC0415

        mirror = KafkaMirror(settings.relay_dir, settings.relay, cluster_of(settings), stop=stop)
        serve_beside(mirror.run, stop=stop, serve=serve)
        return
    if not settings.relay.upstream:
        serve()
        return
    from walbus.relay.chain_service import serve_chained  # noqa: PLC0415

    serve_chained(
        settings.relay_dir,
        settings.relay,
        credentials_of(settings.client),
        status_dir=settings.status_dir,
        stop=stop,
        serve=serve,
    )
