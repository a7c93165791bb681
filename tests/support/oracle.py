"""The oracle: a second, unconsumed slot beside the real one, read whole at the end by a decoder of its own.

The decoder here shares no code with `walbus.capture`, so that both would have to be wrong in the same way for a
mistake to pass. It reads pgoutput's protocol 1 as `pg_logical_slot_peek_binary_changes` gives it, so the slot stays
where it is and can be read again.

    oracle = Oracle(dsn, publication="walbus")     # before, or at the moment of, the real slot's creation
    ... workload, faults ...
    expected = oracle.transactions(since=first_commit_lsn)
    assert log_transactions(reader) == expected    # support.log_view
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import psycopg

from walbus.lsn import parse_lsn
from walbus.session import settings_sql

#: Microseconds from 1970 to 2000, PostgreSQL's epoch.
_PG_EPOCH = 946_684_800_000_000


@dataclass(frozen=True)
class OracleChange:
    """One change, by PostgreSQL's canonical texts.

    Attributes:
        op: insert, update, delete or truncate (one for each table), or message.
        oid: relation OID; 0 for a message.
        after: column to text (None is NULL), without the unchanged ones; None where there is no new row.
        unchanged: columns whose TOASTed value was not sent.
        key: texts of the key's columns in column order; None without a key.
        old_key: the same before an update that changed the key; None otherwise.
        detail: of a truncate its options, of a message what it says.
    """

    op: str
    oid: int
    after: dict[str, str | None] | None = None
    unchanged: frozenset[str] = frozenset()
    key: tuple[str | None, ...] | None = None
    old_key: tuple[str | None, ...] | None = None
    detail: str = ""


@dataclass(frozen=True)
class OracleTransaction:
    """One committed transaction; `xid` has 32 bits, `commit_time` is in Unix microseconds.

    A message outside transactions is one with xid 0 and time 0, at the last byte of its record.
    """

    commit_lsn: int
    end_lsn: int
    xid: int
    commit_time: int
    changes: tuple[OracleChange, ...] = field(default=())


class Oracle:
    """The second slot.

    Args:
        dsn: of the database.
        publication: must exist by the time that `transactions` is called (before the first change, on PostgreSQL).
        slot: its name.
        messages: whether logical messages count.
        failover: whether the slot is copied to standbys (PostgreSQL 17).
    """

    def __init__(
        self, dsn: str, publication: str, *, slot: str = "oracle", messages: bool = False, failover: bool = False
    ) -> None:
        self._dsn = dsn
        self._publication = publication
        self._slot = slot
        self._messages = messages
        with self._session() as connection:
            options = ", failover => true" if failover else ""
            query = f"SELECT lsn FROM pg_create_logical_replication_slot(%s, 'pgoutput'{options})"
            row = connection.execute(query, [slot]).fetchone()  # type: ignore[arg-type]
        assert row is not None
        self.start_lsn: int = parse_lsn(row[0])  #: commits behind this LSN are seen

    def transactions(self, since: int = 0, *, with_empty: bool = False) -> list[OracleTransaction]:
        """Everything since the slot was made, in commit order.

        Args:
            since: leaves out commits at or below this LSN (those before the real slot was made).
            with_empty: keeps transactions without a change of a published table.
        """
        with self._session() as connection:
            keys = _primary_keys(connection)
            rows = connection.execute(
                "SELECT data FROM pg_logical_slot_peek_binary_changes(%s, NULL, NULL, 'proto_version', '1',"
                " 'publication_names', %s, 'messages', %s)",
                [self._slot, f'"{self._publication}"', str(self._messages).lower()],
                binary=True,
            )
            found = list(_decode((row[0] for row in rows), keys))
        return [t for t in found if t.commit_lsn > since and (with_empty or t.changes)]

    def drop(self) -> None:
        """Drops the slot (the `database` fixture does it too)."""
        with self._session() as connection:
            connection.execute("SELECT pg_drop_replication_slot(%s)", [self._slot])

    def _session(self) -> psycopg.Connection:
        connection = psycopg.connect(self._dsn, autocommit=True)
        connection.execute(settings_sql())
        return connection


@dataclass
class _Relation:
    oid: int
    columns: list[str]
    key: list[int]


class _Bytes:
    """A message with a place in it."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def take(self, form: str) -> int:
        (value,) = struct.unpack_from(">" + form, self.data, self.at)
        self.at += struct.calcsize(">" + form)
        return int(value)

    def char(self) -> str:
        self.at += 1
        return chr(self.data[self.at - 1])

    def text(self) -> str:
        end = self.data.index(0, self.at)
        value = self.data[self.at : end].decode()
        self.at = end + 1
        return value

    def row(self) -> list[tuple[str, str | None]]:
        """(kind, text) for each column."""
        values: list[tuple[str, str | None]] = []
        for _ in range(self.take("H")):
            kind = self.char()
            text = None
            if kind == "t":
                size = self.take("I")
                text = self.data[self.at : self.at + size].decode()
                self.at += size
            values.append((kind, text))
        return values


