"""The SQLite file that a consumer's dead letters lie in: a letter a row, and the layouts of their rows once each.

It holds rows, as the consumer's own data does: its mode lets nobody else read it. Several processes may open it, each
with one connection; a write is one transaction, durable when it returns. If somebody takes the file away, the letters
go with it, and the next call makes another one: what was written into the old one would be found by nobody.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final

from walbus.consumers.checkpoint import Checkpoint, Snapshotting
from walbus.consumers.file_identity import FileIdentity, identity_of
from walbus.consumers.letter_index import Entry, held_of
from walbus.errors import InvalidText, StoreDamaged, StoreError
from walbus.events import Change, Window
from walbus.position import parse_position
from walbus.records import Kind, iter_changes, pack_change, time_of
from walbus.schema import TableSchema

FILE_NAME: Final = "dead-letters.sqlite"

_FORMAT = 3
_BUSY_SECONDS = 10.0
_PAUSE_SECONDS = 0.02
_MICROSECOND = timedelta(microseconds=1)
_TABLES = (
    "CREATE TABLE layouts (number INTEGER PRIMARY KEY, document TEXT NOT NULL UNIQUE)",
    """CREATE TABLE letters (
    id INTEGER PRIMARY KEY AUTOINCREMENT, log_id TEXT NOT NULL, relation INTEGER NOT NULL, op INTEGER NOT NULL,
    key BLOB, old_key BLOB, position TEXT NOT NULL, seq INTEGER NOT NULL, window TEXT NOT NULL,
    layout INTEGER REFERENCES layouts, change BLOB NOT NULL, error TEXT NOT NULL, message TEXT NOT NULL,
    attempts INTEGER NOT NULL, parked_at REAL NOT NULL, asked INTEGER NOT NULL DEFAULT 0)""",
    "CREATE UNIQUE INDEX once ON letters (log_id, relation, seq, op, coalesce(key, position))",
)
#: What a file of version 1 lacks.
_SECOND = (
    "ALTER TABLE letters ADD COLUMN generation INTEGER NOT NULL DEFAULT 0",
    "CREATE INDEX by_key ON letters (relation, key)",
)
#: What a file of version 2 lacks: TRUNCATEs that are about to be committed.
_THIRD = (
    """CREATE TABLE voiding (
    relation INTEGER PRIMARY KEY, name TEXT NOT NULL, log_id TEXT NOT NULL, seq INTEGER NOT NULL)""",
)
_LACKING = {0: (*_TABLES, *_SECOND, *_THIRD), 1: (*_SECOND, *_THIRD), 2: _THIRD}
_COLUMNS = "id, log_id, position, seq, window, layout, change, error, message, attempts, parked_at, asked"
_ENTRY = "id, log_id, seq, length(change), asked, relation, op, key, old_key"


@dataclass(frozen=True)
class DeadLetter:
    """One change that was parked.

    Attributes:
        id: rises in the order of parking.
        change: with its layout.
        window: what the change came in, with this change alone.
        log_id: of the log that position and seq belong to.
        error: type of what the last attempt raised; `behind` if it only waits behind an earlier letter of its key.
        message: its text; may quote values of the row.
        attempts: how often it was tried.
        parked_at: Unix seconds.
        asked: whether it is to be tried again.
    """

    id: int
    change: Change
    window: Window
    log_id: str
    error: str
    message: str
    attempts: int
    parked_at: float
    asked: bool


@dataclass(frozen=True)
class Refused:
    """Why a change is parked, and where: see DeadLetter.

    Attributes:
        generation: that of the snapshot that it belongs to, or came behind.
    """

    log_id: str
    error: str
    message: str
    attempts: int
    parked_at: float
    generation: int


@dataclass(frozen=True)
class Voiding:
    """A TRUNCATE that makes its table's letters void, once it is committed: all before it.

    Attributes:
        relation, table: of the table.
        log_id, seq: of the TRUNCATE.
    """

    relation: int
    table: str
    log_id: str
    seq: int

    def voids(self, entry: Entry) -> bool:
        """Whether it makes a letter void."""
        of_table = any(held.relation == self.relation for held in entry.held)
        return of_table and (entry.log_id != self.log_id or entry.seq < self.seq)

    def is_in(self, checkpoint: Checkpoint | None) -> bool:
        """Whether it does not come again behind a checkpoint."""
        if checkpoint is None or checkpoint.log_id != self.log_id:
            return False
        if isinstance(checkpoint, Snapshotting):
            read = next((one for one in checkpoint.tables if one.table == self.table), None)
            return read is not None and (read.done or (read.since is not None and read.since.seq >= self.seq))
        return checkpoint.point.seq >= self.seq


class LetterFile:
    """One file, which is made when it is first written to. One thread at a time.

    Args:
        path: of the file.

    Raises:
        StoreError: it cannot be opened, or written, now.
        StoreDamaged: the file is none of these.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = None
        self._identity: FileIdentity | None = None
        self._version = -1

    @property
    def path(self) -> Path:
        """Of the file."""
        return self._path

    @property
    def exists(self) -> bool:
        """Whether it was made."""
        return self._connection is not None or self._path.exists()

    def close(self) -> None:
        """Closes it; the next call opens it again."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def changed(self) -> bool:
        """Whether another process wrote since this was asked last; True at first."""
        connection = self._opened()
        with self._errors():
            (version,) = connection.execute("PRAGMA data_version").fetchone()
        before, self._version = self._version, version
        return bool(version != before)

    def entries(self) -> list[Entry]:
        """What is to be known of every letter."""
        connection = self._opened()
        with self._errors():
            return [_entry(*row) for row in connection.execute(f"SELECT {_ENTRY} FROM letters")]  # noqa: S608  # our own words

    def read(self, ids: Iterable[int]) -> list[DeadLetter]:
        """Those letters of them that are there, in their order."""
        connection = self._opened()
        layouts: dict[int, TableSchema] = {}
        read = f"SELECT {_COLUMNS} FROM letters WHERE id = ?"  # noqa: S608  # our own words
        with self._errors():
            found = (connection.execute(read, (id_,)).fetchone() for id_ in ids)
            return [_letter(connection, layouts, *row) for row in found if row is not None]

    def voiding(self) -> list[Voiding]:
        """The TRUNCATEs of which it is not known here whether they were committed."""
        connection = self._opened()
        with self._errors():
            return [Voiding(*row) for row in connection.execute("SELECT relation, name, log_id, seq FROM voiding")]

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction; no other process writes meanwhile."""
        connection = self._opened()
        with self._errors():
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Translates trouble with the file: not now, or damaged."""
        try:
            yield
        except (sqlite3.OperationalError, OSError) as error:
            mend = "make room, let this user write there, or wait until nobody holds the file"
            raise StoreError(f"the dead letters' file fails: {error}", where=str(self._path), mend=mend) from None
        except sqlite3.Error as error:
            mend = "move the file away: the letters in it are lost to this consumer"
            raise StoreDamaged(f"these are no dead letters: {error}", where=str(self._path), mend=mend) from None

    def _opened(self) -> sqlite3.Connection:
        with self._errors():
            if self._connection is not None and not self._connection.in_transaction and not self._is_there():
                self.close()
            if self._connection is None:
                self._connection, self._version = self._open(), -1
                self._identity = identity_of(self._path)
        return self._connection

    def _is_there(self) -> bool:
        return self._identity is not None and identity_of(self._path) == self._identity

    def _open(self) -> sqlite3.Connection:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.touch(mode=0o600)
        # A consumer may park from another thread than the one that opened it, never from two at a time.
        connection = sqlite3.connect(self._path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        try:
            _prepare(connection)
        except BaseException:
            connection.close()
            raise
        return connection


# What is done inside `LetterFile.writing`


def insert(connection: sqlite3.Connection, change: Change, window: Window, why: Refused) -> Entry | None:
    """Adds a letter; None if it is there already, because a crash came before the checkpoint.

    A snapshot's row has the other letters of its key belong to the snapshot too: it has brought that key.
    """
    raw = change.raw
    packed = pack_change(
        raw.op, table=raw.table, schema_id=raw.schema_id, seq_delta=0, ordinal_delta=0, flags=raw.flags & ~0xF,
        key=raw.key, old_key=raw.old_key, unchanged=raw.unchanged, after=raw.after, before=raw.before,
    )  # fmt: skip
    layout = None if change.schema is None else _number_of(connection, change.schema)
    done = connection.execute(
        "INSERT OR IGNORE INTO letters (log_id, relation, op, key, old_key, position, seq, window, layout, change,"
        " error, message, attempts, parked_at, generation) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            why.log_id, raw.table, raw.op, raw.key, raw.old_key, str(change.position), change.seq,
            _dump_window(window), layout, packed, why.error, why.message, why.attempts, why.parked_at, why.generation,
        ),
    )  # fmt: skip
    if window.kind == Kind.SNAPSHOT:
        brought = "UPDATE letters SET generation = ? WHERE relation = ? AND key = ? AND generation < ?"
        connection.execute(brought, (why.generation, raw.table, raw.key, why.generation))
    if done.rowcount != 1 or done.lastrowid is None:
        return None
    held = held_of(raw.table, raw.op, raw.key, raw.old_key)
    return Entry(done.lastrowid, why.log_id, change.seq, len(packed), asked=False, held=held)


def take_out(connection: sqlite3.Connection, which: str, parameters: tuple[object, ...]) -> list[int]:
    """Deletes the letters of which a condition holds, and gives their ids."""
    gone = [id_ for (id_,) in connection.execute(f"SELECT id FROM letters WHERE {which}", parameters)]  # noqa: S608  # our own words
    connection.executemany("DELETE FROM letters WHERE id = ?", [(id_,) for id_ in gone])
    return gone


def layouts_of(connection: sqlite3.Connection, table: str) -> list[int]:
    """Numbers of the layouts of a table, by its name."""
    told = connection.execute("SELECT number, document FROM layouts")
    return [number for number, document in told if TableSchema.from_dict(json.loads(document)).table == table]


def _prepare(connection: sqlite3.Connection) -> None:
    _log_ahead(connection)
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("BEGIN IMMEDIATE")
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > _FORMAT:
        raise sqlite3.DatabaseError(f"version {version} is not of version 1 to {_FORMAT}")
    if version < _FORMAT:
        for statement in _LACKING[version]:
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {_FORMAT}")
    connection.execute("COMMIT")


def _log_ahead(connection: sqlite3.Connection) -> None:
    """Has the file written ahead. SQLite does not wait for who does the same at this moment, as it does otherwise."""
    deadline = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() >= deadline:
                raise
            time.sleep(_PAUSE_SECONDS)
        else:
            return


def _number_of(connection: sqlite3.Connection, schema: TableSchema) -> int:
    document = json.dumps(schema.to_dict(), sort_keys=True)
    connection.execute("INSERT OR IGNORE INTO layouts (document) VALUES (?)", (document,))
    (number,) = connection.execute("SELECT number FROM layouts WHERE document = ?", (document,)).fetchone()
    return int(number)


def _entry(  # noqa: PLR0913, PLR0917  # a row of the table
    id_: int, log_id: str, seq: int, size: int, asked: int, relation: int, op: int, key: bytes | None,
    old_key: bytes | None,
) -> Entry:  # fmt: skip
    return Entry(id_, log_id, seq, size, bool(asked), held_of(relation, op, key, old_key))


def _dump_window(window: Window) -> str:
    return json.dumps(
        {
            "kind": int(window.kind), "xid": window.xid, "commit_lsn": window.commit_lsn, "last": str(window.last),
            "commit_time": (window.commit_time - time_of(0)) // _MICROSECOND, "last_seq": window.last_seq,
            "origin": window.origin, "net": window.net,
        }
    )  # fmt: skip


def _letter(  # noqa: PLR0913, PLR0917  # a row of the table
    connection: sqlite3.Connection, layouts: dict[int, TableSchema], id_: int, log_id: str, position: str, seq: int,
    window: str, layout: int | None, packed: bytes, error: str, message: str, attempts: int, parked_at: float,
    asked: int,
) -> DeadLetter:  # fmt: skip
    schema = None
    if layout is not None:
        if layout not in layouts:
            (text,) = connection.execute("SELECT document FROM layouts WHERE number = ?", (layout,)).fetchone()
            layouts[layout] = TableSchema.from_dict(json.loads(text))
        schema = layouts[layout]
    try:
        change = Change(next(iter_changes(packed)), schema, parse_position(position), seq)
        told = json.loads(window)
    except (InvalidText, ValueError) as error_:
        what = error_.what if isinstance(error_, InvalidText) else "its window is no JSON"
        raise StoreDamaged(what, where=f"letter {id_}", mend="drop it") from None
    alone = Window(
        kind=Kind(told["kind"]), changes=(change,), xid=told["xid"], commit_lsn=told["commit_lsn"],
        commit_time=time_of(told["commit_time"]), last=parse_position(told["last"]), last_seq=told["last_seq"],
        begins=True, ends=True, origin=told["origin"], net=told["net"],
    )  # fmt: skip
    return DeadLetter(id_, change, alone, log_id, error, message, attempts, parked_at, bool(asked))
