"""The catalog, looked at about every second from a thread of its own.

The stream says nothing of tables without changes, of a publication that loses tables, of new tables that match the
configuration, and of statements that change rows without writing them (`walbus.capture.silent`). A thread, since a
statement may wait for a lock or for a server that hangs, and the stream must not.

A look is cheap as long as nothing was altered: where stands the source, and one fingerprint of the catalog; neither is
asked for more while no transaction has run since the last look. Only another fingerprint makes it read the whole.

The thread only looks, and adds new tables to the publication; what it found is taken by the loop with `take`. Tables
that must be seeded again are a `Due`: the loop writes its events once the log has passed `Due.lsn`, says so with
`told`, and only then the state is remembered.
"""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import structlog

from walbus.capture.attached import without_rows
from walbus.capture.catalog import Moment, fingerprint, read_moment, read_state
from walbus.capture.definition import CatalogState
from walbus.capture.prepared_ends import PreparedEnds
from walbus.capture.publication import Completion, matched_tables
from walbus.capture.regrouped import LOOKS_AGAIN_SINCE, regrouped
from walbus.capture.remembered import Remembered
from walbus.capture.retention import RetentionWatch
from walbus.capture.sessions import Session, open_session, refused
from walbus.capture.silent import Reseed, attached, differences, with_former_names, with_partitioned
from walbus.capture.unnumbered import Look
from walbus.config import SourceConfig
from walbus.errors import Directive, directive_of
from walbus.schema import TableSchema

logger = structlog.get_logger(__name__)

#: Seconds between two looks; more when a look takes long, so that it costs at most a twentieth of the time, up to a
#: bound: what is altered meanwhile is told that much later.
PERIOD, LONGEST_PERIOD = 1.0, 15.0
_SHARE = 20.0
#: Milliseconds that a statement waits for a lock (a published table that is altered): well below deadlock_timeout.
LOCK_MILLISECONDS = 300
#: Seconds that a look may go on when the watch is closed.
CLOSE_SECONDS = 2.0
#: Readings of a catalog whose tables leave the publication faster than it is read; the next look goes on.
_READINGS = 3
#: Seconds after which everything is read although the fingerprint is the same: privileges are not in it.
WHOLE_PERIOD = 60.0


@dataclass(frozen=True, slots=True, eq=False)
class Due:
    """Tables that must be seeded again, and when that may be said.

    Attributes:
        lsn: whatever was written under the older definitions commits before it, or is listed in `snapshot`.
        snapshot: text of `pg_current_snapshot()` behind the look: a transaction that runs in it may have written under
            the older definition of the publication, so a reader of the table needs a snapshot that sees it.
        reseeds: the tables.
        state: the catalog as it is once they are told.
        regrouped: the server goes on to publish partitions as they were (`walbus.capture.regrouped`), so nothing may
            follow the events but what a session sends that began at or behind `lsn`.
    """

    lsn: int
    snapshot: str
    reseeds: tuple[Reseed, ...]
    state: CatalogState
    regrouped: bool = False


@dataclass(frozen=True)
class Found:
    """What the looks since the last `take` found.

    Attributes:
        publication: OID of the publication; None if there is none.
        xmax: the next transaction id, 64 bits.
        tables: number of published tables.
        look: when the last one was.
        layouts: unnumbered layouts that are new or others.
        due: tables that must be seeded again, until `told`.
    """

    publication: int | None
    xmax: int
    tables: int
    look: Look
    layouts: tuple[TableSchema, ...] = ()
    due: Due | None = None


