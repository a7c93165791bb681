"""Reading records: filtered in the native core against its twin in Python, and rows against fastavro.

The records are made here, without PostgreSQL, as capture makes them: rows of eight columns (int8, int4, text, numeric,
timestamptz, bool, float8, uuid) of four tables that take turns, once in pieces of one large transaction and once in
transactions of one row. They are in memory, and nothing but the reading is timed, in processor seconds of this process.

- The filter lets one table of the four pass, `RecordFilter.scan` over blocks of the size that the relay reads; also one
  partition of four of all tables, and two columns of all rows. Both cores must send the same bytes.
- Rows: the payloads of all rows to dictionaries of Python values (`walbus.values.decode_row`'s reader), against
  `fastavro.schemaless_reader` with the schema that `/v1/schemas` serves, which gives a numeric as
  text. The values are compared once.
- Arrow: the same payloads to one `pyarrow.RecordBatch` a block of 4,096 rows, in the types of
  `walbus.consumers.arrow`, against the same.
"""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import fastavro

from report import Report
from walbus.arrow_arrays import arrays_of
from walbus.native import Implementation, native_implementation, pure_implementation
from walbus.native.reading import ALL_TABLES, WHOLE, Partition, RecordFilter
from walbus.records import Flag, Kind, Op, body_of, iter_changes, pack_change, pack_record, read_header
from walbus.schema import Column, ReplicaIdentity, TableSchema
from walbus.values import avro_schema, row_encoder

_TABLES = 4
_COLUMNS = {
    "id": (20, "int8"), "customer": (23, "int4"), "note": (25, "text"), "total": (1700, "numeric"),
    "placed": (1184, "timestamptz"), "paid": (16, "bool"), "weight": (701, "float8"), "token": (2950, "uuid"),
}  # fmt: skip
_PIECE = 1_000  # changes
_BLOCK_BYTES = 256 << 10
_BATCH = 4_096


def _layout(number: int) -> TableSchema:
    columns = tuple(Column(name, oid, kind, -1, name == "id") for name, (oid, kind) in _COLUMNS.items())
    return TableSchema(number, 16_000 + number, "public", f"t{number}", ReplicaIdentity.DEFAULT, columns)


_LAYOUTS = {number: _layout(number) for number in range(1, _TABLES + 1)}


@dataclass(frozen=True)
class _Tables:
    """The tables with these numbers."""

    numbers: frozenset[int]

    @property
    def bits(self) -> int:
        """As `walbus.relay.table_filter` has them."""
        if len(self.numbers) == _TABLES:
            return ALL_TABLES
        return sum(1 << _LAYOUTS[number].oid % 64 for number in self.numbers)

    def learn(self) -> None:
        """The layouts stay."""

    def wants_change(self, _op: int, _table: int, schema_id: int) -> bool:
        """Whether it is one of them."""
        return schema_id in self.numbers


@dataclass(frozen=True)
class _Columns:
    """All columns, or all but those of a mask."""

    mask: int = 0

    @property
    def everything(self) -> bool:
        """Whether it is all."""
        return not self.mask

    def left_out(self, schema_id: int) -> tuple[TableSchema, int]:
        """The mask."""
        return _LAYOUTS[schema_id], self.mask


_EVERY_TABLE, _ONE_TABLE = _Tables(frozenset(_LAYOUTS)), _Tables(frozenset({1}))
_EVERY_COLUMN, _TWO_COLUMNS = _Columns(), _Columns(0b1111_0110)
_FILTERS = {
    "table": (_ONE_TABLE, _EVERY_COLUMN, WHOLE),
    "partition": (_EVERY_TABLE, _EVERY_COLUMN, Partition(0, 4)),
    "columns": (_EVERY_TABLE, _TWO_COLUMNS, WHOLE),
}


def run(changes: int, rounds: int) -> Report:
    """Measures filters and rows.

    Args:
        changes: of each backlog.
        rounds: medians over them are reported.
    """
    report = Report(
        "relay-decoding",
        "Filters, and rows out of records",
        ("what", "backlog", "by", "µs a change", "changes/s"),
        notes=["Processor time of one process, medians over the rounds; the records are in memory."],
    )
    native, pure = native_implementation(), pure_implementation("measured")
    for backlog, size in (("large", _PIECE), ("single-rows", 1)):
        records = list(_records(changes, size))
        for what, arguments in _FILTERS.items():
            _compare_filters(report, f"filter-{what}", backlog, records, (native, pure), arguments, changes, rounds)
    _compare_rows(report, [row for record in records for row in _rows_of(record)], native, rounds)
    return report


