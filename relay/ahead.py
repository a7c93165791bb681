"""Clients that are ahead of the log: where a copy took over that was behind, the log has yet to come to their places.

Such a client is answered at once, and told each second that somebody is there. What it is told is its own place, up to
which it says that everything is done. It is not kept for long: another relay may be further, and only a connection that
breaks has a client ask the others again.
"""

from __future__ import annotations

import asyncio

import structlog

from walbus.position import Position
from walbus.records import Flag, Kind, pack_record, read_header
from walbus.relay.delivery import StreamForm, encoders
from walbus.relay.feed import HEARTBEAT_SECONDS, wait_until
from walbus.relay.outlet import Outlet
from walbus.relay.reader import FileLogReader
from walbus.relay.tail import Tail

_log = structlog.get_logger(__name__)

WAIT_SECONDS = 10.0  #: for the log to come to a client's place; less than the silence after which clients give up


def sign_of_life(reader: FileLogReader, form: StreamForm, place: Position) -> bytes:
    """What a stream of a form tells while it waits for a place.

    Raises:
        UsageError: the form's selection names what there is not.
    """
    record = pack_record(
        Kind.PROGRESS,
        flags=Flag.FILTERED,  # no record of the log has it
        epoch=place.epoch,
        commit_lsn=place.commit_lsn,
        first_ordinal=place.ordinal,
        last_ordinal=place.ordinal,
        first_seq=0,
        last_seq=0,
        commit_time=reader.bounds().commit_time,
    )
    renderer, _ = encoders(reader, place, form)
    return renderer.render(read_header(record), record) if renderer is not None else record


async def log_reaches(  # noqa: PLR0913, PLR0917  # what it waits by
    place: Position, reader: FileLogReader, tail: Tail, outlet: Outlet, sign: bytes, stopping: asyncio.Event
) -> bool:
    """Waits for a place on an answer that was opened; False if it was not reached in time, or the server stops.

    Args:
        place: "last done" of a client.
        reader: the log.
        tail: tells when its end has moved.
        outlet: of the answer.
        sign: what it is sent each second.
        stopping: is set when the server stops.

    Raises:
        ConnectionError: the client left.
    """
    loop = asyncio.get_running_loop()
    until, sign_at = loop.time() + WAIT_SECONDS, loop.time()
    while not stopping.is_set() and loop.time() < until:
        moved = tail.moved()
        if reader.bounds().end >= place:
            return True
        if loop.time() >= sign_at:
            outlet.put(sign)
            await outlet.drained()
            sign_at = loop.time() + HEARTBEAT_SECONDS
        await wait_until(moved, min(sign_at, until))
    _log.info("stream_ahead_of_log", position=str(place), end=str(reader.bounds().end), note="the client asks again")
    return False
