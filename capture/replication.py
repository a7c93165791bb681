"""The walsender's connection: the only module that knows psycopg's low-level COPY BOTH calls.

`Cursor.copy()` of psycopg refuses COPY BOTH, so from START_REPLICATION on everything goes through `PGconn`, without
blocking: `receive` gives the next frame or None, `send` queues one, and `wait` blocks until the socket is ready.

What the server tells between the frames (`notices`) is raised by `receive` before the next frame, so nothing behind it
can be confirmed.
"""

from __future__ import annotations

import select
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

import psycopg
import structlog
from psycopg import pq
from pydantic import SecretStr

from walbus.capture.notices import ASK, Notices
from walbus.capture.pgoutput_options import PgoutputOptions
from walbus.capture.refusals import meaning, refusal, reported
from walbus.capture.sessions import Session, open_session, refused
from walbus.capture.timelines import Timelines, parse_history
from walbus.capture.verification import SystemIdentity
from walbus.errors import SourceError, SourceUnavailable
from walbus.lsn import parse_lsn
from walbus.native import spool_rows
from walbus.native.interface import Drained

if TYPE_CHECKING:
    from walbus.capture.plain_frames import PlainFrames

logger = structlog.get_logger(__name__)

_DOING = "streaming"
_START_SECONDS = 60.0
#: What has arrived is read on while each read brings so many bytes: whoever is faster than the walsender would else
#: follow it message by message.
WORTH_READING = 4096


