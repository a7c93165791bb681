"""From files of net differences into the log: one at a time, oldest first, while the stream goes on as long as it can.

    look        a file is there; it is read once to its end: a damaged one is refused before anything of it is used
    prepare     the log is read from the file's position on, and what it did to the table's rows is noted
                (`walbus.capture.carrying`); where that grows large, the file is replaced by one of a later position
    begin       the log has been read to its end: between two transactions, with all that was received in it
    write       the difference, as one transaction; nothing else is appended until its end
    finish      durable: the file goes

The transaction carries the flag NET, the origin `walbus:NUMBER` and no xid. It stands in front of the next commit
(`walbus.capture.places`), and takes seqs as any other:

    BEGIN piece   without a change, so that what follows is there whole or not at all
    SCHEMA        the layouts of its rows
    SCHEMA        with `difference`: what it is
    pieces        with the changes; the last one has END

Of a difference of which nothing is left the event is all.

A crash leaves the file. What was appended is not whole and goes, or is whole: then the log is read again from the
file's position, the file's own transaction is met among the events, everything is left out, and the event alone is
appended. A difference of an earlier number is older than this one, even where it stands behind this one's position; so
what it touched is not left out.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog

from walbus.capture.carrying import Row, Touched
from walbus.capture.difference_file import (
    About,
    DifferenceFile,
    named,
    packed,
    refuse,
    remove,
    waiting,
    write_difference,
)
from walbus.capture.pieces import NetTransaction, layout_piece
from walbus.errors import DamagedRecord, LogFull, PositionTrimmed, ProtocolError, WalbusError
from walbus.log import LogWriter, Piece
from walbus.position import Position
from walbus.records import Flag, Kind, Op, RawChange, RecordHeader, body_of, iter_changes, origin_of, read_header
from walbus.schema import TableSchema
from walbus.values import merge_unchanged

logger = structlog.get_logger(__name__)

#: Bytes of the log that one call of `prepare` reads.
SCAN_BYTES = 4 << 20
#: Bytes of memory for what the log did to a table's keys; beyond, the file is replaced by one of a later position.
TOUCHED_BYTES = 64 << 20
#: What the origin of a difference's transaction begins with.
ORIGIN_PREFIX = b"walbus:"


def origin_name(number: int) -> bytes:
    """The origin of a difference's transaction."""
    return ORIGIN_PREFIX + b"%d" % number


