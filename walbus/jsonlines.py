r"""Records as JSON lines: what `application/x-ndjson` streams and `walbus tail` show.

One object a line, ended by `\n`; nothing inside a line breaks it. A transaction is framed by two lines:

    {"op":"begin","xid":…,"position":…,"commit_time":…}          position: "before this transaction" (ordinal 0)
    {"op":"insert","position":…,"seq":…,"xid":…,"commit_time":…,"table":…,"schema_id":…,"key":{…},"after":{…}}
    {"op":"commit","position":…}                                 position: of the transaction's last change

Each line's position is a "last done": a reader that has dealt with the line may go on `after` it. A begin is written
with the first change that passes the filter, so that a transaction of which nothing passes leaves no line. The other
lines are `heartbeat` (all up to its position has been scanned), `schema` and `epoch` events, and for bootstrap
snapshots rows with `"snapshot":true` and one last `snapshot_end`. Values look as `walbus.values.row_json` says.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from walbus.events import located_changes, time_of
from walbus.keys import key_json
from walbus.position import ORIGIN, Position
from walbus.records import ChangeFlag, Flag, Kind, Op, RawChange, RecordHeader
from walbus.schema import TableSchema
from walbus.values import row_json
from walbus.values.json_form import splice

_OP_NAMES: Final = {op.value: op.name.lower() for op in Op}
_encode = msgspec.json.Encoder().encode

Line = dict[str, object]


def every_change(change: RawChange) -> bool:
    """The filter that lets everything pass."""
    del change
    return True


class LineRenderer:
    """Renders the records of one stream, in their order.

    Args:
        schemas: layout by number; its KeyError for an unknown one goes to the caller.
        after: changes at or before this position ("last done") are left out.
        wants: which changes pass.
    """

    def __init__(
        self,
        schemas: Callable[[int], TableSchema],
        *,
        after: Position = ORIGIN,
        wants: Callable[[RawChange], bool] = every_change,
    ) -> None:
        self._schemas = schemas
        self._after = after
        self._wants = wants
        self._begun = False  # whether the transaction under way has a begin line

    def render(self, header: RecordHeader, record: bytes) -> bytes:
        """The lines of one record; empty where it holds nothing for this stream.

        Raises:
            DamagedRecord: the record's body makes no sense.
        """
        if header.kind == Kind.PROGRESS:
            lines = [_heartbeat(header.last)]
        elif header.kind == Kind.SNAPSHOT:
            lines = self._snapshot(header, record)
        elif header.kind == Kind.TRANSACTION:
            lines = self._transaction(header, record)
        else:
            lines = self._events(header, record)
        return b"".join([_encode(line) + b"\n" for line in lines])

    def _transaction(self, header: RecordHeader, record: bytes) -> list[Line]:
        time = iso_time(header.commit_time)
        lines = []
        for position, change in located_changes(header, record, self._after):
            if not self._wants(change):
                continue
            if not self._begun:
                self._begun = True
                before = str(Position(header.epoch, header.commit_lsn, 0))
                lines.append({"op": "begin", "xid": header.xid, "position": before, "commit_time": time})
            head = {
                "op": _OP_NAMES[change.op],
                "position": str(position),
                "seq": header.first_seq + change.seq_delta,
                "xid": header.xid,
                "commit_time": time,
            }
            lines.append(head | self._content(change))
        if header.flags & Flag.END and self._begun:
            self._begun = False
            lines.append({"op": "commit", "position": str(header.last)})
        return lines

    def _events(self, header: RecordHeader, record: bytes) -> list[Line]:
        return [
            {"op": _OP_NAMES[change.op], "position": str(position)} | self._content(change)
            for position, change in located_changes(header, record, self._after)
            if self._wants(change)
        ]

    def _snapshot(self, header: RecordHeader, record: bytes) -> list[Line]:
        head = {"op": "insert", "snapshot": True, "position": str(header.last)}
        lines = [
            head | {"seq": change.seq_delta} | self._content(change)
            for _, change in located_changes(header, record, self._after)
            if self._wants(change)
        ]
        if header.flags & Flag.END:
            lines.append({"op": "snapshot_end", "position": str(header.last), "seq": header.last_seq})
        return lines

    def _content(self, change: RawChange) -> Line:
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
            line["after"] = row_json(schema, change.after, change.unchanged)
        if change.before is not None:
            line["before"] = row_json(schema, change.before)
        if any(change.unchanged):
            bits = int.from_bytes(change.unchanged, "little")
            line["unchanged"] = [column.name for i, column in enumerate(schema.columns) if bits >> i & 1]
        return line


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


__all__ = ["LineRenderer", "every_change", "iso_time"]
