"""Compares every row of every sink with the source, value by value, and names each difference.

Meant for a moment of rest: the load has stopped, and every consumer has passed the last commit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from walbus.demo.sink_rows import Found, SinkRows
from walbus.demo.source_rows import Key, SourceTable, read_source, table_names
from walbus.demo.value_match import same_value


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that is not as it is in the source.

    Attributes:
        sink: `cache`, `search` or `redis`.
        table: `namespace.name`.
        key: texts of the key's columns; empty where the table as a whole is meant.
        column: whose value differs; None where a row is missing or too many.
        what: in words.
    """

    sink: str
    table: str
    key: Key
    column: str | None
    what: str

    def __str__(self) -> str:
        key = f" key ({', '.join(self.key)})" if self.key else ""
        column = f" column {self.column}" if self.column else ""
        return f"{self.sink}: {self.table}{key}{column}: {self.what}"


@dataclass
class Comparison:
    """What came out: rows compared by sink, and all differences."""

    rows: dict[str, int] = field(default_factory=dict)
    differences: list[Difference] = field(default_factory=list)


def compare_sinks(dsn: str, sinks: Sequence[SinkRows]) -> Comparison:
    """Compares all tables of the source that have a key with all sinks, and closes the sinks.

    Args:
        dsn: of the source.
        sinks: as `walbus.demo.sink_rows` opens them.
    """
    comparison = Comparison(dict.fromkeys((sink.name for sink in sinks), 0))
    for table in read_source(dsn):
        for sink in sinks:
            comparison.rows[sink.name] += len(table.rows)
            comparison.differences += differences(sink.name, table, sink.rows(table))
    names = table_names(dsn)
    for sink in sinks:
        for name in sorted(sink.tables() - names):
            comparison.differences.append(Difference(sink.name, name, (), None, "the source has no such table"))
        sink.close()
    return comparison


def differences(sink: str, table: SourceTable, found: Iterable[Found]) -> Iterator[Difference]:
    """Every difference between a table and what a sink holds of it."""
    missing = set(table.rows)
    for key, values in found:
        texts = table.rows.get(key)
        if texts is None:
            yield Difference(sink, table.table, key, None, "the sink has a row that the source has not")
        elif key not in missing:
            yield Difference(sink, table.table, key, None, "the sink has this row twice")
        else:
            missing.discard(key)
            yield from _row_differences(sink, table, key, texts, values)
    for key in sorted(missing):
        yield Difference(sink, table.table, key, None, "the sink does not have this row")


def _row_differences(
    sink: str, table: SourceTable, key: Key, texts: tuple[str | None, ...], values: Mapping[str, object]
) -> Iterator[Difference]:
    for column, text in zip(table.columns, texts, strict=True):
        if column.name not in values:
            yield Difference(sink, table.table, key, column.name, "the sink does not have this column")
        elif not same_value(column.type_name, text, values[column.name]):
            yield Difference(sink, table.table, key, column.name, "the values differ")
