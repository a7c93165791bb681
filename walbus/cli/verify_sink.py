"""`walbus verify --sink NAME`: whether a sink's rows are the bootstrap's, and the mending of those that are not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from walbus.cli.consume import unknown_consumer
from walbus.cli.consumers import require_stopped
from walbus.cli.verify_report import Status
from walbus.config import Settings
from walbus.config_consumers import at_one_state, log_address
from walbus.credentials import credentials_of

if TYPE_CHECKING:
    from walbus.consumers.sink_verifying import TableVerdict


def compared_sink(settings: Settings, name: str, tables: list[str], *, repair: bool) -> Status:
    """Compares, and mends if that is wanted; what came of it, in the form that `walbus verify` has for the bootstrap.

    Raises:
        ConfigError: there is no such consumer, or its configuration is wrong.
        UsageError: it runs; and as `verify_sink`.
        WalbusError: as `verify_sink`.
    """
    consumer = settings.consumer.get(name)
    if consumer is None:
        raise unknown_consumer(name, list(settings.consumer))
    require_stopped(settings, name)
    from walbus.consumers.sink_verifying import verify_sink  # noqa: PLC0415 - a command loads its own room alone

    verdicts = verify_sink(
        name,
        consumer,
        relay_url=log_address(settings, at_one_state(consumer)),
        folder=settings.consumer_dir(name),
        tables=tables,
        repair=repair,
        credentials=credentials_of(settings.client, consumer.relay_token),
    )
    return {"state": "done", "error": None, "sink": name, "tables": [_document(one) for one in verdicts]}


def _document(one: TableVerdict) -> Status:
    return {
        "table": one.table,
        "state": "done" if one.reason is None else "skipped",
        "reason": one.reason,
        "position": None if one.position is None else str(one.position),
        "rows": one.rows,
        "differing": one.differing,
        "mended": one.mended,
        "undecided": 0,
        "keys": [{"kind": kind, "key": key} for kind, key in one.keys],
    }