class Walsender:
    """One replication connection; streams after `start`. Not thread-safe.

    Args:
        dsn: where.
        name: its `application_name`, if not the usual one.

    Raises (from the constructor):
        SourceUnavailable, SourceMisconfigured: the connection could not be had.
    """

    def __init__(self, dsn: SecretStr, name: str | None = None) -> None:
        self._session = open_session(dsn, replication=True, name=name)
        self._notices = Notices(_DOING)
        self._session.add_notice_handler(self._notices)
        self._pgconn = self._session.pgconn
        self._socket = self._session.fileno()
        self._unsent = False
        # The socket does not tell of what TLS has decrypted and libpq did not fetch yet; one more try gets it.
        self._tries = 2 if self._pgconn.ssl_in_use else 1

    @property
    def session(self) -> Session:
        """For SQL before `start`."""
        return self._session

    def fileno(self) -> int:
        """The connection's socket."""
        return self._socket

    def identify(self) -> SystemIdentity:
        """Which cluster, timeline and database this is."""
        with refused("IDENTIFY_SYSTEM"):
            row = self._session.execute("IDENTIFY_SYSTEM").fetchone()
        if row is None:
            raise SourceUnavailable("IDENTIFY_SYSTEM gave no answer")
        return SystemIdentity(str(row[0]), cast(int, row[1]), parse_lsn(str(row[2])), str(row[3]))

    def timelines(self, current: int) -> Timelines:
        """The history of the server's timeline."""
        if current == 1:
            return Timelines(1)
        with refused("TIMELINE_HISTORY"):
            cursor = self._session.cursor(binary=False)
            cursor.execute(f"TIMELINE_HISTORY {int(current)}".encode())
            result = cursor.pgresult
        content = result.get_value(0, 1) if result is not None else None
        return parse_history(current, content or b"")

    def timeout_seconds(self) -> float:
        """`wal_sender_timeout`; 0 means that the server never gives up."""
        with refused("reading wal_sender_timeout"):
            query = "SELECT setting::float8 / 1000 FROM pg_settings WHERE name = 'wal_sender_timeout'"
            row = self._session.execute(query).fetchone()
        return cast(float, row[0]) if row else 0.0

    def set_failover(self, slot: str, failover: bool) -> None:
        """Says whether the slot is copied to standbys (from PostgreSQL 17 on); the slot must be free.

        Raises:
            SlotInUse: another session streams from it.
            SourceError: the server refused.
        """
        with refused(f"changing slot {slot}"):
            self._session.execute(f'ALTER_REPLICATION_SLOT "{slot}" (FAILOVER {str(failover).lower()})'.encode())

    @property
    def server_version(self) -> int:
        """As libpq numbers it, 180004."""
        return self._session.info.server_version

    def start(self, slot: str, publication: str, options: PgoutputOptions) -> None:
        """Begins to stream from where the slot is confirmed.

        The log's end is not given as the place to begin: what it has is sent again and compared, which is how a
        history that is not the log's is noticed.

        Raises:
            SlotInUse: another session streams from it.
            SourceError: the server refused.
        """
        with refused(_DOING):
            self._session.execute(ASK)
        command = f'START_REPLICATION SLOT "{slot}" LOGICAL 0/0 {options.sql(publication)}'
        with refused(_DOING):
            self._pgconn.send_query(command.encode())
            while self._pgconn.flush() or self._pgconn.is_busy():
                self._until_ready(_START_SECONDS, writing=True)
                self._pgconn.consume_input()
            result = self._pgconn.get_result()
            if result is None or result.status != pq.ExecStatus.COPY_BOTH:
                raise self._ended(result)
            self._pgconn.nonblocking = 1

    def began_at(self, confirmed: int) -> None:
        """The slot was confirmed up to here when the stream began: nothing that commits behind it may be passed over.

        Raises:
            SourceGap: something is, as the server has told already; if it does later, `receive` and `pump` raise it.
        """
        self._notices.confirmed(confirmed)

    @property
    def decodes(self) -> bool:
        """Whether the server has told from where on it decodes; what it says of its progress before means nothing."""
        return self._notices.decodes

    @property
    def searches(self) -> bool:
        """Whether the server has told that it looks for a place to decode from."""
        return self._notices.searches

    def receive(self) -> bytes | None:
        """The next frame; None when none has arrived.

        Raises:
            SourceError: the connection broke, or the server ended it or reported an error.
        """
        try:
            size, view = self._pgconn.get_copy_data(1)
            if size == 0:
                self._pgconn.consume_input()
                size, view = self._pgconn.get_copy_data(1)
        except psycopg.Error as error:
            raise refusal(error, _DOING) from None
        self._check_end(size)
        return bytes(view) if size > 0 else None

    def pump(self, frames: PlainFrames, limit: int) -> Drained:
        """Hands over what has arrived, until a frame is left or about `limit` bytes were taken.

        Returns:
            As `PlainFrames.drain`; a size of 0 means that hardly anything more has arrived.

        Raises:
            SourceError: as `receive`; what was taken before is good.
        """
        next_frame, alarm = self._pgconn.get_copy_data, self._notices.fatal
        return self._pumped(lambda left: frames.drain(next_frame, alarm, left), limit)

    def pump_rows(self, sink: bytearray, limit: int) -> Drained:
        """As `pump`, but rows of a streamed transaction's block, as entries of its spool."""
        frames, alarm = self._pgconn.get_copy_data, self._notices.fatal
        return self._pumped(lambda left: spool_rows(frames, alarm, left, sink), limit)

    def _pumped(self, drain: Callable[[int], Drained], limit: int) -> Drained:
        total = meagre = 0
        try:
            while True:
                size, left, taken = drain(limit - total)
                total += taken
                meagre = 0 if taken >= WORTH_READING else meagre + 1
                if size != 0 or meagre > self._tries:
                    break
                self._pgconn.consume_input()
        except psycopg.Error as error:
            raise refusal(error, _DOING) from None
        self._check_end(size)
        return Drained(size, left, total)

    def _check_end(self, size: int) -> None:
        """Raises what ended the stream, if anything did."""
        self._notices.check()
        if size < 0:
            raise self._ended(self._pgconn.get_result())

    def send(self, frame: bytes) -> None:
        """Queues a frame, and sends as much as the socket takes now."""
        with refused(_DOING):
            self._pgconn.put_copy_data(frame)
            self._unsent = self._pgconn.flush() == 1

    def wait(self, timeout: float) -> None:
        """Blocks until something arrived, or until `timeout` seconds have passed."""
        self._until_ready(timeout, writing=self._unsent)
        if self._unsent:
            with refused(_DOING):
                self._unsent = self._pgconn.flush() == 1

    def close(self) -> None:
        """Ends the connection; what was sent before is delivered first, as TCP does."""
        self._session.close()

    def _until_ready(self, timeout: float, *, writing: bool) -> None:
        poller = select.poll()
        poller.register(self._socket, select.POLLIN | (select.POLLOUT if writing else 0))
        poller.poll(timeout * 1000)

    def _ended(self, result: pq.abc.PGresult | None) -> SourceError:
        if result is None or result.status not in (pq.ExecStatus.FATAL_ERROR, pq.ExecStatus.BAD_RESPONSE):
            return SourceUnavailable("the server ended the stream", where=_DOING)
        return meaning(reported(result), _DOING)
