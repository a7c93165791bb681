"""A table whose log and whose source have parted, and a follower of the log: for tests of net differences.

schema = LAYOUT                              t(id int4 key, plain int4, big text)
follower = Follower(rows)                    applies changes of the log as a consumer does
changes = difference(follower.rows, rows)    what makes the one the other
history = histories()                        hypothesis: rows, rows of the source, and what happened then
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from hypothesis import strategies as st

from walbus.capture.carrying import Row
from walbus.keys import encode_key, key_texts
from walbus.log import Piece
from walbus.records import Flag, Kind, Op, RawChange, pack_change
from walbus.schema import Column, ReplicaIdentity, TableSchema
from walbus.values import merge_unchanged, row_encoder, row_texts

OID = 16400
LAYOUT = TableSchema(
    1, OID, "public", "t", ReplicaIdentity.DEFAULT,
    (
        Column("id", 23, "int4", -1, in_key=True),
        Column("plain", 23, "int4", -1, in_key=False),
        Column("big", 25, "text", -1, in_key=False),
    ),
)  # fmt: skip
BIG = b"\x04"  #: the bitmap of `big`
_encode = row_encoder(LAYOUT).encode
Values = tuple[int, str | None]  # plain, big
Rows = dict[int, Values]


def key_of(number: int) -> bytes:
    return encode_key([str(number).encode()], [23])


def row_of(number: int, values: Values, *, without_big: bool = False) -> bytes:
    plain, big = values
    text = None if without_big or big is None else big.encode()
    return _encode([str(number).encode(), str(plain).encode(), text])


def merge(row: Row, other: Row) -> Row:
    return Row(row.schema_id, *merge_unchanged(LAYOUT, row.row, row.unchanged, LAYOUT, other.row, other.unchanged))


def change(
    op: Op, number: int, values: Values | None = None, *, old: int | None = None, without_big: bool = False
) -> RawChange:
    """One change of the table."""
    after = None if values is None else row_of(number, values, without_big=without_big)
    return RawChange(
        int(op), 0, OID, LAYOUT.id, 0, 0, 0, key_of(number), None if old is None else key_of(old),
        BIG if without_big else b"", after, None,
    )  # fmt: skip


TRUNCATE = RawChange(int(Op.TRUNCATE), 0, OID, LAYOUT.id, 0, 0, 0, None, None, b"", None, None)


def difference(was: Rows, now: Rows) -> list[RawChange]:
    """What makes rows others, by key."""
    made = []
    for number in sorted(was.keys() | now.keys()):
        if number not in now:
            made.append(change(Op.DELETE, number))
        elif number not in was:
            made.append(change(Op.INSERT, number, now[number]))
        elif was[number] != now[number]:
            made.append(change(Op.UPDATE, number, now[number]))
    return made


@dataclass
class Follower:
    """A consumer's rows: writes what it is told, and keeps what it has of a value that is not sent."""

    rows: Rows = field(default_factory=dict)

    def apply(self, told: RawChange) -> None:
        if told.op == Op.TRUNCATE:
            self.rows.clear()
            return
        assert told.key is not None
        number = int(key_texts(told.key)[0])
        old = number if told.old_key is None else int(key_texts(told.old_key)[0])
        had = self.rows.pop(old, None)
        self.rows.pop(number, None)
        if told.op == Op.DELETE:
            return
        assert told.after is not None
        _, plain, big = row_texts(LAYOUT, told.after)
        assert plain is not None
        if any(told.unchanged):
            big = had[1] if had is not None else None
        self.rows[number] = int(plain), big


def piece(lsn: int, changes: Sequence[RawChange], *, xid: int = 700) -> Piece:
    """A transaction."""
    body = b"".join(
        pack_change(
            one.op, table=one.table, schema_id=one.schema_id, seq_delta=at, ordinal_delta=at, key=one.key,
            old_key=one.old_key, unchanged=one.unchanged, after=one.after,
        )
        for at, one in enumerate(changes)
    )  # fmt: skip
    return Piece(
        kind=Kind.TRANSACTION, flags=int(Flag.BEGIN | Flag.END), epoch=1, commit_lsn=lsn, end_lsn=lsn + 40,
        first_ordinal=1, last_ordinal=len(changes), count=len(changes), xid=xid, commit_time=lsn,
        tables=1 << OID % 64, body=body,
    )  # fmt: skip


@dataclass(frozen=True)
class History:
    """The rows that the log tells, those of the source, and what happened then, by transactions."""

    told: Rows
    true: Rows
    transactions: tuple[tuple[RawChange, ...], ...]
    end: Rows  # of the source, behind all of them

    def events(self) -> list[RawChange]:
        return [one for some in self.transactions for one in some]


_KEYS = st.integers(1, 7)
_VALUES = st.tuples(st.integers(0, 3), st.sampled_from([None, "a", "b"]))
_STEPS = st.tuples(
    st.sampled_from(["insert", "update", "update", "partly", "partly", "move", "move partly", "delete", "truncate"]),
    _KEYS, _KEYS, _VALUES,
)  # fmt: skip


@st.composite
def histories(draw: st.DrawFn) -> History:
    told, true = draw(st.dictionaries(_KEYS, _VALUES)), draw(st.dictionaries(_KEYS, _VALUES))
    rows, transactions = dict(true), []
    for steps in draw(st.lists(st.lists(_STEPS, min_size=1, max_size=4), max_size=5)):
        happened = [one for step in steps if (one := _step(rows, *step)) is not None]
        if happened:
            transactions.append(tuple(happened))
    return History(told, true, tuple(transactions), rows)


def _step(rows: Rows, kind: str, number: int, other: int, values: Values) -> RawChange | None:
    """Does it to the source's rows, as far as it can be done; the event."""
    if kind == "truncate":
        rows.clear()
        return TRUNCATE
    if kind == "insert":
        if number in rows:
            return None
        rows[number] = values
        return change(Op.INSERT, number, values)
    if number not in rows:
        return None
    before = rows.pop(number)
    if kind == "delete":
        return change(Op.DELETE, number)
    partly = kind.endswith("partly") and before[1] is not None
    new = (values[0], before[1]) if partly else values
    target = other if kind.startswith("move") and other not in rows else number
    rows[target] = new
    return change(Op.UPDATE, target, new, old=number if target != number else None, without_big=partly)


def followed(rows: Rows, changes: Iterable[RawChange]) -> Rows:
    """What a follower has behind some changes."""
    follower = Follower(dict(rows))
    for one in changes:
        follower.apply(one)
    return follower.rows
