"""Dead letters: changes that a consumer's code, or its sink, goes on refusing; on disk, bounded, and in order by key.

    park          a change that was refused, with its layout and what its window said; durable when it returns
    park_behind   a later change of a key that has a letter: it waits behind that one, so that each key keeps its order
    retry, drop   an operator's acts (`walbus dead-letters`), from any process; the consumer notices them within seconds
    asked         the letters that are to be tried again, in order; `resolved` or `failed_again` says how that went

A letter holds its keys: that of the change, and the one before an update changed it. A TRUNCATE that was refused holds
all keys of its table, and one that was dealt with makes the table's letters void (`truncated`). A change without a key
holds nothing. What is parked a second time, because a crash came before the checkpoint, is the letter that is there.

The store is one SQLite file in the consumer's folder. It holds rows, as the consumer's own data does: its mode lets
nobody else read it. Beyond `limit` letters, or `limit_bytes` of changes, nothing more is parked (`DeadLettersFull`):
a consumer that parks everything has not one poison row but another trouble.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final, NamedTuple

from walbus.errors import DeadLettersFull, InvalidText, StoreDamaged, StoreError, UsageError
from walbus.events import Change, Window, time_of
from walbus.position import parse_position
from walbus.records import Kind, Op, iter_changes, pack_change
from walbus.schema import TableSchema

FILE_NAME: Final = "dead-letters.sqlite"

_FORMAT = 1
_BUSY_SECONDS = 10.0
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
#: Each log's letters by seq, wherever a consumer was when it parked them: one that goes back parks old ones last.
_IN_ORDER = "ORDER BY (SELECT min(id) FROM letters AS first WHERE first.log_id = letters.log_id), seq, id"
_COLUMNS = "id, log_id, position, seq, window, layout, change, error, message, attempts, parked_at, asked"

#: The error of a letter that was not refused itself, but waits behind one that was.
BEHIND: Final = "behind"


class Held(NamedTuple):
    """A key that a letter holds; `key` is None for every key of the table."""

    relation: int
    key: bytes | None


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


class DeadLetters:
    """One consumer's letters. One thread at a time; other processes may open the same file.

    Args:
        path: of the file; made when the first letter is parked.
        limit: letters at most.
        limit_bytes: bytes of their changes at most.
        wall: gives Unix seconds.

    Raises:
        StoreDamaged: the file is none of these.
    """

    def __init__(
        self, path: Path, *, limit: int = 10_000, limit_bytes: int = 256 << 20, wall: Callable[[], float] = time.time
    ) -> None:
        self._path, self._limit, self._limit_bytes, self._wall = path, limit, limit_bytes, wall
        self._connection: sqlite3.Connection | None = None
        self._held: set[Held] = set()
        self._count, self._bytes, self._seen = 0, 0, -1
        if path.exists():
            self._open()
            self._look()

    def __len__(self) -> int:
        return self._count

    # A consumer's side

    def holds(self, change: Change) -> bool:
        """Whether a letter may hold the change's key: then `park_behind` says.

        A TRUNCATE waits behind another one alone: it makes letters of single keys void.
        """
        if not self._held:
            return False
        mine = held_by(change)
        return any(held in self._held if held.key is None else _touch(held, self._held) for held in mine)

    def park(self, change: Change, window: Window, log_id: str, error: BaseException, attempts: int) -> None:
        """Keeps a change that was refused; durable when it returns.

        Raises:
            DeadLettersFull: there is no room for it.
        """
        self._insert(change, window, log_id, type(error).__name__, str(error), attempts)

    def park_behind(self, change: Change, window: Window, log_id: str) -> bool:
        """Keeps a change behind a letter that holds its key; False if there is none any more.

        Raises:
            DeadLettersFull: there is no room for it.
        """
        self._look()
        if not self.holds(change):
            return False
        self._insert(change, window, log_id, BEHIND, "", 0)
        return True

    def truncated(self, relation: int) -> int:
        """Takes out a table's letters: a TRUNCATE came behind them, and was dealt with. Gives their number."""
        if not any(held.relation == relation for held in self._held):
            return 0
        with self._writing() as connection:
            taken = connection.execute("DELETE FROM letters WHERE relation = ?", (relation,)).rowcount
        self._look()
        return taken

    def asked(self, most: int = 1_000) -> list[DeadLetter]:
        """The first of the letters that are to be tried again, in order; none behind one of its key that is not."""
        self._look()
        if not self._count or not self._open().execute("SELECT 1 FROM letters WHERE asked LIMIT 1").fetchall():
            return []
        chosen: list[int] = []
        blocked: set[Held] = set()
        columns = "id, asked, relation, op, key, old_key"
        for id_, asked, *what in self._open().execute(f"SELECT {columns} FROM letters {_IN_ORDER}"):  # noqa: S608  # our own words
            held = _held(*what)
            if not asked or any(_touch(one, blocked) for one in held):
                blocked.update(held)
            elif len(chosen) < most:
                chosen.append(id_)
        among = ", ".join(map(str, chosen))
        return self._read(f"WHERE id IN ({among}) {_IN_ORDER}", ())

    def resolved(self, letter: DeadLetter) -> None:
        """A letter was dealt with; an operator may have dropped it meanwhile."""
        with self._writing() as connection:
            connection.execute("DELETE FROM letters WHERE id = ?", (letter.id,))
        self._look()

    def failed_again(self, letter: DeadLetter, error: BaseException | None) -> None:
        """A letter was refused again, or (None) waits behind one that was; it is not to be tried any more."""
        with self._writing() as connection:
            if error is None:
                connection.execute("UPDATE letters SET asked = 0 WHERE id = ?", (letter.id,))
            else:
                connection.execute(
                    "UPDATE letters SET asked = 0, attempts = attempts + 1, error = ?, message = ? WHERE id = ?",
                    (type(error).__name__, str(error), letter.id),
                )

    # An operator's side

    def letters(self, behind: int = 0, most: int = 1_000) -> list[DeadLetter]:
        """Letters with an id above one, in order."""
        self._look()
        return self._read("WHERE id > ? ORDER BY id LIMIT ?", (behind, most)) if self._count else []

    def retry(self, ids: Iterable[int] | None = None) -> int:
        """Has letters tried again, with all before them that hold their keys; None means all. Gives their number.

        Raises:
            UsageError: there is no letter of that id.
        """
        wanted = self._known(ids)
        chosen: list[int] = []
        held: set[Held] = set()
        for letter in reversed(self._read(_IN_ORDER, ())) if wanted else ():
            mine = held_by(letter.change)
            if letter.id in wanted or any(_touch(one, held) for one in mine):
                chosen.append(letter.id)
                held.update(mine)
        if chosen:
            with self._writing() as connection:
                connection.executemany("UPDATE letters SET asked = 1 WHERE id = ?", [(id_,) for id_ in chosen])
        return len(chosen)

    def drop(self, ids: Iterable[int] | None = None) -> int:
        """Takes letters out for good; None means all. Gives their number.

        Raises:
            UsageError: there is no letter of that id.
        """
        wanted = self._known(ids)
        if wanted:
            with self._writing() as connection:
                connection.executemany("DELETE FROM letters WHERE id = ?", [(id_,) for id_ in wanted])
            self._look()
        return len(wanted)

    def close(self) -> None:
        """Closes the file."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    # The file

    def _known(self, ids: Iterable[int] | None) -> set[int]:
        self._look()
        there = {id_ for (id_,) in self._open().execute("SELECT id FROM letters")} if self._count else set()
        if ids is None:
            return there
        wanted = set(ids)
        if missing := sorted(wanted - there):
            mend = "list them with `walbus dead-letters list`"
            raise UsageError(f"there is no letter {missing[0]}", where=str(self._path), mend=mend)
        return wanted

    def _insert(self, change: Change, window: Window, log_id: str, error: str, message: str, attempts: int) -> None:  # noqa: PLR0913, PLR0917  # what a letter has
        raw = change.raw
        packed = pack_change(
            raw.op, table=raw.table, schema_id=raw.schema_id, seq_delta=0, ordinal_delta=0, flags=raw.flags & ~0xF,
            key=raw.key, old_key=raw.old_key, unchanged=raw.unchanged, after=raw.after, before=raw.before,
        )  # fmt: skip
        if self._count >= self._limit or self._bytes + len(packed) > self._limit_bytes:
            raise DeadLettersFull(
                f"{self._count} changes are parked already, and no more may be",
                where=str(self._path),
                mend="mend what refuses them, then `walbus dead-letters retry` or `drop`",
            )
        with self._writing() as connection:
            layout = None if change.schema is None else _number_of(connection, change.schema)
            connection.execute(
                "INSERT OR IGNORE INTO letters (log_id, relation, op, key, old_key, position, seq, window, layout,"
                " change, error, message, attempts, parked_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    log_id, raw.table, raw.op, raw.key, raw.old_key, str(change.position), change.seq,
                    _dump_window(window), layout, packed, error, message, attempts, self._wall(),
                ),
            )  # fmt: skip
        self._look()

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.touch(mode=0o600)
            # A consumer may park from another thread than the one that opened it, never from two at a time.
            connection = sqlite3.connect(
                self._path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
            try:
                _prepare(connection)
            except sqlite3.OperationalError as error:
                connection.close()
                mend = "make room, let this user write there, or wait until nobody holds the file"
                raise StoreError(f"dead letters cannot be opened: {error}", where=str(self._path), mend=mend) from None
            except sqlite3.DatabaseError as error:
                connection.close()
                mend = "move the file away: the letters in it are lost to this consumer"
                raise StoreDamaged(f"these are no dead letters: {error}", where=str(self._path), mend=mend) from None
            self._connection = connection
        return self._connection

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        connection = self._open()
        try:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                connection.execute("ROLLBACK")
                raise
        except sqlite3.OperationalError as error:
            mend = "make room, or let this user write there"
            raise StoreError(f"no dead letter can be written: {error}", where=str(self._path), mend=mend) from None
        self._seen = -1

    def _look(self) -> None:
        """Learns which keys are held, if this process or another one has changed that."""
        if self._connection is None:
            if self._path.exists():
                self._open()
            else:
                return
        connection = self._open()
        (version,) = connection.execute("PRAGMA data_version").fetchone()
        if version == self._seen:
            return
        self._seen = version
        rows = connection.execute("SELECT relation, op, key, old_key, length(change) FROM letters").fetchall()
        self._count, self._bytes = len(rows), sum(size for *_, size in rows)
        self._held = {held for relation, op, key, old, _ in rows for held in _held(relation, op, key, old)}

    def _read(self, which: str, parameters: tuple[object, ...]) -> list[DeadLetter]:
        connection = self._open()
        rows = connection.execute(f"SELECT {_COLUMNS} FROM letters {which}", parameters).fetchall()  # noqa: S608  # our own words
        layouts: dict[int, TableSchema] = {}
        return [_letter(connection, layouts, *row) for row in rows]


def held_by(change: Change) -> tuple[Held, ...]:
    """The keys that a letter with this change holds."""
    raw = change.raw
    return _held(raw.table, raw.op, raw.key, raw.old_key)


def touches(change: Change, held: set[Held]) -> bool:
    """Whether any of the change's keys is among those held."""
    return any(_touch(one, held) for one in held_by(change))


