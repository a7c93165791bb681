r"""Records as JSON lines: what `application/x-ndjson` streams and `walbus tail` show.

One object a line, ended by `\n`; nothing inside a line breaks it. A transaction is framed by two lines:

    {"op":"begin","xid":…,"position":…,"commit_time":…}          position: "before this transaction" (ordinal 0)
    {"op":"insert","position":…,"seq":…,"xid":…,"commit_time":…,"table":…,"schema_id":…,"key":{…},"after":{…}}
    {"op":"commit","position":…}                                 position: of the transaction's last change

Each line's position is a "last done": a reader that has dealt with the line may go on `after` it. A begin is written
with the first change that passes the filter, so that a transaction of which nothing passes leaves no line. A stream
that starts in the middle of a transaction tells its begin, with `"continues":true` and the position where it started,
and its commit, whatever passes of the rest. The lines of a net difference (`docs/log-format.md`) have `"net":true`,
all but its commit. The other lines are `heartbeat` (all up to its position has been scanned),
`schema` and `epoch` events; for bootstrap snapshots rows with `"snapshot":true` and one last `snapshot_end`; for deltas
changes with `"delta":true` (an `insert` is the row as it is now, whether it was there before or not) and `delta_end`.
Values look as `walbus.values.row_json` says.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from walbus.keys import key_json
from walbus.position import ORIGIN, Position
from walbus.records import ChangeFlag, Flag, Kind, Op, RawChange, RecordHeader, located_changes, time_of
from walbus.schema import TableSchema
from walbus.values import row_json
from walbus.values.json_form import splice

_OP_NAMES: Final = {op.value: op.name.lower() for op in Op}
Line = dict[str, object]

#: One line as JSON, without the line feed behind it.
encode_line = msgspec.json.Encoder().encode


def every_column(schema: TableSchema) -> frozenset[str] | None:
    """The choice that leaves no column out."""
    del schema
    return None


class LineRenderer:
    """Renders the records of one stream, in their order.

    Args:
        schemas: layout by number; its KeyError for an unknown one goes to the caller.
        after: changes at or before this position ("last done") are left out.
        columns: names of the columns that rows of a layout are shown with; None: all.
    """

    def __init__(
        self,
        schemas: Callable[[int], TableSchema],
        *,
        after: Position = ORIGIN,
        columns: Callable[[TableSchema], frozenset[str] | None] = every_column,
    ) -> None:
        self._schemas = schemas
        self._after = after
        self._columns = columns
        self._begun = False  # whether the transaction under way has a begin line

    def render(self, header: RecordHeader, record: bytes) -> bytes:
        """The lines of one record; empty where it holds nothing for this stream.

        Raises:
            DamagedRecord: the record's body makes no sense.
        """
        return b"".join([encode_line(line) + b"\n" for line in self.lines(header, record)])

    def lines(self, header: RecordHeader, record: bytes) -> list[Line]:
        """The lines of one record, each as the object that it holds; raises as `render`."""
        if header.kind == Kind.PROGRESS:
            return [_heartbeat(header.last)]
        if header.kind == Kind.SNAPSHOT:
            return self._served(header, record, "snapshot")
        if header.kind == Kind.DELTA:
            return self._served(header, record, "delta")
        if header.kind == Kind.TRANSACTION:
            return self._transaction(header, record)
        return self._events(header, record)

    def _transaction(self, header: RecordHeader, record: bytes) -> list[Line]:
        time = iso_time(header.commit_time)
        net = {"net": True} if header.flags & Flag.NET else {}
        lines = []
        for position, change in located_changes(header, record, self._after):
            if not self._begun:
                self._begun = True
                lines.append(self._begin(header, time))
            head = {
                "op": _OP_NAMES[change.op],
                "position": str(position),
                "seq": header.first_seq + change.seq_delta,
                "xid": header.xid,
                "commit_time": time,
            }
            lines.append(head | net | self.content(change))
        if header.flags & Flag.END and (self._begun or self._continues(header)):
            if not self._begun:
                lines.append(self._begin(header, time))
            self._begun = False
            lines.append({"op": "commit", "position": str(header.last)})
        return lines

    def _begin(self, header: RecordHeader, time: str) -> Line:
        continues = self._continues(header)
        position = self._after if continues else Position(header.epoch, header.commit_lsn, 0)
        line: Line = {"op": "begin", "xid": header.xid, "position": str(position), "commit_time": time}
        if header.flags & Flag.NET:
            line["net"] = True
        return line | {"continues": True} if continues else line

    def in_window(self, header: RecordHeader) -> bool:
        """Whether the client has a part of this record's transaction: of this stream, or of an earlier one."""
        return self._begun or self._continues(header)

    def _continues(self, header: RecordHeader) -> bool:
        """Whether the stream started in the middle of this record's transaction."""
        return Position(header.epoch, header.commit_lsn, 0) < self._after < header.last

    def _events(self, header: RecordHeader, record: bytes) -> list[Line]:
        return [
            {"op": _OP_NAMES[change.op], "position": str(position)} | self.content(change)
            for position, change in located_changes(header, record, self._after)
        ]

    def _served(self, header: RecordHeader, record: bytes, what: str) -> list[Line]:
        """The lines of a record of a `snapshot` or a `delta`."""
        place = {what: True, "position": str(header.last)}
        lines: list[Line] = [
            {"op": _OP_NAMES[change.op], **place, "seq": change.seq_delta} | self.content(change)
            for _, change in located_changes(header, record, self._after)
        ]
        if header.flags & Flag.END:
            lines.append({"op": f"{what}_end", "position": str(header.last), "seq": header.last_seq})
        return lines

    def content(self, change: RawChange) -> Line:
        """What a change's line holds behind its place: table, key and row, or what else its op tells."""
        if change.op == Op.MESSAGE:
            return _message(change)
        if change.op in (Op.SCHEMA, Op.EPOCH):
            return self._table(change) | {"detail": splice((change.after or b"null").decode())}
        if change.op == Op.TRUNCATE:
            return self._table(change) | _truncate(change)
        return self._row(change)

    def _table(self, change: RawChange) -> Line:
        if not change.schema_id:
            return {}
        return {"table": self._schemas(change.schema_id).table, "schema_id": change.schema_id}

    def _row(self, change: RawChange) -> Line:
        if not change.schema_id:
            return {}
        schema = self._schemas(change.schema_id)
        line: Line = {"table": schema.table, "schema_id": schema.id}
        if change.key is not None:
            line["key"] = key_json(schema, change.key)
        if change.old_key is not None:
            line["old_key"] = key_json(schema, change.old_key)
        if change.after is not None:
            line["after"] = self._row_json(schema, change.after, change.unchanged)
        if change.before is not None:
            line["before"] = self._row_json(schema, change.before)
        if any(change.unchanged):
            bits, shown = int.from_bytes(change.unchanged, "little"), self._columns(schema)
            names = (column.name for i, column in enumerate(schema.columns) if bits >> i & 1)
            line["unchanged"] = [name for name in names if shown is None or name in shown]
        return line

    def _row_json(self, schema: TableSchema, row: bytes, unchanged: bytes = b"") -> dict[str, object]:
        values, shown = row_json(schema, row, unchanged), self._columns(schema)
        return values if shown is None else {name: value for name, value in values.items() if name in shown}


def iso_time(microseconds: int) -> str:
    """Unix microseconds as ISO 8601 in UTC: `2024-01-01T00:00:00.000000Z`."""
    return time_of(microseconds).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _heartbeat(position: Position) -> Line:
    return {"op": "heartbeat", "position": str(position)}


def _message(change: RawChange) -> Line:
    content = change.after or b""
    line: Line = {
        "transactional": bool(change.flags & ChangeFlag.TRANSACTIONAL),
        "prefix": (change.key or b"").decode(),
    }
    try:
        return line | {"content": content.decode()}
    except UnicodeDecodeError:
        return line | {"content_hex": f"\\x{content.hex()}"}


def _truncate(change: RawChange) -> Line:
    return {
        "cascade": bool(change.flags & ChangeFlag.CASCADE),
        "restart_identity": bool(change.flags & ChangeFlag.RESTART_IDENTITY),
    }


__all__ = ["LineRenderer", "encode_line", "every_column", "iso_time"]
