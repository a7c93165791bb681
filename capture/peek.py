"""A slot read through SQL: looked at, peeked and moved, without ever blocking for long.

`pg_logical_slot_peek_binary_changes` gives the very messages that the walsender would send, and leaves the slot where
it is; `pg_replication_slot_advance` moves it once they are durable. Both decode from restart_lsn, for seconds or
minutes, so neither is waited for in a blocking call: it is sent, then looked after with `poll` and `pump` between
waits, and the caller can stop at any moment. `close` cancels what still runs, or the server would go on with it.

How far a peek may go is looked up before it begins: it ends at the flush LSN of the moment when it began, while the
slot would move to any LSN that is flushed by then, over commits that the peek has not given. Of a slot that is copied
to standbys, only what all of `synchronized_standby_slots` have is read; peek and move would wait for the rest.

Between two statements the slot is anybody's. Whether a peek began where the slot was seen is known once it sends its
rows, by another look from another session: a slot only ever moves forward.

A refusal that leaves the session alive is a `StatementRefused`: the walsender may well be allowed, or able, to do the
same. What it would refuse as well (the publication is gone, the slot is lost) is raised as the error that it is.
"""

from __future__ import annotations

import select
import threading
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, LiteralString, cast

import psycopg
import structlog
from psycopg import pq
from pydantic import SecretStr

from walbus.capture.notices import ASK, Notices
from walbus.capture.refusals import Refusal, meaning, refusal, reported
from walbus.capture.sessions import Session, check_same_server, cut_off, open_session, refused
from walbus.capture.standby_slots import given_up_to
from walbus.capture.steps import Backlog
from walbus.errors import SourceError, SourceGap, SourceUnavailable
from walbus.lsn import format_lsn, parse_lsn
from walbus.native.interface import Core, Drained, Envelope

logger = structlog.get_logger(__name__)

_DOING = "catching up"
#: Seconds that a cancellation, and then the statement's end, may take. Whoever stops waits for it; a statement that is
#: left behind ends by itself as soon as it sends a row.
_CANCEL_SECONDS = 3.0

_LOOK: LiteralString = """
    SELECT to_jsonb(s), pg_current_wal_flush_lsn()::text, (extract(epoch FROM clock_timestamp()) * 1000000)::int8,
           pg_snapshot_xmax(pg_current_snapshot())::text::int8,
           (SELECT p.oid::int8 FROM pg_publication p WHERE p.pubname = %s),
           current_setting('synchronized_standby_slots', true),
           (SELECT t.spill_bytes FROM pg_stat_replication_slots t WHERE t.slot_name = s.slot_name)
    FROM pg_replication_slots s WHERE s.slot_name = %s"""
_PEEK = """
    COPY (SELECT lsn, data FROM pg_catalog.pg_logical_slot_peek_binary_changes('{slot}', '{upto}', NULL,
        'proto_version', '1', 'publication_names', '"{publication}"', 'messages', 'true')) TO STDOUT (FORMAT binary)"""
_ADVANCE = "SELECT end_lsn::text FROM pg_catalog.pg_replication_slot_advance('{slot}', '{upto}')"

_Row = tuple[dict[str, Any], str, int, int, int | None, str, int | None]

#: The first minor version of each whose pg_replication_slot_advance keeps the catalog rows that decoding still needs.
_ADVANCE_IS_SAFE = {14: 140_018, 15: 150_013, 16: 160_009, 17: 170_005}

#: The slot is not what it was when it was looked at: the next connection looks again.
_SLOT_CHANGED = ("42704", "55000")


class StatementRefused(Exception):  # noqa: N818  (an answer, never shown as an error)
    """The server refused a statement, and the session lives.

    Attributes:
        why: in the server's words.
        sqlstate: its code.
    """

    def __init__(self, why: str, sqlstate: str | None) -> None:
        super().__init__(why)
        self.why = why
        self.sqlstate = sqlstate


@dataclass(frozen=True, slots=True)
class Look:
    """The slot and its server at one moment.

    Attributes:
        backlog: what the slot has to give.
        now: the server's clock, Unix microseconds.
        xmax: the server's next transaction id, 64 bits.
        publication: OID of the publication; None if there is none.
        two_phase: whether the slot decodes prepared transactions at PREPARE.
        spilled: bytes that decoding for this slot has ever spilled to the server's disk.
    """

    backlog: Backlog
    now: int
    xmax: int
    publication: int | None
    two_phase: bool
    spilled: int


def look_at(session: Session, slot: str, publication: str) -> Look:
    """A slot as it is now.

    Args:
        session: on the source; not the one that peeks.
        slot: its name.
        publication: its name.

    Raises:
        SourceUnavailable: the slot is gone (the next start says what that means), or the connection broke.
    """
    with refused(_DOING):
        row = session.execute(_LOOK, [publication, slot]).fetchone()
        if row is None:
            raise SourceUnavailable(f"slot {slot} is gone", where=_DOING)
        columns, flushed, now, xmax, oid, standbys, spilled = cast(_Row, row)
        failover = bool(columns.get("failover"))
        end = given_up_to(session, parse_lsn(flushed), failover=failover, standbys=standbys)
    restart, confirmed = columns["restart_lsn"], columns["confirmed_flush_lsn"]
    if restart is None or confirmed is None:
        raise SourceUnavailable(f"slot {slot} keeps no WAL", where=_DOING)
    backlog = Backlog(parse_lsn(restart), parse_lsn(confirmed), end)
    return Look(backlog, now, xmax, oid, bool(columns.get("two_phase")), spilled or 0)


