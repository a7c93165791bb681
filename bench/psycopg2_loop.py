"""What many write instead of a change-data-capture service: pgoutput over psycopg2, decoded by hand.

    psycopg2_loop.py DSN SLOT ROWS      prints {"rows", "seconds", "cpu"} as JSON

Reads a slot until `ROWS` have come and their transaction has ended, has each inserted row as Python values, and counts
them. It is as fast as such a loop could be made here: one function a column, chosen by the table's layout; nothing is
written, and the server is told once a second how far it is. psycopg2 is found on PYTHONPATH.
"""

from __future__ import annotations

import importlib
import json
import struct
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

_TYPES: dict[int, Callable[[str], Any]] = {
    16: "t".__eq__, 20: int, 23: int, 701: float, 1184: datetime.fromisoformat, 1700: Decimal, 2950: UUID,
}  # fmt: skip
_SIZE = struct.Struct(">i")
_TABLE = struct.Struct(">I")
_COMMIT = struct.Struct(">BQQ")  # flags, the commit's LSN, the LSN behind it
_RELATION_COLUMN = struct.Struct(">Ii")


class _Done(Exception):  # noqa: N818  # no error
    """All rows have come."""


class _Rows:
    """Counts rows, each of which it has as a dictionary."""

    def __init__(self, wanted: int) -> None:
        self.count = 0
        self._wanted = wanted
        self._layouts: dict[int, list[tuple[str, Callable[[str], Any]]]] = {}
        self._told = time.monotonic()

    def __call__(self, message: Any) -> None:  # noqa: ANN401  # psycopg2 has no types
        data: bytes = message.payload
        kind = data[0]
        if kind == 73:  # I(nsert): table, `N`, number of columns, columns
            if self._row(data):
                self.count += 1
        elif kind == 82:  # R(elation)
            self._relation(data)
        elif kind == 67:  # C(ommit)
            if self.count >= self._wanted:
                raise _Done
            if time.monotonic() - self._told > 1:
                self._told = time.monotonic()
                message.cursor.send_feedback(flush_lsn=_COMMIT.unpack_from(data, 1)[2])

    def _row(self, data: bytes) -> dict[str, Any]:
        row = {}
        at = 8
        for name, of_text in self._layouts[_TABLE.unpack_from(data, 1)[0]]:
            if data[at] == 116:  # t(ext)
                begin = at + 5
                at = begin + _SIZE.unpack_from(data, at + 1)[0]
                row[name] = of_text(data[begin:at].decode())
            else:
                row[name] = None
                at += 1
        return row

    def _relation(self, data: bytes) -> None:
        table = _TABLE.unpack_from(data, 1)[0]
        _, _, rest = data[5:].split(b"\0", 2)
        count, at, columns = int.from_bytes(rest[1:3], "big"), 3, []
        for _ in range(count):
            end = rest.index(b"\0", at + 1)
            type_oid, _ = _RELATION_COLUMN.unpack_from(rest, end + 1)
            columns.append((rest[at + 1 : end].decode(), _TYPES.get(type_oid, str)))
            at = end + 1 + _RELATION_COLUMN.size
        self._layouts[table] = columns


def main(dsn: str, slot: str, wanted: int) -> None:
    """Reads, and tells what it took."""
    extras = importlib.import_module("psycopg2.extras")
    connection = importlib.import_module("psycopg2").connect(
        dsn, connection_factory=extras.LogicalReplicationConnection
    )
    cursor, rows = connection.cursor(), _Rows(wanted)
    begun = time.perf_counter(), time.process_time()
    options = {"proto_version": "1", "publication_names": "walbus"}
    cursor.start_replication(slot_name=slot, decode=False, options=options)
    with suppress(_Done):
        cursor.consume_stream(rows)
    seconds, cpu = time.perf_counter() - begun[0], time.process_time() - begun[1]
    print(json.dumps({"rows": rows.count, "seconds": seconds, "cpu": cpu}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