class CatalogWatch:
    """Looks at the catalog until it is closed.

    Args:
        source: where, and which publication and tables.
        known: OIDs of the tables that the log knows.
        remembered: what was told before.
        builtin_types: names of the types that every database has, by OID.
        completion: adds tables to the publication.
        retention: looks at the slot on the same session.
        ends: looks at the prepared transactions on it.
        pending: what an earlier connection found and left to this one to tell.
    """

    def __init__(  # noqa: PLR0913, PLR0917  (what it looks at, and what it knows already)
        self,
        source: SourceConfig,
        known: Iterable[int],
        remembered: Remembered,
        builtin_types: Mapping[int, str],
        completion: Completion,
        retention: RetentionWatch,
        ends: PreparedEnds,
        pending: Due | None = None,
    ) -> None:
        self._source = source
        self._known = set(known)
        self.remembered = remembered  #: what was told
        self._builtin_types = dict(builtin_types)
        self._completion = completion
        self._retention = retention
        self._ends = ends
        self._closed = threading.Event()
        self._left_alone = threading.Event()  # closed while a statement hung: the next connection's watch goes on
        self._lock = threading.Lock()
        self._found: Found | Exception | None = None
        self._thread = threading.Thread(target=self._run, name="catalog-watch", daemon=True)
        # Of the thread alone:
        self._state: CatalogState | None = None  # as last read
        self._pending = pending
        self._told: Due | None = None  # set by `told`
        self._fingerprint = ""
        self._disk_full = False
        self._read_at = 0.0
        self._last: Moment | None = None
        self._layouts: dict[int, TableSchema] = {}
        self._new_layouts: list[TableSchema] = []

    def start(self) -> None:
        """Begins to look."""
        self._thread.start()

    def take(self) -> Found | None:
        """What was found since the last call, if anything.

        Raises:
            Exception: the look failed in a way that does not pass by itself; nothing is looked at any more.
        """
        if self._found is None:  # as nearly always: it is asked in every turn of the loop
            return None
        with self._lock:
            found, self._found = self._found, None
        if isinstance(found, Exception):
            raise found
        return found

    def told(self, due: Due) -> None:
        """The events of `due` are durable in the log."""
        with self._lock:
            self._told = due

    def close(self) -> None:
        """Ends the thread; one that hangs in a statement is left alone, and what it sees then is not remembered."""
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join(CLOSE_SECONDS)
        self._left_alone.set()

    def _run(self) -> None:
        session: Session | None = None
        while not self._closed.is_set():
            begun = time.monotonic()
            try:
                session = session or _open(self._source)
                self._look(session, begun)
            except Exception as error:  # a thread that ended in silence would let a lost table pass
                if directive_of(error) is not Directive.RETRY:
                    with self._lock:
                        self._found = error
                    break
                logger.debug("catalog.unavailable", error=str(error))
                _close(session)
                session, self._last, self._fingerprint = None, None, ""
            self._closed.wait(max(PERIOD, min(_SHARE * (time.monotonic() - begun), LONGEST_PERIOD)))
        _close(session)

    def _look(self, session: Session, now: float) -> None:
        self._remember_told()
        self._retention.look(session)
        moment = behind = read_moment(session, self._source.publication)
        self._ends.look(session, moment.xmax)
        if self._may_differ(session, moment, now):
            behind = self._read(session, now)
        if self._left_alone.is_set():
            return
        self._last = moment  # and not the one behind: what was altered in between is not seen yet
        self._compare(session, behind)
        tables = 0 if self._state is None else len(self._state.tables)
        layouts, self._new_layouts = tuple(self._new_layouts), []
        look = Look(moment.lsn, behind.lsn)
        self._put(Found(moment.publication, moment.xmax, tables, look, layouts, self._pending))

    def _may_differ(self, session: Session, moment: Moment, now: float) -> bool:
        """Whether anything may have been altered since the whole was read; notes the fingerprint."""
        if moment.publication is None:
            return False
        whole = now - self._read_at >= WHOLE_PERIOD
        last = self._last
        if not whole and last is not None and last.quiet and moment.quiet and last.xmax == moment.xmax:
            return False
        before, self._fingerprint = self._fingerprint, fingerprint(session, self._source.publication)
        return whole or self._fingerprint != before

    def _read(self, session: Session, now: float) -> Moment:
        """Completes the publication and reads the whole; the moment behind it.

        A table that left the publication by itself in between (a partition that was detached) is added and read again:
        else it would be told as unpublished, its rows thrown away, and be told as published by the next look.
        """
        tables, before = matched_tables(session, self._source), self._state or self.remembered.state
        for _ in range(_READINGS):
            self._completion.complete(session, tables, self._known, before)
            state = read_state(session, self._source.publication)
            behind = read_moment(session, self._source.publication)
            left_out = {table.oid for table in tables if not table.published}
            tables = matched_tables(session, self._source)
            if all(table.published or table.oid in left_out for table in tables):
                break
        if state is not None:
            self._state = state
            self._known.update(state.tables)
            self._note_layouts(state)
        self._read_at = now
        return behind

    def _compare(self, session: Session, moment: Moment) -> None:
        """Finds what must be told; what need not be is remembered at once."""
        state, before = self._state, self.remembered.state
        if state is None or self._pending is not None:
            return
        if before is None:
            self._keep(lambda: self.remembered.keep(state))
            return
        if (state is before and not self.remembered.doubtful) or before.publication.oid != state.publication.oid:
            return  # under another publication changes were lost: that must stay known, or the next start would go on
        self._state = now = with_former_names(before, state)
        came = attached(before, now)
        updates = "update" in now.publication.operations
        reseeds = differences(before, now, without_rows(session, came, updates=updates) if came else ())
        stale = session.info.server_version < LOOKS_AGAIN_SINCE and regrouped(before, now)
        if self.remembered.doubtful:
            reseeds, stale = with_partitioned(reseeds, now), True
        if reseeds or stale:
            self._pending = Due(moment.lsn, moment.snapshot, reseeds, now, stale)
        else:
            self._keep(lambda: self.remembered.keep(now))

    def _remember_told(self) -> None:
        with self._lock:
            told = self._told
        if told is None or told is not self._pending:
            return
        if self._keep(lambda: self._remember(told)):
            self._pending = None

    def _remember(self, told: Due) -> None:
        if told.regrouped:
            self.remembered.regrouped(told.state, told.lsn)
        else:
            self.remembered.keep(told.state)

    def _keep(self, remember: Callable[[], None]) -> bool:
        """Remembers a state; False while the disk is full."""
        try:
            remember()
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            if not self._disk_full:
                logger.error("catalog.not_remembered", error=str(error), note="tried again until there is room")
            self._disk_full = True
            return False
        self._disk_full = False
        return True

    def _note_layouts(self, state: CatalogState) -> None:
        for table in state.tables.values():
            layout = state.layout(table, self._builtin_types)
            if self._layouts.get(table.oid) != layout:
                self._layouts[table.oid] = layout
                self._new_layouts.append(layout)

    def _put(self, found: Found) -> None:
        with self._lock:
            if isinstance(self._found, Found):  # what was not taken yet goes along
                layouts = (*self._found.layouts, *found.layouts)
                found = replace(found, layouts=layouts)
            self._found = found


def _open(source: SourceConfig) -> Session:
    """A session whose statements give up before PostgreSQL looks for deadlocks: it might end the application's."""
    session = open_session(source.dsn)
    try:
        with refused("applying the watch's settings"):
            session.execute(f"SET lock_timeout = '{LOCK_MILLISECONDS}ms'".encode())
    except BaseException:
        session.close()
        raise
    return session


def _close(session: Session | None) -> None:
    if session is not None:
        session.close()
