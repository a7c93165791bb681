"""`walbus bootstrap`: the latest row of every key, over HTTP."""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path

import typer

from walbus.cli.options import ConfigFile, require_source, start_room
from walbus.cli.stopping import stop_event
from walbus.config import Settings
from walbus.log import LogReader, RetentionHold

#: A capture whose status file is older does not run: it replaces the file every second, also while it waits.
_CAPTURE_SECONDS = 60.0


def command(context: typer.Context, config: ConfigFile = None) -> None:
    """Keep the latest row of every key, and serve snapshots to late consumers."""
    stop = stop_event()
    settings = start_room(context, config, "bootstrap")
    require_source(settings, "bootstrap")
    from walbus.bootstrap import run_bootstrap  # noqa: PLC0415 - a command loads its own room alone
    from walbus.bootstrap.allocator import share_arenas  # noqa: PLC0415

    share_arenas()
    with closing(_hold(settings)) as hold:
        run_bootstrap(
            settings.source,
            settings.bootstrap,
            folder=settings.bootstrap_dir,
            reader=lambda: _open_reader(settings),
            log_dir=settings.relay_dir if settings.bootstrap.read_from == "relay" else None,
            hold=hold,
            requests_dir=settings.requests_dir,
            verify_dir=settings.verify_dir,
            differences_dir=None if settings.relay.upstream else settings.differences_dir,
            differences_taken=lambda: _takes_differences(settings),
            status_path=settings.status_dir / "bootstrap.json",
            stop=stop,
        )


def _open_reader(settings: Settings) -> LogReader:
    if settings.bootstrap.read_from == "kafka":
        from walbus.cli.kafka import open_bootstrap_reader  # noqa: PLC0415

        return open_bootstrap_reader(settings)
    from walbus.relay import open_reader  # noqa: PLC0415

    return open_reader(settings.relay_dir)


def _hold(settings: Settings) -> RetentionHold:
    from walbus.bootstrap.file_hold import HOLD_FILE, FileHold  # noqa: PLC0415

    if settings.bootstrap.read_from == "kafka":
        from walbus.cli.kafka import open_hold  # noqa: PLC0415

        return open_hold(settings, settings.holds_dir / HOLD_FILE)
    return FileHold(settings.holds_dir)


def _takes_differences(settings: Settings) -> bool:
    """Whether a capture takes net differences from the folder here: that of a log on a cluster may run anywhere."""
    if settings.relay.engine == "file":
        return True
    return _age(settings.status_dir / "capture.json") < _CAPTURE_SECONDS


def _age(path: Path) -> float:
    """Seconds since a file was written; infinite if there is none."""
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return float("inf")
