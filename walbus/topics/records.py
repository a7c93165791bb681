"""Records for Kafka: the bytes, headers and partitions of table topics (docs/kafka.md). No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final, NamedTuple, Protocol

from walbus.events import Change, Window
from walbus.position import Position
from walbus.records import key_hash
from walbus.schema import TableSchema
from walbus.topics.ends import end_key, end_value
from walbus.topics.forms import key_bytes
from walbus.topics.names import TopicNames

_MAGIC: Final = b"\x00"
WIRE: Final = 5  #: bytes before the Avro
Headers = tuple[tuple[str, bytes], ...]


class SchemaIds(Protocol):
    """The ids of the schemas that records name."""

    def rows(self, layout: TableSchema) -> int:
        """That of a layout's rows."""

    def keys(self, layout: TableSchema) -> int:
        """That of a layout's keys."""

    @property
    def ends(self) -> tuple[int, int]:
        """Those of the key and of the value of a transaction's end."""


@dataclass(frozen=True, slots=True)
class TopicRecord:
    """A record for Kafka.

    Attributes:
        topic: where it goes.
        hash: of its key in the log: it goes to the partition `hash % partitions`.
        key: in the Confluent wire format.
        value: likewise; None deletes the key.
        headers: names and values.
        time: Unix milliseconds of the commit.
    """

    topic: str
    hash: int
    key: bytes
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]
    time: int

    def partition(self, partitions: int) -> int:
        """Which of so many partitions it goes to."""
        return self.hash % partitions


class Cause(NamedTuple):
    """What a record is of.

    Attributes:
        position: of the change.
        seq: version of the row.
        xid: of the transaction; 0 without one.
        op: what was done.
        time: Unix milliseconds of the commit; 0 where there is none.
    """

    position: Position
    seq: int
    xid: int
    op: str
    time: int

    @classmethod
    def of(cls, window: Window, change: Change) -> Cause:
        """That of a change's records."""
        op = change.op.name.lower()
        return cls(change.position, change.seq, window.xid, op, milliseconds(window.commit_time))


class Row(NamedTuple):
    """A whole row.

    Attributes:
        layout: of it.
        row: its bytes in the log.
    """

    layout: TableSchema
    row: bytes


class RecordMaker:
    """Makes the records of one log. A value is a row as the log has it; a subclass may put it otherwise.

    Args:
        names: of the topics.
        ids: of the schemas.
        log_id: of the log; stands in every record, since seqs compare only within it. None: it is not known yet.

    Attributes:
        log_id: as above.
    """

    def __init__(self, names: TopicNames, ids: SchemaIds, log_id: str | None) -> None:
        self._names, self._ids, self.log_id = names, ids, log_id

    def key(self, layout: TableSchema, key: bytes) -> bytes:
        """A key of the log in the Confluent wire format.

        Raises:
            DamagedRecord: the bytes are no key of this layout.
        """
        return framed(self._ids.keys(layout), key_bytes(layout, key))

    def record(  # noqa: PLR0913, PLR0917 - what a record is made of
        self, topic: str, layout: TableSchema, key: bytes, row: bytes | None, cause: Cause, more: Headers = ()
    ) -> TopicRecord:
        """A row under its key; or, without a row, the key deleted.

        Args:
            topic: where it goes.
            layout: of key and row.
            key: as in the log.
            row: whole, as in the log.
            cause: what it is of.
            more: headers behind those that all records have.

        Raises:
            DamagedRecord: the key is none of this layout.
        """
        value = None if row is None else framed(self._ids.rows(layout), row)
        return self.framed(topic, key, self.key(layout, key), value, cause, more)

    def written(  # noqa: PLR0913, PLR0917 - as above
        self, topic: str, key: bytes, row: Row, before: Row | None, cause: Cause, more: Headers
    ) -> TopicRecord:
        """The record of a row under its key.

        Args:
            topic: where it goes.
            key: as in the log.
            row: what is written.
            before: what was under the key, if anything was and is known.
            cause: what it is of.
            more: headers behind those that all records have.

        Raises:
            DamagedRecord: the key is none of its layout.
        """
        del before
        return self.record(topic, row.layout, key, row.row, cause, more)

    def deleted(  # noqa: PLR0913, PLR0917 - as above
        self, topic: str, key: bytes, framed_key: bytes, before: Row | None, cause: Cause, more: Headers
    ) -> tuple[TopicRecord, ...]:
        """The records of a key that is deleted; the last one has no value.

        Args:
            topic: where they go.
            key: as in the log.
            framed_key: as it stands in the topic.
            before: what was under the key, if that is known.
            cause: what they are of.
            more: headers behind those that all records have.
        """
        del before
        return (self.framed(topic, key, framed_key, None, cause, more),)

    def row_of(self, layout: TableSchema, value: bytes, headers: Mapping[str, bytes]) -> bytes | None:
        """The row, as the log has it, in the value of one of these records; None: it has none."""
        del layout, headers
        return value[WIRE:]

    def is_of(self, layout: TableSchema, row: bytes, value: bytes, headers: Mapping[str, bytes]) -> bool:
        """Whether a value is what is written of a row that `row_of` has read in it, its schema's id included."""
        del headers
        return value == framed(self._ids.rows(layout), row)

    def framed(  # noqa: PLR0913, PLR0917 - as above
        self, topic: str, key: bytes, framed_key: bytes, value: bytes | None, cause: Cause, more: Headers = ()
    ) -> TopicRecord:
        """As `record`, of what is in the wire format already."""
        headers = (
            ("walbus.position", str(cause.position).encode()),
            ("walbus.seq", b"%d" % cause.seq),
            ("walbus.xid", b"%d" % cause.xid),
            ("walbus.op", cause.op.encode()),
            *self.log_header(),
            *more,
        )
        return TopicRecord(topic, key_hash(key), framed_key, value, headers, cause.time)

    def log_header(self) -> Headers:
        """The header that names the log; none while it is not known."""
        return () if self.log_id is None else (("walbus.log_id", self.log_id.encode()),)

    def end(self, last: Window, counts: Mapping[str, int]) -> TopicRecord:
        """The end of a transaction: its last piece, and the records of all its pieces by topic; the log is known."""
        key_id, value_id = self._ids.ends
        key, value = end_key(self.log_id or "", last.last), end_value(last, counts)
        topic, time = self._names.transactions, milliseconds(last.commit_time)
        return TopicRecord(topic, 0, framed(key_id, key), framed(value_id, value), (), time)


def framed(schema_id: int, avro: bytes) -> bytes:
    """Avro in the Confluent wire format."""
    return b"".join((_MAGIC, schema_id.to_bytes(4, "big"), avro))


def milliseconds(time: datetime) -> int:
    """Unix milliseconds, as Kafka has them."""
    return int(time.timestamp() * 1000)
