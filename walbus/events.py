"""What a consumer sees: windows of changes, decoded when they are looked at.

A `Window` is one committed transaction as far as a consumer's filters let it through (or one batch of a snapshot).
A large transaction is delivered as several `Window` pieces that share xid and commit LSN; `begins` and `ends` mark
the first and the last, and only an ending window may be checkpointed as done.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Generic, TypeVar

from walbus.errors import UsageError
from walbus.keys import key_row
from walbus.native import read_changes
from walbus.position import ORIGIN, Position
from walbus.records import ChangeFlag, Flag, Kind, Op, RawChange, RecordHeader, origin_of, time_of
from walbus.schema import TableSchema
from walbus.values import decode_row, row_texts

_ROW_OPS = frozenset((Op.INSERT, Op.UPDATE, Op.DELETE))  # of the others, `after` is no row
_Value = TypeVar("_Value")
_set = object.__setattr__  # of what is frozen


class _Once(Generic[_Value]):
    """`functools.cached_property` without the lock that it has before Python 3.12: at worst it is made twice."""

    def __init__(self, make: Callable[[Any], _Value]) -> None:
        self._make, self._name, self.__doc__ = make, make.__name__, make.__doc__

    def __get__(self, of: object, _: type | None = None) -> _Value:
        if of is None:
            return self  # type: ignore[return-value]  # of the class, for whoever looks for its docstring
        value: _Value = self._make(of)
        _set(of, self._name, value)
        return value


@dataclass(frozen=True, init=False)
class Change:
    """One change of one row (or a truncate, message, schema or epoch event).

    Attributes:
        raw: the encoded change.
        schema: the layout of its row; None for messages, epochs and truncates of unknown layouts.
        position: its place in the source's order. A snapshot's row has the snapshot's position.
        seq: its version: of two changes of one key, the later one has the larger seq.
    """

    raw: RawChange
    schema: TableSchema | None
    position: Position
    seq: int

    def __init__(self, raw: RawChange, schema: TableSchema | None, position: Position, seq: int) -> None:
        # What a frozen dataclass has of its own takes twice as long, and there are as many as rows.
        fields = self.__dict__
        fields["raw"], fields["schema"], fields["position"], fields["seq"] = raw, schema, position, seq

    @property
    def op(self) -> Op:
        """What the change does."""
        return Op(self.raw.op)

    @property
    def table(self) -> str:
        """`namespace.name` of the table; empty for messages and epochs."""
        return self.schema.table if self.schema else ""

    @_Once
    def key(self) -> Mapping[str, Any] | None:
        """The key's columns and values; None for a table without a key, and where there is no row."""
        return self._key_dict(self.raw.key)

    @_Once
    def old_key(self) -> Mapping[str, Any] | None:
        """The key before an update changed it; None when it did not."""
        return self._key_dict(self.raw.old_key)

    @_Once
    def after(self) -> Mapping[str, Any] | None:
        """The new row as Python values without the columns that were not sent. None where there is no new row."""
        return self._row(self.raw.after, self.unchanged | self.left_out if self.raw.unchanged else ())

    @_Once
    def before(self) -> Mapping[str, Any] | None:
        """The old row, where the table's replica identity is FULL, or the stream is complete and the row is known.

        The columns in `left_out` are not in it.
        """
        return self._row(self.raw.before, self.left_out)

    @property
    def row(self) -> Any:  # noqa: ANN401  # of the class that the subscription was given
        """The new row as an object of a class, where the subscription was asked for that (`into=`).

        Raises:
            UsageError: it was not.
        """
        raise _no_class(self.table)

    @property
    def old_row(self) -> Any:  # noqa: ANN401
        """The old row as `row`, where it came.

        Raises:
            UsageError: the subscription was not asked for rows of a class.
        """
        raise _no_class(self.table)

    @_Once
    def unchanged(self) -> frozenset[str]:
        """Columns whose TOASTed value did not change, and that PostgreSQL therefore did not send."""
        return self._marked(self.raw.unchanged) - self.left_out

    @property
    def complete(self) -> bool:
        """Whether nothing of the rows is missing: of an update or delete the old one, of a new one unchanged values."""
        if self.raw.op in (Op.UPDATE, Op.DELETE) and self.raw.before is None:
            return False
        return not self.unchanged

    @_Once
    def left_out(self) -> frozenset[str]:
        """Columns that this stream was not asked for."""
        if not self.raw.flags & ChangeFlag.PROJECTED:
            return frozenset()
        return self._marked(self.raw.unchanged[len(self.raw.unchanged) // 2 :])

    def _marked(self, bitmap: bytes) -> frozenset[str]:
        if not bitmap or self.schema is None:
            return frozenset()
        bits = int.from_bytes(bitmap, "little")
        return frozenset(c.name for i, c in enumerate(self.schema.columns) if bits >> i & 1)

    def after_texts(self) -> dict[str, str | None] | None:
        """The new row as PostgreSQL's canonical text without the columns that were not sent."""
        if self.raw.after is None or self.schema is None or self.raw.op not in _ROW_OPS:
            return None
        texts = row_texts(self.schema, self.raw.after)
        unsent = self.unchanged | self.left_out
        return {c.name: t for c, t in zip(self.schema.columns, texts, strict=True) if c.name not in unsent}

    @property
    def cascade(self) -> bool:
        """Whether a TRUNCATE was given CASCADE."""
        return bool(self.raw.flags & ChangeFlag.CASCADE)

    @property
    def restart_identity(self) -> bool:
        """Whether a TRUNCATE was given RESTART IDENTITY."""
        return bool(self.raw.flags & ChangeFlag.RESTART_IDENTITY)

    @property
    def message(self) -> tuple[str, bytes] | None:
        """Prefix and content of a logical message; None for every other op."""
        if self.raw.op != Op.MESSAGE:
            return None
        return (self.raw.key or b"").decode(), self.raw.after or b""

    @property
    def detail(self) -> Mapping[str, Any] | None:
        """The document of a SCHEMA or EPOCH event; None for every other op."""
        if self.raw.op not in (Op.SCHEMA, Op.EPOCH):
            return None
        document: dict[str, Any] = json.loads(self.raw.after or b"{}")
        return document

    def _row(self, payload: bytes | None, unsent: Iterable[str]) -> Mapping[str, Any] | None:
        if payload is None or self.schema is None or self.raw.op not in _ROW_OPS:
            return None
        row = decode_row(self.schema, payload)
        for name in unsent:
            row.pop(name, None)
        return row

    def _key_dict(self, key: bytes | None) -> Mapping[str, Any] | None:
        return None if key is None or self.schema is None else key_row(self.schema, key)


@dataclass(frozen=True, init=False)
class Window:
    """One committed transaction, or a piece of one, or a batch of snapshot rows.

    Attributes:
        kind: TRANSACTION, or SNAPSHOT for rows of a bootstrap snapshot (their op is INSERT, xid is 0), or DELTA for the
            last changes of keys (an INSERT is the row as it is, new or not; xid is 0), or PROGRESS for "nothing for you
            up to `last`" (no changes), or SCHEMA or EPOCH for such an event by itself.
        changes: in commit order.
        xid, commit_lsn, commit_time, origin: of the transaction.
        last: "last done" once this window has been dealt with.
        begins, ends: whether this is the transaction's first and last piece.
        net: whether no session made it: a net difference that Walbus found by comparing.
    """

    kind: Kind
    changes: Sequence[Change]
    xid: int
    commit_lsn: int
    commit_time: datetime
    last: Position
    last_seq: int
    begins: bool
    ends: bool
    origin: str = field(default="")
    net: bool = field(default=False)

    def __init__(  # noqa: PLR0913, PLR0917  # its fields
        self,
        kind: Kind,
        changes: Sequence[Change],
        xid: int,
        commit_lsn: int,
        commit_time: datetime,
        last: Position,
        last_seq: int,
        begins: bool,
        ends: bool,
        origin: str = "",
        net: bool = False,
    ) -> None:
        fields = self.__dict__  # as `Change`: there may be as many as rows
        fields["kind"], fields["changes"], fields["xid"], fields["commit_lsn"] = kind, changes, xid, commit_lsn
        fields["commit_time"], fields["last"], fields["last_seq"] = commit_time, last, last_seq
        fields["begins"], fields["ends"], fields["origin"], fields["net"] = begins, ends, origin, net

    def __iter__(self) -> Iterator[Change]:
        return iter(self.changes)

    def __len__(self) -> int:
        return len(self.changes)


def window_of(
    header: RecordHeader, record: bytes, schemas: Callable[[int], TableSchema], *, after: Position = ORIGIN
) -> Window:
    """The window that one record is.

    Args:
        header: of the record, as `walbus.record_parser` yields them.
        record: the whole record.
        schemas: layout by number; its KeyError for an unknown one goes to the caller.
        after: changes at or before this position ("last done") are left out, so that a record that begins before
            the place where a reader resumes repeats nothing.

    Raises:
        DamagedRecord: the body makes no sense.
    """
    return Window(
        kind=Kind(header.kind),
        changes=read_changes(Change, header, record, schemas, after),
        xid=header.xid,
        commit_lsn=header.commit_lsn,
        commit_time=time_of(header.commit_time),
        last=header.last,
        last_seq=header.last_seq,
        begins=bool(header.flags & Flag.BEGIN),
        ends=bool(header.flags & Flag.END),
        origin=origin_of(record, header).decode(),
        net=bool(header.flags & Flag.NET),
    )


def _no_class(table: str) -> UsageError:
    return UsageError("no class was given for rows", where=table or "change.row", mend="subscribe with into=")
