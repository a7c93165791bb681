"""Pieces that do not come out of the stream's rows: layouts, what must be seeded again, progress, differences. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace

from walbus.log import Piece
from walbus.native.interface import Transaction
from walbus.position import Position
from walbus.records import Flag, Kind, Op, pack_change
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


def reseed_piece(at: Position, now: int, schema: TableSchema, reseed: Mapping[str, str]) -> Piece:
    """The SCHEMA piece between transactions that says: the table's rows changed, and no event said how.

    Args:
        at: where it stands, behind all that was received.
        now: the server's clock, Unix microseconds.
        schema: the table's last layout.
        reseed: why, as `docs/log-format.md` describes it.
    """
    document = json.dumps({**schema.to_dict(), "reseed": dict(reseed)}).encode()
    body = pack_change(Op.SCHEMA, table=schema.oid, schema_id=schema.id, seq_delta=0, ordinal_delta=0, after=document)
    return _schema_between(at, now, schema, body)


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


def layout_piece(at: Position, now: int, schema: TableSchema, difference: Mapping[str, object] | None = None) -> Piece:
    """A SCHEMA piece that tells a layout again, and perhaps that a net difference of its table is whole.

    Args:
        at: of the change before it.
        now: the server's clock, Unix microseconds.
        schema: the layout.
        difference: what it was, as `docs/log-format.md` describes it.
    """
    told = {} if difference is None else {"difference": dict(difference)}
    document = json.dumps({**schema.to_dict(), **told}).encode()
    body = pack_change(Op.SCHEMA, table=schema.oid, schema_id=schema.id, seq_delta=0, ordinal_delta=0, after=document)
    return _schema_between(at, now, schema, body)


def _schema_between(at: Position, now: int, schema: TableSchema, body: bytes) -> Piece:
    """A SCHEMA piece that belongs to no transaction of the source."""
    return replace(
        progress_piece(at.epoch, at.commit_lsn, now),
        kind=Kind.SCHEMA, first_ordinal=at.ordinal, last_ordinal=at.ordinal, count=1, tables=table_bit(schema.oid),
        body=body,
    )  # fmt: skip


class NetTransaction:
    """The TRANSACTION pieces of a net difference.

    Args:
        place: where it stands; ordinal 0.
        now: the server's clock, Unix microseconds.
        origin: its name.
        oid: of the table.
    """

    def __init__(self, place: Position, now: int, origin: bytes, oid: int) -> None:
        self._piece = replace(
            progress_piece(place.epoch, place.commit_lsn, now), kind=Kind.TRANSACTION, flags=Flag.NET, origin=origin
        )
        self._bit = table_bit(oid)
        self._done = 0

    def begin(self) -> Piece:
        """The first piece, which has no change."""
        return replace(self._piece, flags=int(Flag.NET | Flag.BEGIN))

    def piece(self, body: bytes, count: int, end_lsn: int | None = None) -> Piece:
        """The next piece.

        Args:
            body: its changes.
            count: how many.
            end_lsn: of the last piece: the log holds everything that commits before this LSN.
        """
        first, self._done = self._done + 1, self._done + count
        flags = Flag.NET if end_lsn is None else Flag.NET | Flag.END
        return replace(
            self._piece, flags=int(flags), first_ordinal=first, last_ordinal=self._done, count=count, tables=self._bit,
            body=body, end_lsn=end_lsn or 0,
        )  # fmt: skip
