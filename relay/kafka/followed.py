"""The log on a cluster for who follows it for long, and asks for layouts from threads that must not wait for it.

Layouts are told as they were known last, whether or not the cluster answers. They are learned where the log is read:
before records are given out that tell of a layout, and about once a second, since no record tells that of a table
without changes.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from walbus.errors import UsageError
from walbus.log import Bounds, LogCursor, SchemaRegistry, SourceIdentity
from walbus.position import Position
from walbus.records import Kind
from walbus.relay.kafka.reader import KafkaLogReader
from walbus.schema import TableSchema

_LEARN_SECONDS = 1.0
_SCHEMA = int(Kind.SCHEMA)
_KIND_AT = 9  #: in the header of a record


class KnownLayouts:
    """The layouts of a log as they were known last; thread-safe. See `walbus.log.SchemaRegistry`.

    Args:
        schemas: those of the log.
        monotonic: seconds.
    """

    def __init__(self, schemas: SchemaRegistry, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._schemas, self._monotonic = schemas, monotonic
        self._known: dict[int, TableSchema] = {}
        self._learned = 0.0
        self.learn()

    def learn(self) -> None:
        """Asks for those that there are now.

        Raises:
            LogError: they are not told.
        """
        self._known = {schema.id: schema for schema in self._schemas.all()}
        self._learned = self._monotonic()

    def learn_now_and_then(self) -> None:
        """As `learn`, if that was a while ago."""
        if self._monotonic() - self._learned >= _LEARN_SECONDS:
            self.learn()

    def register(self, schema: TableSchema) -> tuple[TableSchema, bool]:
        """Refused: only the log's writer registers layouts."""
        raise UsageError("a log reader cannot register a schema", where=schema.table)

    def get(self, schema_id: int) -> TableSchema:
        """The version with this number; KeyError if none is known."""
        return self._known[schema_id]

    def all(self) -> list[TableSchema]:
        """Every version that is known, by number."""
        known = self._known
        return [known[schema_id] for schema_id in sorted(known)]


class FollowedLog:
    """See `walbus.log.LogReader`.

    Args:
        reader: of the log; closed with this one.

    Raises:
        LogError: the layouts are not told.
    """

    def __init__(self, reader: KafkaLogReader) -> None:
        self._reader = reader
        self._schemas = KnownLayouts(reader.schemas)

    @property
    def schemas(self) -> KnownLayouts:
        """The log's table layouts, as they are known here; also once the reader is closed."""
        return self._schemas

    @property
    def source(self) -> SourceIdentity:
        """Which database the log belongs to."""
        return self._reader.source

    def bounds(self) -> Bounds:
        """What is durable now; one round trip to the cluster."""
        return self._reader.bounds()

    def cursor(self, after: Position) -> LogCursor:
        """A cursor behind a "last done" position; see `walbus.log.LogReader.cursor`."""
        return _Learning(self._reader.cursor(after), self._schemas)

    def position_at(self, time: float) -> Position:
        """See `walbus.log.LogReader.position_at`."""
        return self._reader.position_at(time)

    def position_at_seq(self, seq: int) -> Position:
        """See `walbus.log.LogReader.position_at_seq`."""
        return self._reader.position_at_seq(seq)

    def wait(self, seen: Position, timeout: float) -> bool:
        """Blocks until the durable end is past `seen`; False after `timeout` seconds without that."""
        self._schemas.learn_now_and_then()
        return self._reader.wait(seen, timeout)

    def close(self) -> None:
        """Frees its connections."""
        self._reader.close()


class _Learning:
    """A cursor that learns the layouts of what it gives."""

    def __init__(self, cursor: LogCursor, schemas: KnownLayouts) -> None:
        self._cursor, self._schemas = cursor, schemas

    def read(self, max_bytes: int) -> list[bytes]:
        """See `walbus.log.LogCursor.read`."""
        records = self._cursor.read(max_bytes)
        if any(record[_KIND_AT] == _SCHEMA for record in records):
            self._schemas.learn()
        else:
            self._schemas.learn_now_and_then()
        return records

    def close(self) -> None:
        """Frees its connections."""
        self._cursor.close()