def moves_safely(session: Session) -> bool:
    """Whether this version's pg_replication_slot_advance loses nothing that later decoding needs."""
    version = session.info.server_version
    return version >= _ADVANCE_IS_SAFE.get(version // 10_000, 0)


class Peek:
    """One session for one slot. Not thread-safe.

    Args:
        dsn: where.
        name: `application_name` of the session, if not the usual one.
        slot, publication: their names.

    Raises (from the constructor):
        SourceUnavailable, SourceMisconfigured: the connection could not be had.
    """

    def __init__(self, dsn: SecretStr, name: str | None, slot: str, publication: str) -> None:
        self._session = open_session(dsn, name=name)
        self._notices = Notices(_DOING)
        self._session.add_notice_handler(self._notices)
        try:
            with refused(_DOING):
                self._session.execute(ASK)
        except SourceError:
            self._session.close()
            raise
        self._pgconn = self._session.pgconn
        self._slot = slot
        self._publication = publication
        self._running = False

    def check_same_server(self, session: Session) -> None:
        """Whether a session reached the same server.

        Raises:
            SourceUnavailable: it did not.
        """
        check_same_server(session, self._session)

    # Statements that run for long.

    def begin_peek(self, upto: int) -> None:
        """Sends the COPY of what commits before `upto`; `poll` says when its first row can be had, or is looked for."""
        self._notices.anew()
        self._send(_PEEK, upto)

    def began_at(self, confirmed: int) -> None:
        """The slot was confirmed up to here when the peek began: nothing that commits behind it may be passed over.

        Raises:
            SourceGap: something is, as the server has told already; if it does later, `pump` raises it.
        """
        self._notices.confirmed(confirmed)

    @property
    def decodes(self) -> bool:
        """Whether the server has told from where on the peek decodes."""
        return self._notices.decodes

    def begin_move(self, upto: int) -> None:
        """Sends the slot to `upto`, an LSN that a peek has reached; `poll` says when it is there."""
        self._send(_ADVANCE, upto)

    def _send(self, statement: str, upto: int) -> None:
        text = statement.format(slot=self._slot, publication=self._publication, upto=format_lsn(upto))
        with refused(_DOING):
            self._pgconn.send_query(text.encode())
            self._running = True

    def poll(self) -> bool:
        """Whether the statement has answered: the COPY sends rows from now on, the move is done.

        Raises:
            StatementRefused: the server refused it.
            SourceError: the connection broke, or the server skips rows.
        """
        with refused(_DOING):
            self._pgconn.flush()
            self._pgconn.consume_input()
            if self._pgconn.is_busy():
                return False
            result = self._pgconn.get_result()
        if result is not None and result.status == pq.ExecStatus.COPY_OUT:
            self._notices.check()
            return True
        self._finish(result, pq.ExecStatus.TUPLES_OK)
        return True

    def pump(self, core: Core, limit: int) -> Drained:
        """Hands rows of the COPY that have arrived to a core, until it leaves one or about `limit` bytes were taken.

        Returns:
            As `Core.drain`; a size of 0 means that nothing more has arrived, one below that the COPY is over.

        Raises:
            StatementRefused, SourceError: as for `poll`; what the core took before is good.
        """
        total, consumed = 0, False
        try:
            while True:
                frames = self._pgconn.get_copy_data
                size, left, taken = core.drain(frames, self._notices.fatal, limit - total, Envelope.COPY_ROW)
                total += taken
                if size != 0 or (consumed and taken == 0):
                    break
                self._pgconn.consume_input()
                consumed = True
        except psycopg.Error as error:
            raise refusal(error, _DOING) from None
        self._notices.check()
        if size < 0:
            with refused(_DOING):
                result = self._pgconn.get_result()
            self._finish(result, pq.ExecStatus.COMMAND_OK)
        return Drained(size, left, total)

    def wait(self, timeout: float) -> None:
        """Blocks until something arrived, or until `timeout` seconds have passed."""
        poller = select.poll()
        poller.register(self._session.fileno(), select.POLLIN)
        poller.poll(timeout * 1000)

    def cancel(self) -> None:
        """Ends the statement that runs, if one does; the slot is free and no snapshot is held when this returns.

        A connection that does not answer any more is closed instead.
        """
        if not self._running or self._pgconn.status != pq.ConnStatus.OK:
            return
        self._running = False
        with suppress(psycopg.Error):
            self._session.cancel_safe(timeout=_CANCEL_SECONDS)
            with cut_off(self._session, threading.Event(), _CANCEL_SECONDS):
                self._drain()
            return
        self._session.close()

    def close(self) -> None:
        """Ends the session, and what it runs."""
        self.cancel()
        self._session.close()

    def _drain(self) -> None:
        while (result := self._next_result()) is not None:
            if result.status != pq.ExecStatus.COPY_OUT:
                continue
            while self._pgconn.get_copy_data(0)[0] > 0:
                pass

    def _next_result(self) -> pq.abc.PGresult | None:
        """Blocks for a result; None after the last one."""
        while self._pgconn.is_busy():
            self.wait(1.0)
            self._pgconn.consume_input()
        return self._pgconn.get_result()

    def _finish(self, result: pq.abc.PGresult | None, expected: pq.ExecStatus) -> None:
        """Takes the end of a statement."""
        with refused(_DOING):
            while self._pgconn.get_result() is not None:
                pass
        self._running = False
        self._notices.check()
        if result is None or result.status != expected:
            raise self._refusal(result)

    def _refusal(self, result: pq.abc.PGresult | None) -> Exception:
        told = reported(result) if result is not None else Refusal(None, "")
        error = meaning(told, _DOING)
        if self._pgconn.status != pq.ConnStatus.OK or isinstance(error, SourceGap) or told.state in _SLOT_CHANGED:
            return error
        return StatementRefused(told.text or "no answer", told.state)
