"""The registry of table layouts in TOPIC.meta; see `walbus.log.SchemaRegistry`."""

from __future__ import annotations

from collections.abc import Callable

from walbus.errors import UsageError
from walbus.relay.kafka.meta import Meta
from walbus.relay.layout_numbers import LayoutNumbers
from walbus.schema import TableSchema


class KafkaLayouts:
    """A reader's registry; thread-safe.

    Args:
        meta: the topic.
    """

    def __init__(self, meta: Meta) -> None:
        self._meta = meta

    def register(self, schema: TableSchema) -> tuple[TableSchema, bool]:
        """Refused: only the log's writer registers layouts."""
        raise UsageError("a log reader cannot register a schema", where=schema.table)

    def get(self, schema_id: int) -> TableSchema:
        """The version with this number; KeyError if there is none."""
        try:
            return self._meta.layout(schema_id)
        except KeyError:
            self._meta.refresh()
        return self._meta.layout(schema_id)

    def all(self) -> list[TableSchema]:
        """Every version, by number."""
        self._meta.refresh()
        return self._meta.layouts()


class KafkaLayoutWriter(LayoutNumbers):
    """The writer's registry.

    Args:
        meta: the topic, read to its end.
        announced: the largest id whose SCHEMA record is durable.
        write: makes a new version durable.
    """

    def __init__(self, meta: Meta, announced: int, write: Callable[[TableSchema], None]) -> None:
        super().__init__(meta.layouts(), announced)
        self._write_version = write

    def get(self, schema_id: int) -> TableSchema:
        """The version with this number; KeyError if there is none."""
        return self._known[schema_id]

    def _write(self, version: TableSchema) -> None:
        self._write_version(version)