def _held(relation: int, op: int, key: bytes | None, old_key: bytes | None) -> tuple[Held, ...]:
    if op == Op.TRUNCATE:
        return (Held(relation, None),)
    if op not in (Op.INSERT, Op.UPDATE, Op.DELETE):
        return ()
    return tuple(Held(relation, one) for one in (key, old_key) if one is not None)


def _touch(one: Held, held: set[Held]) -> bool:
    if one.key is None:
        return any(other.relation == one.relation for other in held)
    return one in held or Held(one.relation, None) in held


def _prepare(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("BEGIN IMMEDIATE")
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version == 0:
        for statement in _TABLES:
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {_FORMAT}")
    elif version != _FORMAT:
        raise sqlite3.DatabaseError(f"version {version} is not {_FORMAT}")
    connection.execute("COMMIT")


def _number_of(connection: sqlite3.Connection, schema: TableSchema) -> int:
    document = json.dumps(schema.to_dict(), sort_keys=True)
    connection.execute("INSERT OR IGNORE INTO layouts (document) VALUES (?)", (document,))
    (number,) = connection.execute("SELECT number FROM layouts WHERE document = ?", (document,)).fetchone()
    return int(number)


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
    except InvalidText as error_:
        raise StoreDamaged(error_.what, where=f"letter {id_}", mend="drop it") from None
    told = json.loads(window)
    alone = Window(
        kind=Kind(told["kind"]), changes=(change,), xid=told["xid"], commit_lsn=told["commit_lsn"],
        commit_time=time_of(told["commit_time"]), last=parse_position(told["last"]), last_seq=told["last_seq"],
        begins=True, ends=True, origin=told["origin"], net=told["net"],
    )  # fmt: skip
    return DeadLetter(id_, change, alone, log_id, error, message, attempts, parked_at, bool(asked))
