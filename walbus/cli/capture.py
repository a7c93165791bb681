"""`walbus capture`: from the source's WAL into the relay log."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable
from contextlib import closing

import typer

from walbus.cli.options import ConfigFile, start_room
from walbus.cli.stopping import stop_event
from walbus.config import Settings
from walbus.errors import ConfigError, LogMissing, SourceMisconfigured, SourceUnavailable
from walbus.log import LogWriter, SourceIdentity, StandbyBound


def command(context: typer.Context, config: ConfigFile = None) -> None:
    """Read the source's changes into the relay log (one process a log)."""
    stop = stop_event()
    capture(start_room(context, config, "capture"), stop)


def capture(settings: Settings, stop: threading.Event) -> None:
    """Runs capture until it is told to stop.

    Raises:
        SourceError: the source is misconfigured, or lost what the log needs.
        LogError: the log is damaged, of another source, or in use; a cluster that does not answer is waited for.
    """
    from walbus.capture import (  # noqa: PLC0415 - a command loads its own room alone
        CATALOG_FILE,
        ask_for_short_slices,
        opened,
        run_capture,
    )
    from walbus.relay.standbys import hold_for  # noqa: PLC0415

    relay = settings.relay
    _check_standbys(settings)
    ask_for_short_slices()  # before there are other threads
    status_path = settings.status_dir / "capture.json"
    log = opened(lambda: _open_log(settings), settings.source, stop=stop, status_path=status_path)
    if log is None:
        return
    writer, term = log
    gc.freeze()  # what was loaded stays until the end: the collector need not look at it, nor take it apart at the exit
    with closing(writer):
        hold_for(settings.relay_dir, relay.required_standbys)
        run_capture(
            settings.source,
            writer,
            spool_dir=settings.spool_dir,
            stop=stop,
            status_path=status_path,
            catalog_path=settings.relay_dir / CATALOG_FILE,
            differences_dir=settings.differences_dir,
            term=term,
            standbys=_standbys(settings, writer),
        )


def _open_log(settings: Settings) -> tuple[LogWriter, int]:
    """The log that is written, and its term."""
    from walbus.relay import open_writer  # noqa: PLC0415
    from walbus.relay.promotion import check_not_a_copy  # noqa: PLC0415

    relay = settings.relay
    if relay.engine == "kafka":  # where no copy takes over: the log stays where it is
        from walbus.cli.kafka import check_topics_apart, open_log  # noqa: PLC0415

        identity = _identity(settings)
        check_topics_apart(settings)
        return open_log(settings, identity), 1
    lineage = check_not_a_copy(settings.relay_dir)
    writer = open_writer(
        settings.relay_dir,
        _identity(settings),
        segment_bytes=relay.segment_bytes,
        retention_hours=relay.retention_hours,
        retention_bytes=relay.retention_bytes,
        compression_level=relay.compression_level if relay.compression == "zstd" else None,
    )
    return writer, lineage.term


def _check_standbys(settings: Settings) -> None:
    """What does not go together with chaining.

    Raises:
        ConfigError: names the keys.
    """
    if settings.relay.upstream:
        raise ConfigError(
            "the log is copied from another relay, so capture does not write it",
            where="key relay.upstream",
            mend="take it out, after `walbus promote` if this relay is to take over",
        )
    if settings.source.two_phase and settings.relay.required_standbys:
        raise ConfigError(
            "transactions that are prepared lie in the spool of this machine, where no standby has them",
            where="keys source.two_phase and relay.required_standbys",
            mend="take one of them out",
        )


def _standbys(settings: Settings, log: LogWriter) -> Callable[[], StandbyBound] | None:
    """What the required standbys hold, by their reports to the relay; None where none is required."""
    from walbus.relay.standbys import confirmable  # noqa: PLC0415

    required = settings.relay.required_standbys
    if not required:
        return None
    return lambda: confirmable(settings.relay_dir, required, time.time(), log.bounds().end.epoch)


def _identity(settings: Settings) -> SourceIdentity:
    """The source's identity.

    A source that does not answer is waited for only if it ever did: where there is no log yet, its address is taken
    for wrong, so that a typing error ends a first start at once instead of being tried for ever.
    """
    from walbus.capture import identify  # noqa: PLC0415

    try:
        return identify(settings.source)
    except SourceUnavailable as error:
        known = _known_identity(settings)
        if known is None:
            raise SourceMisconfigured(error.what, where=error.where, mend=error.mend) from None
        return known


def _known_identity(settings: Settings) -> SourceIdentity | None:
    """The identity that the log was made for; None if there is no log."""
    from walbus.relay import open_reader  # noqa: PLC0415

    try:
        if settings.relay.engine == "kafka":
            from walbus.cli.kafka import open_log_reader  # noqa: PLC0415

            with closing(open_log_reader(settings)) as kafka_reader:
                return kafka_reader.source
        with closing(open_reader(settings.relay_dir)) as reader:
            return reader.source
    except LogMissing:
        return None