def _decode(messages: Iterator[bytes], primary_keys: dict[int, list[str]]) -> Iterator[OracleTransaction]:
    relations: dict[int, _Relation] = {}
    changes: list[OracleChange] = []
    begin = (0, 0, 0)
    for data in messages:
        message = _Bytes(data)
        kind = message.char()
        if kind == "B":
            begin = (message.take("Q"), message.take("q"), message.take("I"))
            changes = []
        elif kind == "C":
            message.take("B")
            commit_lsn, end_lsn = message.take("Q"), message.take("Q")
            assert commit_lsn == begin[0], "Begin and Commit disagree"
            yield OracleTransaction(commit_lsn, end_lsn, begin[2], begin[1] + _PG_EPOCH, tuple(changes))
        elif kind == "R":
            relation = _relation(message, primary_keys)
            relations[relation.oid] = relation
        elif kind in "IUD":
            changes.append(_row_change(kind, message, relations))
        elif kind == "T":
            count = message.take("I")
            detail = truncate_detail(*divmod(message.take("B"), 2))
            changes += [OracleChange("truncate", message.take("I"), detail=detail) for _ in range(count)]
        elif kind == "M":
            transactional, lsn = message.take("B"), message.take("Q")
            said = OracleChange("message", 0, detail=message_detail(message.text(), message.data[message.at + 4 :]))
            if transactional:
                changes.append(said)
            else:
                yield OracleTransaction(lsn - 1, lsn, 0, 0, (said,))
        elif kind not in "OYA":  # PostgreSQL 18 tells the abort of a large transaction that it never sent
            raise AssertionError(f"pgoutput message {kind!r} is unknown to the oracle")


def truncate_detail(restart: int, cascade: int) -> str:
    """The options of a TRUNCATE, in words."""
    return " ".join(word for word, given in (("cascade", cascade), ("restart", restart)) if given)


def message_detail(prefix: str, content: bytes) -> str:
    """What a logical message says."""
    return f"{prefix}: {content.hex()}"


def _relation(message: _Bytes, primary_keys: dict[int, list[str]]) -> _Relation:
    oid = message.take("I")
    message.text(), message.text()
    identity = message.char()
    columns, key = [], []
    for index in range(message.take("H")):
        flags = message.take("B")
        columns.append(message.text())
        message.take("I"), message.take("i")
        if flags & 1:
            key.append(index)
    if identity == "f":  # every column is flagged, while the key is the primary key
        key = [i for i, name in enumerate(columns) if name in primary_keys.get(oid, ())]
    return _Relation(oid, columns, key)


def _row_change(kind: str, message: _Bytes, relations: dict[int, _Relation]) -> OracleChange:
    relation = relations[message.take("I")]
    marker = message.char()
    old = message.row() if marker in "KO" else None
    sent = range(len(relation.columns)) if marker == "O" else relation.key  # what an old row tells
    if old is not None and kind == "U":
        marker = message.char()
    new = message.row() if marker == "N" else None
    old_key = _key(relation, old)
    if new is None:
        return OracleChange("delete", relation.oid, key=old_key)
    if old is not None:  # a value that was not sent stands in the old row, if anywhere
        new = [old[i] if k == "u" and i in sent else (k, text) for i, (k, text) in enumerate(new)]
    after = {name: text for name, (k, text) in zip(relation.columns, new, strict=True) if k != "u"}
    unchanged = frozenset(name for name, (k, _) in zip(relation.columns, new, strict=True) if k == "u")
    key = _key(relation, new)
    op = "insert" if kind == "I" else "update"
    return OracleChange(op, relation.oid, after, unchanged, key, old_key if old_key != key else None)


def _key(relation: _Relation, row: list[tuple[str, str | None]] | None) -> tuple[str | None, ...] | None:
    if row is None or not relation.key:
        return None
    return tuple(row[i][1] for i in relation.key)


def _primary_keys(connection: psycopg.Connection) -> dict[int, list[str]]:
    rows = connection.execute(
        "SELECT i.indrelid::int8, a.attname::text FROM pg_catalog.pg_index i"
        " JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey) WHERE i.indisprimary"
    )
    keys: dict[int, list[str]] = {}
    for oid, name in rows:
        keys.setdefault(oid, []).append(name)
    return keys


def assert_same_transactions(found: list[OracleTransaction], expected: list[OracleTransaction]) -> None:
    """The log's transactions are the oracle's; tells the first change that differs, values cut short."""
    for number, (ours, theirs) in enumerate(zip(found, expected, strict=False)):
        if ours == theirs:
            continue
        same = replace(ours, changes=()) == replace(theirs, changes=())
        assert same, f"transaction {number}: {replace(ours, changes=())}, the oracle has {replace(theirs, changes=())}"
        for ordinal, (a, b) in enumerate(zip(ours.changes, theirs.changes, strict=False), 1):
            assert a == b, f"transaction {number}, change {ordinal}: {_short(a)}, the oracle has {_short(b)}"
        assert len(ours.changes) == len(theirs.changes), f"transaction {number}: so many changes"
    assert len(found) == len(expected), "so many transactions"


def _short(change: OracleChange) -> OracleChange:
    after = change.after and {name: text and text[:30] for name, text in change.after.items()}
    return replace(change, after=after)
