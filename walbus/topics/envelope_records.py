"""Records for Kafka with Debezium's envelope as their value (`walbus.topics.envelope`). No I/O.

A snapshot's row is op r. An insert is op c, and an update op u, with the old row where that is known and has the same
columns. A delete is two records: op d with the old row, and the key without a value. A row that gets another key is
deleted under the old one, and created under the new.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from walbus.schema import TableSchema
from walbus.topics.debezium_rows import debezium_key, debezium_row, is_exact, log_row
from walbus.topics.envelope import EnvelopeSource, envelope
from walbus.topics.names import TopicNames
from walbus.topics.records import WIRE, Cause, Headers, RecordMaker, Row, SchemaIds, TopicRecord, framed

_READS: Final = frozenset(("read", "move"))
#: Headers of a value with a row: where it lies, and, if it cannot be had back from there, the row as the log has it.
ROW_AT, ROW_AS_IT_WAS = "walbus.row_at", "walbus.row"


class EnvelopeMaker(RecordMaker):
    """See the module, and `RecordMaker`.

    Args:
        names: of the topics.
        ids: of the schemas: those of envelopes, and of their keys.
        log_id: of the log; None: it is not known yet.
        database: what the envelopes say that the source's database is called.
        version: of Walbus.
        server: what they say that the source is called; None: as the topics' names begin.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - what an envelope tells
        self,
        names: TopicNames,
        ids: SchemaIds,
        log_id: str | None,
        database: str,
        version: str,
        server: str | None = None,
    ) -> None:
        super().__init__(names, ids, log_id)
        self._name, self._database, self._version = server or names.prefix, database, version

    def key(self, layout: TableSchema, key: bytes) -> bytes:
        """See `RecordMaker.key`.

        Raises:
            NoFormError: a value of the key has no form in Debezium's types.
            DamagedRecord: the bytes are no key of this layout.
        """
        return framed(self._ids.keys(layout), debezium_key(layout, key))

    def written(  # noqa: PLR0913, PLR0917 - what a record is made of
        self, topic: str, key: bytes, row: Row, before: Row | None, cause: Cause, more: Headers
    ) -> TopicRecord:
        """See `RecordMaker.written`; NoFormError as above."""
        layout = row.layout
        op = "r" if cause.op in _READS else "u" if before is not None else "c"
        old = None
        if op == "u" and before is not None and before.layout.columns == layout.columns:
            old = debezium_row(before.layout, before.row)
        after = debezium_row(layout, row.row)
        found = envelope(layout, op, old, after, self._source(cause))
        at = WIRE + found.after
        headers = (*more, (ROW_AT, b"%d %d" % (at, at + len(after))))
        if not is_exact(layout, row.row):
            headers = (*headers, (ROW_AS_IT_WAS, row.row))
        value = framed(self._ids.rows(layout), found.avro)
        return self.framed(topic, key, self.key(layout, key), value, cause, headers)

    def deleted(  # noqa: PLR0913, PLR0917 - as above
        self, topic: str, key: bytes, framed_key: bytes, before: Row | None, cause: Cause, more: Headers
    ) -> tuple[TopicRecord, ...]:
        """See `RecordMaker.deleted`; the first one has the old row, if that is known."""
        tombstone = self.framed(topic, key, framed_key, None, cause, more)
        if before is None:
            return (tombstone,)
        row = debezium_row(before.layout, before.row)
        value = framed(self._ids.rows(before.layout), envelope(before.layout, "d", row, None, self._source(cause)).avro)
        return self.framed(topic, key, framed_key, value, cause, more), tombstone

    def row_of(self, layout: TableSchema, value: bytes, headers: Mapping[str, bytes]) -> bytes | None:
        """See `RecordMaker.row_of`."""
        at = headers.get(ROW_AT)
        if at is None:
            return None
        if ROW_AS_IT_WAS in headers:
            return headers[ROW_AS_IT_WAS]
        first, end = map(int, at.split())
        return log_row(layout, value[first:end])

    def is_of(self, layout: TableSchema, row: bytes, value: bytes, headers: Mapping[str, bytes]) -> bool:
        """See `RecordMaker.is_of`; of an envelope that counts which is in `after`."""
        first, end = map(int, headers[ROW_AT].split())
        is_of_schema = value[:WIRE] == framed(self._ids.rows(layout), b"")
        return is_of_schema and value[first:end] == debezium_row(layout, row)

    def _source(self, cause: Cause) -> EnvelopeSource:
        snapshot, lsn = cause.op in _READS, cause.position.commit_lsn
        return EnvelopeSource(self._version, self._name, self._database, cause.time * 1000, snapshot, cause.xid, lsn)
