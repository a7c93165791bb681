"""A source without PostgreSQL: transactions become the log's own records, and snapshots are taken of its rows.

source = ModelSource()
source.commit([insert("public.items", 1, "one"), update("public.items", 1, "two")])
source.records            [(header, record)], as a relay sends them
source.snapshot("public.items", after_key=None)    records, as a bootstrap server sends them
source.delta("public.items", since=42)             the same of what changed behind a seq
source.rows("public.items")                        {id: row}, what every sink must equal

Tables have `id int4` (the key), `name text` and `body text`; `body` plays the TOASTed column: an update without it
leaves it unchanged, and the record says so.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from walbus.keys import encode_key
from walbus.position import ORIGIN, Position
from walbus.records import Flag, Kind, Op, RecordHeader, pack_change, pack_record, read_header
from walbus.schema import Column, ReplicaIdentity, TableSchema
from walbus.values import row_encoder

ITEMS = "public.items"
SECOND = 1_000_000
START_TIME = 1_700_000_000 * SECOND

Row = dict[str, str | None]


def column(name: str, oid: int = 25, type_name: str = "text", *, in_key: bool = False) -> Column:
    return Column(name, oid, type_name, -1, in_key=in_key)


def items_layout(name: str = "items", *columns: Column, schema_id: int = 1, oid: int = 16400) -> TableSchema:
    """The layout of a table of schema `public`."""
    chosen = columns or (column("id", 23, "int4", in_key=True), column("name"), column("body"))
    return TableSchema(schema_id, oid, "public", name, ReplicaIdentity.DEFAULT, chosen)


@dataclass(frozen=True)
class Edit:
    """One change to be made; `row` holds the columns that are set, and leaves out the unchanged ones."""

    op: Op
    table: str
    id: str = ""
    row: Row = field(default_factory=dict)
    new_id: str | None = None


def insert(table: str, id: int, name: str | None = "name", body: str | None = "body") -> Edit:
    return Edit(Op.INSERT, table, str(id), {"name": name, "body": body})


def update(table: str, id: int, new_id: int | None = None, **row: str | None) -> Edit:
    return Edit(Op.UPDATE, table, str(id), row, None if new_id is None else str(new_id))


def delete(table: str, id: int) -> Edit:
    return Edit(Op.DELETE, table, str(id))


def truncate(table: str) -> Edit:
    return Edit(Op.TRUNCATE, table)


@dataclass(frozen=True)
class StoredRow:
    row: Row
    seq: int
    layout: TableSchema


State = dict[str, dict[str, StoredRow]]


class ModelSource:
    """The log and the state behind every record of it."""

    def __init__(self, log_id: str = "log-a", first_seq: int = 1, layouts: Sequence[TableSchema] = ()) -> None:
        self.log_id = log_id
        self.trimmed = ORIGIN
        self.records: list[tuple[RecordHeader, bytes]] = []
        self.layouts: dict[int, TableSchema] = {}
        self.current: dict[str, TableSchema] = {}
        self.state: State = {}
        self.history: list[tuple[Position, int, State]] = [(ORIGIN, first_seq - 1, {})]
        self.edits: list[tuple[int, str, Op, tuple[str, ...]]] = []  # seq, table, what was done, ids
        self.horizon = ORIGIN  # deltas are complete for who is behind it
        self._seq = first_seq
        self._lsn = 0x1000
        self._xid = 700
        self._committing = threading.Lock()  # a load, a test and a relay may commit at once
        self.wall: Callable[[], int] = lambda: START_TIME + len(self.records) * SECOND
        for layout in layouts or (items_layout(),):
            self.add_layout(layout)

    # What a relay tells

    @property
    def end(self) -> Position:
        return self.records[-1][0].last if self.records else self.trimmed

    @property
    def last_seq(self) -> int:
        return self._seq - 1

    def told(self) -> tuple[Position, int]:
        """The log's end and its seq, of one moment: another thread may be in the middle of a commit."""
        _, seq, _ = self.history[-1]
        records = self.records
        return (records[-1][0].last, records[-1][0].last_seq) if records else (self.trimmed, seq)

    def after(self, position: Position, but: Sequence[bytes] = ()) -> Iterator[tuple[RecordHeader, bytes]]:
        """The records with something behind a position, and SCHEMA records at it, but for those told already."""
        for header, record in list(self.records):
            behind = header.last > position or (header.kind == Kind.SCHEMA and header.last == position)
            if behind and not any(record is known for known in but[-8:]):
                yield header, record

    def trim(self, position: Position) -> None:
        """The log holds nothing up to and including a position any more."""
        self.trimmed = position
        self.records = [(header, record) for header, record in self.records if header.last > position]

    # What happens at the source

    def add_layout(self, layout: TableSchema, *, told: bool = True) -> TableSchema:
        """A new version of a table, or a new table; the log tells it by a SCHEMA record (but for the first ones)."""
        layout = replace(layout, id=len(self.layouts) + 1)
        self.layouts[layout.id] = layout
        current = dict(self.current)
        for name, known in self.current.items():
            if known.oid == layout.oid and name != layout.table:
                self.state[layout.table] = self.state.pop(name, {})
                del current[name]
        self.current = current | {layout.table: layout}
        self.state.setdefault(layout.table, {})
        if self.records and told:
            self.tell_again(layout.id)
        return layout

    def lose(self, table: str, *ids: str) -> None:
        """Rows go without an event; the log says that those of the table must be had again."""
        self._lsn += 0x100
        for id in ids:
            del self.state[table][id]
        document = {"reseed": [{"oid": self.current[table].oid, "table": table}]}
        detail = json.dumps(document).encode()
        body = pack_change(Op.EPOCH, table=0, schema_id=0, seq_delta=0, ordinal_delta=0, after=detail)
        self._append(Kind.EPOCH, Flag(0), self._lsn, 0, 0, self.last_seq, self.last_seq, 1, body)
        self.history.append((self.end, self.last_seq, {name: dict(rows) for name, rows in self.state.items()}))

    def tell_again(self, schema_id: int) -> None:
        """A SCHEMA record behind the last change."""
        layout, last = self.layouts[schema_id], self.end
        body = pack_change(Op.SCHEMA, table=layout.oid, schema_id=schema_id, seq_delta=0, ordinal_delta=0)
        self._append(
            Kind.SCHEMA, Flag(0), last.commit_lsn, last.ordinal, last.ordinal, self.last_seq, self.last_seq, 1, body
        )

    def commit(self, edits: Sequence[Edit], pieces: int = 1) -> Position:
        """One transaction, in so many records; gives its last position."""
        with self._committing:
            return self._commit(edits, pieces)

    def _commit(self, edits: Sequence[Edit], pieces: int) -> Position:
        self._xid += 1
        self._lsn += 0x100
        bodies = [self._apply(edit, ordinal) for ordinal, edit in enumerate(edits, 1)]
        size = max(1, -(-len(bodies) // pieces))
        for start in range(0, len(bodies), size):
            part = bodies[start : start + size]
            first, last = start + 1, start + len(part)
            ends = last == len(bodies)
            flags = (Flag.BEGIN if start == 0 else Flag(0)) | (Flag.END if ends else Flag(0))
            seq = self._seq - len(bodies) + start
            body = b"".join(make(ordinal) for ordinal, make in enumerate(part))
            self._append(Kind.TRANSACTION, flags, self._lsn, first, last, seq, seq + len(part) - 1, len(part), body)
        self.history.append((self.end, self.last_seq, {name: dict(rows) for name, rows in self.state.items()}))
        return self.end

    def progress(self, flags: int = 0) -> Position:
        """Other tables committed: nothing for this consumer up to here."""
        self._lsn += 0x100
        self._append(Kind.PROGRESS, Flag(flags), self._lsn, 0, 0, self.last_seq, self.last_seq, 0, b"")
        self.history.append((self.end, self.last_seq, {name: dict(rows) for name, rows in self.state.items()}))
        return self.end

    def rows(self, table: str = ITEMS) -> dict[str, Row]:
        """The table as it is now, by id."""
        stored = self.state.get(table, {}).copy().items()  # at once: others read while one writes
        return {id: one.row for id, one in stored}

    # What a bootstrap server tells

    def snapshot(
        self, table: str, after_key: bytes | None, at: int = -1, rows_a_record: int = 2
    ) -> list[tuple[RecordHeader, bytes]]:
        """The table as of `history[at]`, behind a key; the last record has END."""
        position, seq, state = self.history[at]
        entries = sorted((self._key(stored.layout, id), stored) for id, stored in state.get(table, {}).items())
        behind = [(key, stored) for key, stored in entries if after_key is None or key > after_key]
        bodies = [
            (stored.seq, _served(Op.INSERT, stored.layout, stored.seq, key, stored.row)) for key, stored in behind
        ]
        return _served_records(Kind.SNAPSHOT, bodies, position, seq, rows_a_record)

    def delta(
        self, table: str, since: int, at: int = -1, changes_a_record: int = 2
    ) -> list[tuple[RecordHeader, bytes]]:
        """What became of the table's keys that changed behind a seq, as of `history[at]`; the last record has END."""
        position, seq, state = self.history[at]
        latest, truncated, layout = (
            self._latest(table, since, seq),
            self._truncated(table, since, seq),
            self.current[table],
        )
        bodies = [(truncated, _served(Op.TRUNCATE, layout, truncated, None))] if truncated else []
        for changed_at, id in sorted((at, id) for id, at in latest.items()):
            stored = state.get(table, {}).get(id)
            key = self._key(layout, id)
            body = (
                _served(Op.DELETE, layout, changed_at, key)
                if stored is None
                else _served(Op.INSERT, stored.layout, stored.seq, key, stored.row)
            )
            bodies.append((changed_at, body))
        return _served_records(Kind.DELTA, bodies, position, seq, changes_a_record)

    def _truncated(self, table: str, since: int, until: int) -> int:
        """Seq of the last TRUNCATE in between; 0 without one."""
        found = (seq for seq, name, op, _ in self.edits if name == table and op is Op.TRUNCATE and since < seq <= until)
        return max(found, default=0)

    def _latest(self, table: str, since: int, until: int) -> dict[str, int]:
        """The last seq in between, and behind the last TRUNCATE, of each id."""
        since = max(since, self._truncated(table, since, until))
        return {id: seq for seq, name, _, ids in self.edits if name == table and since < seq <= until for id in ids}

    def _apply(self, edit: Edit, _: int) -> Callable[[int], bytes]:
        layout, rows = self.current[edit.table], self.state[edit.table]
        seq = self._seq
        self._seq += 1
        ids = () if edit.op is Op.TRUNCATE else (edit.id,) if edit.new_id is None else (edit.id, edit.new_id)
        self.edits.append((seq, edit.table, edit.op, ids))
        key = self._key(layout, edit.id)
        parts: dict[str, object] = {"table": layout.oid, "schema_id": layout.id}
        match edit.op:
            case Op.TRUNCATE:
                rows.clear()
            case Op.DELETE:
                rows.pop(edit.id, None)
                parts["key"] = key
            case _:
                new_id = edit.new_id or edit.id
                old = rows.pop(edit.id).row if edit.op is Op.UPDATE else {}
                names = [c.name for c in layout.columns if not c.in_key]
                row: Row = {"id": new_id} | {name: edit.row.get(name, old.get(name)) for name in names}
                rows[new_id] = StoredRow(row, seq, layout)
                left_out = [n for n in names if n not in edit.row] if edit.op is Op.UPDATE else []
                parts["key"] = self._key(layout, new_id)
                parts["old_key"] = key if new_id != edit.id else None
                parts["unchanged"] = _bitmap(layout, left_out)
                parts["after"] = _payload(layout, {n: v for n, v in row.items() if n not in left_out})
        return lambda delta: pack_change(edit.op, seq_delta=delta, ordinal_delta=delta, **parts)  # type: ignore[arg-type]

    def _key(self, layout: TableSchema, id: str) -> bytes:
        return encode_key([id.encode()], [layout.columns[layout.key_indexes[0]].type_oid])

    def _append(
        self, kind: Kind, flags: Flag, lsn: int, first: int, last: int, first_seq: int, last_seq: int, count: int,
        body: bytes,
    ) -> None:  # fmt: skip
        record = pack_record(
            kind, flags=flags, epoch=1, commit_lsn=lsn, end_lsn=lsn + 8 if flags & Flag.END else 0,
            first_ordinal=first, last_ordinal=last, first_seq=first_seq, last_seq=last_seq, xid=self._xid,
            commit_time=self.wall(), count=count, tables=(1 << 64) - 1, body=body,
        )  # fmt: skip
        self.records.append((read_header(record), record))


def _served(op: Op, layout: TableSchema, seq: int, key: bytes | None, row: Row | None = None) -> bytes:
    after = None if row is None else _payload(layout, row)
    return pack_change(op, table=layout.oid, schema_id=layout.id, seq_delta=seq, ordinal_delta=0, key=key, after=after)


def _served_records(
    kind: Kind, bodies: list[tuple[int, bytes]], position: Position, seq: int, changes_a_record: int
) -> list[tuple[RecordHeader, bytes]]:
    """Records of so many changes (seq, bytes), or of one more: what has one seq stays together."""
    chunks: list[list[bytes]] = [[]]
    last = -1
    for at, body in bodies:
        if len(chunks[-1]) >= changes_a_record and (at != last or kind is Kind.SNAPSHOT):
            chunks.append([])
        chunks[-1].append(body)
        last = at
    made = []
    for number, chunk in enumerate(chunks, 1):
        record = pack_record(
            kind, flags=Flag.END if number == len(chunks) else Flag(0), epoch=position.epoch,
            commit_lsn=position.commit_lsn, first_ordinal=position.ordinal, last_ordinal=position.ordinal, first_seq=0,
            last_seq=seq, commit_time=START_TIME, count=len(chunk), body=b"".join(chunk),
        )  # fmt: skip
        made.append((read_header(record), record))
    return made


def _payload(layout: TableSchema, row: Row) -> bytes:
    values = [row.get(c.name) for c in layout.columns]
    return row_encoder(layout).encode([None if v is None else v.encode() for v in values])


def _bitmap(layout: TableSchema, names: list[str]) -> bytes:
    if not names:
        return b""
    bits = sum(1 << index for index, c in enumerate(layout.columns) if c.name in names)
    return bits.to_bytes((len(layout.columns) + 7) // 8, "little")
