"""Logs whose rows and layouts are real, so that everything that looks into records can: `walbus log`, checks, streams.

writer = engine.open_writer()
fill_well(writer, 900)                     # transactions 16, 32, … of 1 to 3 rows, one in ten in two pieces
assert findings_of(engine.folder) == []
"""

from __future__ import annotations

import dataclasses
from contextlib import closing
from pathlib import Path

from support.relay_log import piece, schema_piece, table_schema
from walbus.keys import encode_key
from walbus.log import LogWriter, Piece
from walbus.records import Flag, Op, pack_change
from walbus.relay.log_check import LogCheck
from walbus.relay.segment_check import Finding
from walbus.schema import TableSchema
from walbus.values import row_encoder

INT4 = 23


def rows(lsn: int, first: int, count: int, flags: int, schema: TableSchema, *, note: str = "") -> Piece:
    """A piece whose rows have the keys lsn*100+ordinal."""
    encoder, body = row_encoder(schema), b""
    for i in range(count):
        key = b"%d" % (lsn * 100 + first + i)
        texts = [key, note.encode()][: len(schema.columns)]
        body += pack_change(
            Op.INSERT, table=schema.oid, schema_id=schema.id, seq_delta=i, ordinal_delta=i,
            key=encode_key([key], [INT4]), after=encoder.encode(texts),
        )  # fmt: skip
    return dataclasses.replace(piece(lsn, first, count, flags, table=schema.oid), body=body)


def fill_well(writer: LogWriter, count: int, *, first: int = 1, sync_every: int = 10) -> TableSchema:
    """Appends and syncs transactions at LSN 16 times their number; the layout of their table."""
    schema, new = writer.schemas.register(table_schema())
    if new:
        writer.append(schema_piece(16 * first, 0, schema))
    for i in range(first, first + count):
        if i % 10:
            writer.append(rows(16 * i, 1, 1 + i % 3, Flag.BEGIN | Flag.END, schema))
        else:
            writer.append(rows(16 * i, 1, 40, Flag.BEGIN, schema))
            writer.append(rows(16 * i, 41, 40, Flag.END, schema))
        if i % sync_every == 0:
            writer.sync()
    writer.sync()
    return schema


def findings_of(folder: Path) -> list[Finding]:
    """What a check of the log finds."""
    with closing(LogCheck(folder)) as check:
        return list(check.findings(lambda _: None))
