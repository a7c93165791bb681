"""What a consumer sees: windows of changes, decoded when they are looked at.

A `Window` is one committed transaction as far as a consumer's filters let it through (or one batch of a snapshot).
A large transaction is delivered as several `Window` pieces that share xid and commit LSN; `begins` and `ends` mark
the first and the last, and only an ending window may be checkpointed as done.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any

from walbus.keys import decode_key
from walbus.position import Position
from walbus.records import ChangeFlag, Kind, Op, RawChange
from walbus.schema import TableSchema
from walbus.values import decode_row, row_texts

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
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

    @property
    def op(self) -> Op:
        """What the change does."""
        return Op(self.raw.op)

    @property
    def table(self) -> str:
        """`namespace.name` of the table; empty for messages and epochs."""
        return self.schema.table if self.schema else ""

    @cached_property
    def key(self) -> Mapping[str, Any] | None:
        """The key's columns and values; None for a table without a key, and where there is no row."""
        return self._key_dict(self.raw.key)

    @cached_property
    def old_key(self) -> Mapping[str, Any] | None:
        """The key before an update changed it; None when it did not."""
        return self._key_dict(self.raw.old_key)

    @cached_property
    def after(self) -> Mapping[str, Any] | None:
        """The new row as Python values; columns in `unchanged` are left out."""
        return self._row(self.raw.after, leave_out_unchanged=True)

    @cached_property
    def before(self) -> Mapping[str, Any] | None:
        """The whole old row, where the table's replica identity is FULL."""
        return self._row(self.raw.before, leave_out_unchanged=False)

    @cached_property
    def unchanged(self) -> frozenset[str]:
        """Columns whose TOASTed value did not change, and that PostgreSQL therefore did not send."""
        if not self.raw.unchanged or self.schema is None:
            return frozenset()
        bits = int.from_bytes(self.raw.unchanged, "little")
        return frozenset(c.name for i, c in enumerate(self.schema.columns) if bits >> i & 1)

    def after_texts(self) -> dict[str, str | None] | None:
        """The new row as PostgreSQL's canonical text; columns in `unchanged` are left out."""
        if self.raw.after is None or self.schema is None:
            return None
        texts = row_texts(self.schema, self.raw.after)
        return {c.name: t for c, t in zip(self.schema.columns, texts, strict=True) if c.name not in self.unchanged}

    @property
    def cascade(self) -> bool:
        """Whether a TRUNCATE was given CASCADE."""
        return bool(self.raw.flags & ChangeFlag.CASCADE)

    def _row(self, payload: bytes | None, *, leave_out_unchanged: bool) -> Mapping[str, Any] | None:
        if payload is None or self.schema is None:
            return None
        row = decode_row(self.schema, payload)
        if leave_out_unchanged:
            for name in self.unchanged:
                row.pop(name, None)
        return row

    def _key_dict(self, key: bytes | None) -> Mapping[str, Any] | None:
        if key is None or self.schema is None:
            return None
        columns = self.schema.columns
        names = [columns[i].name for i in self.schema.key_indexes]
        return dict(zip(names, decode_key(self.schema, key), strict=True))


@dataclass(frozen=True)
class Window:
    """One committed transaction, or a piece of one, or a batch of snapshot rows.

    Attributes:
        kind: TRANSACTION, or SNAPSHOT for rows of a bootstrap snapshot (their op is INSERT, xid is 0), or PROGRESS
            for "nothing for you up to `last`" (no changes), or SCHEMA or EPOCH for such an event by itself.
        changes: in commit order.
        xid, commit_lsn, commit_time, origin: of the transaction.
        last: "last done" once this window has been dealt with.
        begins, ends: whether this is the transaction's first and last piece.
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

    def __iter__(self) -> Iterator[Change]:
        return iter(self.changes)

    def __len__(self) -> int:
        return len(self.changes)


def time_of(microseconds: int) -> datetime:
    """The UTC time of Unix microseconds."""
    return _EPOCH + timedelta(microseconds=microseconds)
