"""The zoo's life in table topics: what a reader of topics must have, by what PostgreSQL prints.

inserted, updated = live(zoo)
… capture, make records, read them …
found, rows = differences(reads, zoo, inserted, updated)
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from support.zoo import Zoo, rows_of
from support.zoo_check import Rows, types_of
from support.zoo_values import Expected, identical


class TopicRead(NamedTuple):
    """A record as a reader has it.

    Attributes:
        topic: that it was in.
        key: as bytes.
        op: by its header.
        fields: of the key.
        row: None for a deleted key.
    """

    topic: str
    key: bytes
    op: bytes
    fields: dict[str, Any]
    row: dict[str, Any] | None


def live(zoo: Zoo) -> tuple[dict[str, Rows], dict[str, Rows]]:
    """The zoo's whole life; its rows after the inserts, and after the updates."""
    tables = [*(specimen.table for specimen in zoo.specimens), *zoo.key_tables]
    zoo.insert()
    inserted = {table: rows_of(zoo.connection, table) for table in tables}
    zoo.update()
    updated = {table: rows_of(zoo.connection, table) for table in tables}
    zoo.delete()
    return inserted, updated


def differences(
    reads: Iterable[TopicRead], zoo: Zoo, inserted: dict[str, Rows], updated: dict[str, Rows]
) -> tuple[list[str], int]:
    """What differs from the source, each row as it was inserted and what compaction would leave; and how many were."""
    kinds, expected = types_of(zoo.connection), Expected(zoo.connection)
    found, last, given = [], dict[str, dict[bytes, TopicRead]](), dict[str, list[TopicRead]]()
    for read in reads:
        table = read.topic.rpartition(".")[2]
        last.setdefault(table, {})[read.key] = read
        if read.op == b"insert":
            given.setdefault(table, []).append(read)
    for table, rows in inserted.items():
        types, mine = kinds[table], given.get(table, [])
        left = {} if table in zoo.key_tables else {n: r for n, r in updated[table].items() if not n % 2}
        kept = [read for read in last.get(table, {}).values() if read.row is not None]
        assert (len(mine), len(kept)) == (len(rows), len(left)), table
        pairs = [*zip(mine, rows.values(), strict=True), *((read, left[read.fields["id"]]) for read in kept)]
        for read, source in pairs:
            assert read.row is not None
            for name, (text, _) in source.items():
                wanted = expected.avro(types[name], text)
                if not identical(read.row[name], wanted):
                    found.append(f"{types[name]} in a value: {text!r:.200}")
                if name in read.fields and not identical(read.fields[name], wanted):
                    found.append(f"{types[name]} in a key: {text!r:.200}")
    return found, sum(map(len, given.values()))
