"""How far back the bootstrap server has the log's changes with whole rows.

A consumer that asks for these reads the log at the bootstrap and not at the relay, with the same positions. There it
may begin later. So the log, as the consumer is told of it, begins where both have it: a position before that is treated
as one that the log no longer holds.
"""

from __future__ import annotations

from dataclasses import replace

from walbus.consumers.peers import RowsPeer
from walbus.consumers.steps import LogSeen
from walbus.consumers.subscribed import Subscribed
from walbus.consumers.transport import LogMismatch, NotReady


def complete_log(bootstrap: RowsPeer, asked: Subscribed, log: LogSeen) -> LogSeen:
    """What the relay said of its log, as far as the bootstrap has that complete.

    Raises:
        RequestRefused: the bootstrap does not complete the changes of these tables.
        NotReady: it follows another log.
        RelayUnavailable: it does not answer.
    """
    try:
        begin = bootstrap.complete_from(log.log_id, asked.tables, asked.narrowing.of_stream())
    except LogMismatch as error:
        raise NotReady(error.what, where=error.where) from None
    return replace(log, trimmed=max(log.trimmed, begin))
