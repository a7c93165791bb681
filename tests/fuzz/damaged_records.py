"""Damages the records of a log one by one, gives them to both cores, and prints how much this process grew, in KiB.

    python tests/fuzz/damaged_records.py STREAM [SHARE SEED]

The records are those that capture makes of a stream of the corpus. Each is damaged as in `damaged_streams`; what comes
of it must be the same in both cores: bytes or a refusal by the filter (of tables, of a partition, of columns), and
values, columns or a refusal by what reads rows. Checksums are not looked at, as if they were forged too.
"""

from __future__ import annotations

import json
import random
import resource
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS), str(TESTS.parent), str(TESTS / "fuzz")]

from damaged_streams import ROOM, address_space, damages, peak_kib  # noqa: E402

from support.pgoutput_streams import outcome_of, unpack_stream  # noqa: E402
from walbus.errors import DamagedRecord  # noqa: E402
from walbus.native import Implementation, native_implementation, pure_implementation  # noqa: E402
from walbus.native.reading import ALL_TABLES, WHOLE, Partition  # noqa: E402
from walbus.records import Kind, body_of, iter_changes, read_header  # noqa: E402
from walbus.schema import TableSchema  # noqa: E402


class Chosen:
    """One table of those that the log knows, or all."""

    def __init__(self, layouts: dict[int, TableSchema], *numbers: int) -> None:
        self.layouts, self.numbers = layouts, numbers
        self.bits = sum({1 << layouts[number].oid % 64 for number in numbers}) if numbers else ALL_TABLES

    def learn(self) -> None:
        """The layouts stay."""

    def wants_change(self, _op: int, _table: int, schema_id: int) -> bool:
        if schema_id and schema_id not in self.layouts:
            raise DamagedRecord("no such layout")
        return not self.numbers or schema_id in self.numbers


class Every:
    """All columns, or every other one."""

    def __init__(self, layouts: dict[int, TableSchema], *, other: bool) -> None:
        self.layouts, self.everything = layouts, not other

    def left_out(self, schema_id: int) -> tuple[TableSchema, int]:
        layout = self.layouts[schema_id]
        return layout, sum(2 << i for i in range(0, len(layout.columns) - 1, 2))


def outcome(work: Callable[[], object]) -> str:
    """What came of it, or how it was refused; any other error comes through."""
    try:
        return repr(work())
    except DamagedRecord as error:
        return str(error)


def filtered(core: Implementation, layouts: dict[int, TableSchema], record: bytes) -> list[str]:
    ways = (
        (Chosen(layouts, 1), Every(layouts, other=False), WHOLE),
        (Chosen(layouts), Every(layouts, other=False), Partition(1, 3)),
        (Chosen(layouts), Every(layouts, other=True), Partition(0, 2)),
    )
    return [outcome(lambda way=way: core.new_filter(*way).scan([record])) for way in ways]


def read(core: Implementation, layout: TableSchema, row: bytes) -> list[str]:
    reader, columns = core.new_row_reader(layout), core.new_row_columns(layout)

    def collected() -> object:
        columns.add([row])
        return columns.take()

    # a number beyond its type is refused at another place by each
    taken = outcome(collected) if layout.columns else ""
    return [
        outcome(lambda: reader.python(row)),
        outcome(lambda: reader.raw(row)),
        "refused" if "(at " in taken else taken,
    ]


def main() -> None:
    """Tries them all; an AssertionError names the first one on which the cores differ."""
    path, share, seed = Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
    native, pure = native_implementation(), pure_implementation("compared")
    records = outcome_of(native, unpack_stream(path.read_bytes())).records
    layouts = layouts_in(records)
    rows = [(layouts[c.schema_id], c.after) for record in records for c in changes_of(record) if c.after is not None]
    for record in records:
        assert filtered(native, layouts, record) == filtered(pure, layouts, record)
    for layout, row in rows:
        assert read(native, layout, row) == read(pure, layout, row)
    before, tried, dice = peak_kib(), 0, random.Random(seed)
    limit = address_space() + ROOM
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for record in dict.fromkeys(records):
        for damaged in damages(record):
            if dice.random() < share:
                assert filtered(native, layouts, damaged) == filtered(pure, layouts, damaged), damaged.hex()
                tried += 1
    for layout, row in dict.fromkeys(rows):
        for damaged in damages(row):
            if dice.random() < share:
                assert read(native, layout, damaged) == read(pure, layout, damaged), f"{layout.table}: {damaged.hex()}"
                tried += 1
    print(tried, peak_kib() - before)


def layouts_in(records: Sequence[bytes]) -> dict[int, TableSchema]:
    found = [
        TableSchema.from_dict(json.loads(change.after or b""))
        for record in records
        if read_header(record).kind == Kind.SCHEMA
        for change in iter_changes(body_of(record, read_header(record)))
    ]
    return {layout.id: layout for layout in found}


def changes_of(record: bytes) -> list:
    header = read_header(record)
    if header.kind != Kind.TRANSACTION:
        return []
    return [change for change in iter_changes(body_of(record, header)) if change.schema_id]


if __name__ == "__main__":
    main()
