"""The pieces of the log that are not made of rows: layouts, what must be seeded again, progress. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace

from walbus.log import Piece
from walbus.native.interface import Transaction
from walbus.records import Kind, Op, pack_change
from walbus.schema import TableSchema


def table_bit(oid: int) -> int:
    """A table's bit in the `tables` of a piece."""
    return 1 << oid % 64


def schema_piece(transaction: Transaction, ordinal: int, origin: bytes, schema: TableSchema) -> Piece:
    """The SCHEMA piece of a layout, inside a transaction.

    Args:
        transaction: the open one.
        ordinal: of the last change before it, which must have been handed out.
        origin: of the transaction.
        schema: the layout.
    """
    document = json.dumps(schema.to_dict()).encode()
    body = pack_change(Op.SCHEMA, table=schema.oid, schema_id=schema.id, seq_delta=0, ordinal_delta=0, after=document)
    return Piece(
        kind=Kind.SCHEMA,
        flags=0,
        epoch=transaction.epoch,
        commit_lsn=transaction.commit_lsn,
        end_lsn=0,
        first_ordinal=ordinal,
        last_ordinal=ordinal,
        count=1,
        xid=transaction.xid,
        commit_time=transaction.commit_time,
        origin=origin,
        tables=table_bit(schema.oid),
        body=body,
    )


def reseed_piece(epoch: int, bound: int, now: int, schema: TableSchema, reseed: Mapping[str, str]) -> Piece:
    """The SCHEMA piece between transactions that says: the table's rows changed, and no event said how.

    Args:
        epoch: the timeline that holds `bound`.
        bound: everything that commits before this LSN is in the log.
        now: the server's clock, Unix microseconds.
        schema: the table's last layout.
        reseed: why, as `docs/log-format.md` describes it.
    """
    document = json.dumps({**schema.to_dict(), "reseed": dict(reseed)}).encode()
    body = pack_change(Op.SCHEMA, table=schema.oid, schema_id=schema.id, seq_delta=0, ordinal_delta=0, after=document)
    return replace(
        progress_piece(epoch, bound, now), kind=Kind.SCHEMA, count=1, tables=table_bit(schema.oid), body=body
    )


def progress_piece(epoch: int, bound: int, now: int) -> Piece:
    """The PROGRESS piece that says: everything that commits before `bound` is in the log.

    Args:
        epoch: the timeline that holds `bound`.
        bound: an LSN.
        now: the server's clock, Unix microseconds.
    """
    return Piece(
        kind=Kind.PROGRESS,
        flags=0,
        epoch=epoch,
        commit_lsn=bound,
        end_lsn=0,
        first_ordinal=0,
        last_ordinal=0,
        count=0,
        xid=0,
        commit_time=now,
    )
