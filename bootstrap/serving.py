"""A snapshot as records: rows of one view of the store, in key order, behind one position. Bytes out, no sockets."""

from __future__ import annotations

from collections.abc import Iterator

from walbus.bootstrap.entry import live_row
from walbus.bootstrap.state import APPLIED, TABLES, Applied, TableState, decode
from walbus.bootstrap.store import View, space_of
from walbus.errors import StoreError
from walbus.records import Flag, Kind, Op, pack_change, pack_record

#: Bytes of rows in one record.
_RECORD_BYTES = 128 << 10


class ServedView:
    """One instant of the store, with the position that it is at."""

    def __init__(self, view: View) -> None:
        """Reads the position and the tables of the view.

        Raises:
            StoreError: the store follows no log yet.
        """
        self._view = view
        applied = view.documents(APPLIED).get(APPLIED)
        if applied is None:
            raise StoreError("the store follows no log yet", mend="start `walbus capture`, and ask again")
        self.applied = decode(applied, Applied)
        states = [decode(content, TableState) for content in view.documents(TABLES).values()]
        self.tables = {state.table: state for state in sorted(states, key=lambda state: state.table)}

    def records(self, table: TableState, after_key: bytes = b"") -> Iterator[bytes]:
        """SNAPSHOT records of a table's rows behind a key; the last one, perhaps empty, has the END flag."""
        body: list[bytes] = []
        size = 0
        for key, value in self._view.entries(space_of(table.oid, table.generation), after_key):
            row = live_row(value)
            if row is None:
                continue
            seq, schema_id, after = row
            change = pack_change(
                Op.INSERT, table=table.oid, schema_id=schema_id, seq_delta=seq, ordinal_delta=0, key=key, after=after
            )
            body.append(change)
            size += len(change)
            if size >= _RECORD_BYTES:
                yield self._record(table, body, Flag(0))
                body, size = [], 0
        yield self._record(table, body, Flag.END)

    def _record(self, table: TableState, body: list[bytes], flags: Flag) -> bytes:
        applied = self.applied
        return pack_record(
            Kind.SNAPSHOT,
            flags=flags,
            epoch=applied.epoch,
            commit_lsn=applied.commit_lsn,
            first_ordinal=applied.ordinal,
            last_ordinal=applied.ordinal,
            first_seq=0,
            last_seq=applied.last_seq,
            commit_time=applied.commit_time,
            count=len(body),
            tables=1 << table.oid % 64,
            body=b"".join(body),
        )
