"""The last row of each key, as it stands in the topics: a file beside the consumer, made of the topics alone.

A topic tells what a key's row is only to who reads all of it. The sink must know it with each change: whether a row is
newer, what an update left out, and which keys are live when a table is truncated, swept or renamed. So it keeps the
rows in SQLite, in the consumer's folder, in a transaction that follows Kafka's.

The topics are what counts. The file says which commit it is of, and up to which offsets it has read; a file that is
behind, as after a crash between the two commits, reads on from there; one that is lost reads all. So it is never
synced.

It notes too where others have written into the topics (`strays`), until that is written over.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from walbus.consumers.sinks.base import no_folder
from walbus.consumers.sinks.kafka_reading import Place
from walbus.errors import SinkRefused, SinkUnavailable
from walbus.records import key_hash

_PAGE = 1000
_AWAY = ("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_FULL", "SQLITE_CANTOPEN", "SQLITE_IOERR")
_BROKEN = ("SQLITE_CORRUPT", "SQLITE_NOTADB")
_TABLES = (
    "CREATE TABLE IF NOT EXISTS stamp (id INTEGER PRIMARY KEY CHECK (id = 1), identity TEXT NOT NULL,"
    " number INTEGER NOT NULL)",
    "CREATE TABLE IF NOT EXISTS tables (oid INTEGER PRIMARY KEY, topic TEXT NOT NULL, topic_id TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS offsets (topic TEXT NOT NULL, partition INTEGER NOT NULL, next INTEGER NOT NULL,"
    " PRIMARY KEY (topic, partition)) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS rows (oid INTEGER NOT NULL, key BLOB NOT NULL, seq INTEGER NOT NULL,"
    " mark INTEGER NOT NULL, layout INTEGER NOT NULL, row BLOB NOT NULL, lacks BLOB NOT NULL, topic_key BLOB,"
    " PRIMARY KEY (oid, key))",
    "CREATE TABLE IF NOT EXISTS strays (oid INTEGER NOT NULL, partition INTEGER NOT NULL, key BLOB NOT NULL,"
    " PRIMARY KEY (oid, partition, key)) WITHOUT ROWID",
    "CREATE INDEX IF NOT EXISTS lacking ON rows (oid) WHERE lacks != x''",
)
_COLUMNS = "key, seq, mark, layout, row, lacks, topic_key"


class HeldRow(NamedTuple):
    """A row.

    Attributes:
        key: in the log.
        seq, mark: its version.
        layout: number of its layout, in the log of its mark.
        row: its bytes in the log.
        lacks: bitmap of columns whose values nobody has; such a row is in no topic yet. Empty: none.
        topic_key: of the record that its key has in the topic, in the wire format; None: it has none.
    """

    key: bytes
    seq: int
    mark: int
    layout: int
    row: bytes
    lacks: bytes
    topic_key: bytes | None


class Stray(NamedTuple):
    """A record that the sink did not write, and nothing has been written over.

    Attributes:
        partition: where it is.
        key: its bytes.
    """

    partition: int
    key: bytes


class Stamp(NamedTuple):
    """Which commit the file is of.

    Attributes:
        identity: of the topics, whoever made them.
        number: of the commit.
    """

    identity: str
    number: int


class RowCopy:
    """See the module. Changes are of a transaction that begins with the first, and ends with `commit` or `rollback`.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise no_folder(error, path) from None
        try:
            self._open()
        except sqlite3.DatabaseError as error:
            if not getattr(error, "sqlite_errorname", "").startswith(_BROKEN):
                raise self._told(error) from None
            self._database.close()
            for name in (path, path.with_name(f"{path.name}-wal"), path.with_name(f"{path.name}-shm")):
                name.unlink(missing_ok=True)
            with self._errors():
                self._open()

    def _open(self) -> None:
        self._database = sqlite3.connect(self._path, isolation_level=None, timeout=0)
        for statement in ("PRAGMA journal_mode = WAL", "PRAGMA synchronous = NORMAL", *_TABLES):
            self._database.execute(statement)

    # Transactions

    def stamp(self) -> Stamp | None:
        """Which commit it is of; None before the first."""
        with self._errors():
            found = self._database.execute("SELECT identity, number FROM stamp").fetchone()
        return None if found is None else Stamp(*found)

    def commit(self, stamp: Stamp, offsets: Mapping[Place, int]) -> None:
        """Keeps what was changed; it is of this commit, and has read up to these offsets."""
        with self._errors():
            self._begin()
            self._database.execute("INSERT OR REPLACE INTO stamp VALUES (1, ?, ?)", stamp)
            self._database.executemany(
                "INSERT OR REPLACE INTO offsets VALUES (?, ?, ?)", [(*place, at) for place, at in offsets.items()]
            )
            self._database.execute("COMMIT")

    def rollback(self) -> None:
        """Forgets what was changed."""
        with self._errors():
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")

    def close(self) -> None:
        """Frees the file."""
        self._database.close()

    def clear(self) -> None:
        """Forgets everything."""
        with self._errors():
            self._begin()
            for table in ("stamp", "tables", "offsets", "rows", "strays"):
                self._database.execute(f"DELETE FROM {table}")

    def _begin(self) -> None:
        if not self._database.in_transaction:
            self._database.execute("BEGIN IMMEDIATE")

    # Tables

    def topics(self) -> dict[int, tuple[str, str]]:
        """Name and id of the topic that each table's rows were read from, or written to, by OID."""
        with self._errors():
            found = self._database.execute("SELECT oid, topic, topic_id FROM tables")
            return {oid: (topic, topic_id) for oid, topic, topic_id in found}

    def has_topic(self, oid: int, topic: str, topic_id: str) -> None:
        """Notes where a table's rows are."""
        with self._errors():
            self._begin()
            self._database.execute("INSERT OR REPLACE INTO tables VALUES (?, ?, ?)", (oid, topic, topic_id))

    def forget(self, oid: int) -> None:
        """Forgets a table and its rows."""
        with self._errors():
            self._begin()
            for table in ("tables", "rows", "strays"):
                self._database.execute(f"DELETE FROM {table} WHERE oid = ?", (oid,))

    def forget_offsets(self, topic: str) -> None:
        """The topic is read from its beginning, if it is."""
        with self._errors():
            self._begin()
            self._database.execute("DELETE FROM offsets WHERE topic = ?", (topic,))

    def offset(self, place: Place) -> int:
        """Up to where a partition was read, or written."""
        with self._errors():
            found = self._database.execute(
                "SELECT next FROM offsets WHERE topic = ? AND partition = ?", place
            ).fetchone()
        return 0 if found is None else int(found[0])

    # Rows

    def get(self, oid: int, key: bytes) -> HeldRow | None:
        """A row."""
        with self._errors():
            found = self._database.execute(
                f"SELECT {_COLUMNS} FROM rows WHERE oid = ? AND key = ?", (oid, key)
            ).fetchone()
        return None if found is None else HeldRow._make(found)

    def put(self, oid: int, row: HeldRow) -> None:
        """Keeps a row in the place of the one with its key."""
        with self._errors():
            self._begin()
            self._database.execute("INSERT OR REPLACE INTO rows VALUES (?, ?, ?, ?, ?, ?, ?, ?)", (oid, *row))

    def delete(self, oid: int, key: bytes) -> None:
        """Forgets a row."""
        with self._errors():
            self._begin()
            self._database.execute("DELETE FROM rows WHERE oid = ? AND key = ?", (oid, key))

    def all(self, oid: int) -> Iterator[HeldRow]:
        """The rows of a table, in the order of their keys; they may be changed meanwhile."""
        return self._pages(oid, "1", ())

    def older(self, oid: int, seq: int, log_generation: int) -> Iterator[HeldRow]:
        """Those that a truncate of this seq deletes."""
        return self._pages(oid, "(seq < ? OR mark < ?)", (seq, log_generation))

    def ghosts(self, oid: int, seq: int, generation: int, log_generation: int) -> Iterator[HeldRow]:
        """Those that a sweep deletes: a snapshot of this generation did not bring them, and they are no newer."""
        return self._pages(oid, "mark < ? AND (seq <= ? OR mark < ?)", (generation, seq, log_generation))

    def lacking(self, oid: int) -> Iterator[HeldRow]:
        """Those that lack a value."""
        return self._pages(oid, "lacks != x''", ())

    def tables_that_lack(self) -> set[int]:
        """The OIDs of tables with such rows."""
        with self._errors():
            return {oid for (oid,) in self._database.execute("SELECT DISTINCT oid FROM rows WHERE lacks != x''")}

    def outrank(self, oid: int, seq: int) -> None:
        """Rows with a seq above this one, which no row has, are older than whatever comes."""
        with self._errors():
            self._begin()
            self._database.execute("UPDATE rows SET mark = -1 WHERE oid = ? AND seq > ?", (oid, seq))

    # Records that the sink did not write

    def strays(self, oid: int, partitions: int) -> Iterator[Stray]:
        """Where such records are in a table's topic and no row is.

        Args:
            oid: of the table.
            partitions: of its topic.
        """
        with self._errors():
            found = self._database.execute(
                "SELECT s.partition, s.key, r.key FROM strays s"
                " LEFT JOIN rows r ON r.oid = s.oid AND r.topic_key = s.key WHERE s.oid = ?",
                (oid,),
            ).fetchall()
        for partition, key, row in found:
            if row is None or key_hash(row) % partitions != partition:
                yield Stray(partition, key)

    def note_strays(self, oid: int, strays: Iterable[Stray]) -> None:
        """There are such records in a table's topic."""
        with self._errors():
            self._begin()
            self._database.executemany(
                "INSERT OR REPLACE INTO strays VALUES (?, ?, ?)", [(oid, *one) for one in strays]
            )

    def forget_stray(self, oid: int, stray: Stray) -> None:
        """The sink wrote another record over it."""
        with self._errors():
            self._begin()
            self._database.execute("DELETE FROM strays WHERE oid = ? AND partition = ? AND key = ?", (oid, *stray))

    def forget_strays(self, oid: int) -> None:
        """None of a table's is left."""
        with self._errors():
            self._begin()
            self._database.execute("DELETE FROM strays WHERE oid = ?", (oid,))

    def tables_with_strays(self) -> set[int]:
        """The OIDs of tables with such records."""
        with self._errors():
            return {oid for (oid,) in self._database.execute("SELECT DISTINCT oid FROM strays")}

    def _pages(self, oid: int, which: str, parameters: tuple[int, ...]) -> Iterator[HeldRow]:
        select = f"SELECT {_COLUMNS} FROM rows WHERE oid = ? AND key > ? AND {which} ORDER BY key LIMIT {_PAGE}"
        after = b""
        while True:
            with self._errors():
                page = self._database.execute(select, (oid, after, *parameters)).fetchall()
            yield from map(HeldRow._make, page)
            if len(page) < _PAGE:
                return
            after = page[-1][0]

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise self._told(error) from None

    def _told(self, error: sqlite3.Error) -> SinkUnavailable | SinkRefused:
        name = getattr(error, "sqlite_errorname", "")
        if name.startswith(_AWAY):
            return SinkUnavailable(f"the copy of the rows is not available ({name})", where=str(self._path))
        mend = "stop the consumer, remove this file, and start it: it is made anew of the topics"
        return SinkRefused(
            f"the copy of the rows is refused by SQLite ({name or error})", where=str(self._path), mend=mend
        )