def _records(changes: int, size: int) -> Iterator[bytes]:
    """Transactions of one table each where they hold one row, and one transaction in pieces of all tables otherwise."""
    encoders = {number: row_encoder(layout) for number, layout in _LAYOUTS.items()}
    for first in range(0, changes, size):
        packed, bits = [], 0
        for delta in range(min(size, changes - first)):
            seq = first + delta
            number = seq % _TABLES + 1
            texts = _texts(seq)
            packed.append(
                pack_change(
                    Op.INSERT, table=_LAYOUTS[number].oid, schema_id=number, seq_delta=delta, ordinal_delta=delta,
                    key=encoders[number].key(texts), after=encoders[number].encode(texts),
                )
            )  # fmt: skip
            bits |= 1 << _LAYOUTS[number].oid % 64
        whole, last = size == 1, first + len(packed) == changes
        flags = (Flag.BEGIN if whole or not first else 0) | (Flag.END if whole or last else 0)
        yield pack_record(
            Kind.TRANSACTION, flags=flags, epoch=1, commit_lsn=16 * (first + 1) if whole else 16,
            first_ordinal=1 if whole else first + 1, last_ordinal=1 if whole else first + len(packed),
            first_seq=first, last_seq=first + len(packed) - 1, xid=7, commit_time=0, count=len(packed), tables=bits,
            body=b"".join(packed),
        )  # fmt: skip


def _texts(seq: int) -> list[bytes]:
    return [
        b"%d" % seq, b"%d" % (seq % 10_000), b"a note about order %d" % seq, b"%d.%02d" % (seq % 1_000, seq % 100),
        b"2026-01-02 03:%02d:%02d.678+00" % (seq // 60 % 60, seq % 60), b"t" if seq % 3 else b"f", b"0.%d" % (seq + 1),
        b"a0eebc99-9c0b-4ef8-bb6d-%012x" % seq,
    ]  # fmt: skip


def _compare_filters(  # noqa: PLR0913, PLR0917  # what is measured, and of what
    report: Report,
    what: str,
    backlog: str,
    records: Sequence[bytes],
    cores: tuple[Implementation, Implementation],
    arguments: tuple[_Tables, _Columns, Partition],
    changes: int,
    rounds: int,
) -> None:
    blocks = list(_blocks(records))
    filters = [lambda core=core: _scan(core.new_filter(*arguments), blocks) for core in cores]
    if filters[0]() != filters[1]():
        raise SystemExit(f"{what}: the cores send different bytes")
    native, pure = (_seconds(one, rounds) for one in filters)
    for name, seconds in (("native core", native), ("Python", pure)):
        report.row(what, backlog, name, f"{seconds / changes * 1e6:.3f}", f"{changes / seconds:,.0f}")
    report.ratio(f"{what}/pure {backlog}", pure / native)


def _blocks(records: Sequence[bytes]) -> Iterator[list[bytes]]:
    block: list[bytes] = []
    size = 0
    for record in records:
        block.append(record)
        size += len(record)
        if size >= _BLOCK_BYTES:
            yield block
            block, size = [], 0
    yield block


def _scan(one_filter: RecordFilter, blocks: Sequence[list[bytes]]) -> int:
    """Bytes that are sent."""
    return sum(len(b"".join(one_filter.scan(block))) for block in blocks)


def _rows_of(record: bytes) -> Iterator[bytes]:
    for change in iter_changes(body_of(record, read_header(record))):
        yield change.after or b""


def _compare_rows(report: Report, payloads: Sequence[bytes], native: Implementation, rounds: int) -> None:
    form = fastavro.parse_schema(avro_schema(_LAYOUTS[1]))
    read, row = fastavro.schemaless_reader, native.new_row_reader(_LAYOUTS[1]).python
    for payload in payloads[:1000]:
        theirs, ours = read(io.BytesIO(payload), form, None), row(payload)
        if {**theirs, "total": str(theirs["total"])} != {**ours, "total": str(ours["total"])}:
            raise SystemExit("rows: the values differ")

    def by_fastavro() -> None:
        for payload in payloads:
            read(io.BytesIO(payload), form, None)

    def by_walbus() -> None:
        for payload in payloads:
            row(payload)

    def by_arrow() -> None:
        columns = native.new_row_columns(_LAYOUTS[1])
        for first in range(0, len(payloads), _BATCH):
            columns.add(payloads[first : first + _BATCH])
            arrays_of(_LAYOUTS[1], columns.take())

    reference, ours, arrow = (_seconds(work, rounds) for work in (by_fastavro, by_walbus, by_arrow))
    for name, seconds in (("native core", ours), ("native core, Arrow", arrow), ("fastavro", reference)):
        report.row("rows", "any", name, f"{seconds / len(payloads) * 1e6:.3f}", f"{len(payloads) / seconds:,.0f}")
    report.ratio("rows/fastavro", reference / ours)
    report.ratio("arrow/fastavro", reference / arrow)


def _seconds(work: Callable[[], object], rounds: int) -> float:
    """Processor seconds, the median of the rounds."""
    taken = []
    for _ in range(rounds):
        begin = time.process_time()
        work()
        taken.append(time.process_time() - begin)
    return statistics.median(taken)