class Handover:
    """Takes differences into one log.

    Args:
        folder: of the files; None: there are none.
        log: where they go.
    """

    def __init__(self, folder: Path | None, log: LogWriter) -> None:
        self._folder = folder
        self._log = log
        self._given: _Given | None = None
        self._writing: _Writing | None = None

    @property
    def at_hand(self) -> bool:
        """Whether there is a difference to be taken."""
        return self._given is not None

    @property
    def writing(self) -> bool:
        """Whether a difference is being appended: nothing else may be until its end."""
        return self._writing is not None

    def reset(self) -> None:
        """A new connection begins: what was appended of a difference that is not whole goes.

        Raises:
            LogError: the log failed.
        """
        if self._writing is not None:
            self._writing = None
            self._log.drop_unfinished()
        self._given = None

    def look(self) -> None:
        """Takes up the oldest file, if none is at hand; one that cannot be used is refused.

        Raises:
            LogFull: there is no room for the note that refuses it.
        """
        if self._folder is None or self._given is not None:
            return
        for path in waiting(self._folder):
            try:
                self._given = self._opened(path)
            except (DamagedRecord, ProtocolError) as error:
                self._refuse(path, error)
            else:
                if self._given is not None:
                    return

    def _opened(self, path: Path) -> _Given | None:
        file = DifferenceFile(path)
        about = file.about
        count = sum(header.count for header, _ in file.records())
        if (about.number, about.oid) != named(path):
            raise DamagedRecord("the file's name is another one's", where=str(path))
        bounds = self._log.bounds()
        if about.log_id != bounds.log_id or about.position > bounds.end:
            self._refuse(path, ProtocolError("it belongs to another log", where=str(path)))
            return None
        logger.info("difference.found", table=about.table, number=about.number, changes=count, after=about.after)
        return _Given(file, Touched(about.oid, self._merge), about.position)

    def prepare(self) -> bool:
        """Reads on in the durable log; whether its end was reached.

        Raises:
            LogFull: there is no room for a file of a later position.
        """
        given = self._given
        if given is None:
            return False
        try:
            return self._scan(given)
        except (DamagedRecord, ProtocolError, PositionTrimmed) as error:
            self._refuse(given.file.path, error)
            self._given = None
            return False

    def _scan(self, given: _Given) -> bool:
        left = SCAN_BYTES
        for record in self._log.records_after(given.scanned):
            header = read_header(record)
            given.fold(record, header)
            given.scanned = header.last
            left -= len(record)
            if given.touched.size > TOUCHED_BYTES:
                self._move_on(given)
            if left <= 0:
                return False
        return True

    def _move_on(self, given: _Given) -> None:
        """Replaces the file by one of the difference as it is where the log has been read to."""
        file, about = given.file, given.file.about
        moved = About(
            number=about.number,
            log_id=about.log_id,
            table=about.table,
            oid=about.oid,
            schemas=tuple(sorted({*about.schemas, *given.schemas})),
            after=str(given.scanned),
            reason=about.reason,
            since=about.since,
            folds_from=about.folds_from,
        )
        with _room():
            write_difference(file.path.parent, moved, given.touched.carried(file.changes()))
        given.file, given.touched = DifferenceFile(file.path), Touched(about.oid, self._merge)

    def begin(self, place: Position, now: int) -> None:
        """Everything is prepared: the difference is to be appended.

        Args:
            place: where its transaction stands; ordinal 0.
            now: the server's clock, Unix microseconds.
        """
        if self._given is None:
            raise AssertionError("no difference is at hand")
        bounds = self._log.bounds()
        pieces = self._pieces(self._given, place, max(now, bounds.commit_time), bounds.end_lsn)
        self._writing = _Writing(pieces, place)

    def write(self, budget: int) -> Position | None:
        """Appends about `budget` bytes; the position of the last change once all of it is appended, or given up.

        Raises:
            LogFull: no room; call again.
        """
        given, writing = self._given, self._writing
        if given is None or writing is None:
            raise AssertionError("no difference is being appended")
        while budget > 0:
            try:
                piece = writing.held or next(writing.pieces, None)
            except (DamagedRecord, ProtocolError) as error:  # it has changed since it was checked
                self.reset()
                self._refuse(given.file.path, error)
                return self._log.bounds().end
            if piece is None:
                return writing.end
            writing.held = piece
            self._log.append(piece)
            writing.held, writing.end = None, Position(piece.epoch, piece.commit_lsn, piece.last_ordinal)
            budget -= len(piece.body) + 1
        return None

    def finish(self) -> None:
        """All that was appended is durable: the file goes."""
        given, writing = self._given, self._writing
        if given is None or writing is None:
            return  # it was given up
        about = given.file.about
        remove(given.file.path)
        logger.info(
            "difference.in_log", table=about.table, number=about.number, changes=writing.end.ordinal,
            at=str(writing.end), reason=about.reason,
        )  # fmt: skip
        self._given = self._writing = None

    def _pieces(self, given: _Given, place: Position, now: int, end_lsn: int) -> Iterator[Piece]:
        about = given.file.about
        told = {
            "number": about.number,
            "reason": about.reason,
            "since": about.since,
            "folds_from": about.folds_from,
        }
        event = layout_piece(place, now, self._newest(about), told)
        transaction = NetTransaction(place, now, origin_name(about.number), about.oid)
        bodies = _bodies(given)
        last = next(bodies, None)
        if last is None:
            yield event
            return
        yield transaction.begin()
        for schema_id in sorted({*about.schemas, *given.schemas}):
            yield layout_piece(place, now, self._schema(schema_id))
        yield event
        for following in bodies:
            yield transaction.piece(*last)
            last = following
        yield transaction.piece(*last, end_lsn=end_lsn)

    def _schema(self, schema_id: int) -> TableSchema:
        try:
            return self._log.schemas.get(schema_id)
        except KeyError:
            raise DamagedRecord(f"a difference names layout {schema_id}, which the log does not have") from None

    def _newest(self, about: About) -> TableSchema:
        newest = [schema for schema in self._log.schemas.all() if schema.oid == about.oid]
        if not newest:
            raise DamagedRecord(f"a difference is of table {about.oid}, which the log does not have")
        return newest[-1]

    def _merge(self, row: Row, other: Row) -> Row:
        schema, stored = self._schema(row.schema_id), self._schema(other.schema_id)
        merged, missing = merge_unchanged(schema, row.row, row.unchanged, stored, other.row, other.unchanged)
        return Row(row.schema_id, merged, missing)

    def _refuse(self, path: Path, error: WalbusError) -> None:
        logger.error(
            "difference.refused", file=str(path), error=str(error), mend="nothing to do: its table is seeded again"
        )
        with _room():
            refuse(path, error)


class _Given:
    """A file that is being taken.

    Attributes:
        file: with the difference as of its own position.
        touched: what the log did since.
        scanned: up to where ("last done").
        schemas: numbers of the layouts of rows that the log has left incomplete.
    """

    def __init__(self, file: DifferenceFile, touched: Touched, scanned: Position) -> None:
        self.file = file
        self.touched = touched
        self.scanned = scanned
        self.schemas: set[int] = set()

    def fold(self, record: bytes, header: RecordHeader) -> None:
        """Takes note of a record."""
        about = self.file.about
        if header.kind != Kind.TRANSACTION or not header.tables >> about.oid % 64 & 1:
            return
        if not self._is_older(record, header):
            self._fold(iter_changes(body_of(record, header)))

    def _fold(self, changes: Iterable[RawChange]) -> None:
        oid = self.file.about.oid
        for change in changes:
            if change.table == oid:
                self.touched.fold(change)
                if change.op == Op.UPDATE and any(change.unchanged):
                    self.schemas.add(change.schema_id)

    def _is_older(self, record: bytes, header: RecordHeader) -> bool:
        """Whether it is of a difference that was made before this one."""
        if not header.flags & Flag.NET:
            return False
        number = origin_of(record, header).removeprefix(ORIGIN_PREFIX)
        return number.isdigit() and int(number) < self.file.about.number


class _Writing:
    """A difference that is being appended: what is left of it, the piece that found no room, and where it ends."""

    def __init__(self, pieces: Iterator[Piece], end: Position) -> None:
        self.pieces = pieces
        self.held: Piece | None = None
        self.end = end


def _bodies(given: _Given) -> Iterator[tuple[bytes, int]]:
    """Bodies and counts of records with what is left of a difference; none is empty."""
    if given.touched.empty:
        for header, record in given.file.records():
            if header.count:
                yield body_of(record, header), header.count
        return
    for changes in packed(given.touched.carried(given.file.changes())):
        yield b"".join(changes), len(changes)


@contextmanager
def _room() -> Iterator[None]:
    """A full disk is waited for, as it is where the log has no room."""
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise LogFull(f"disk full: {error.strerror}", where="a file of a net difference") from error
        raise
