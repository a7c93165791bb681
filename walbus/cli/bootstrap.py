"""`walbus bootstrap`: the latest row of every key, over HTTP."""

from __future__ import annotations

import typer

from walbus.cli.options import ConfigFile, require_source, start_room
from walbus.cli.stopping import stop_event


def command(context: typer.Context, config: ConfigFile = None) -> None:
    """Keep the latest row of every key, and serve snapshots to late consumers."""
    stop = stop_event()
    settings = start_room(context, config, "bootstrap")
    require_source(settings, "bootstrap")
    from walbus.bootstrap import run_bootstrap  # noqa: PLC0415 - a command loads its own room alone
    from walbus.bootstrap.allocator import share_arenas  # noqa: PLC0415
    from walbus.relay import open_reader  # noqa: PLC0415

    share_arenas()
    run_bootstrap(
        settings.source,
        settings.bootstrap,
        folder=settings.bootstrap_dir,
        reader=lambda: open_reader(settings.relay_dir),
        log_dir=settings.relay_dir,
        holds_dir=settings.holds_dir,
        requests_dir=settings.requests_dir,
        verify_dir=settings.verify_dir,
        differences_dir=None if settings.relay.upstream else settings.differences_dir,
        status_path=settings.status_dir / "bootstrap.json",
        stop=stop,
    )
