"""The log's layouts as a schema registry, for whoever reads table topics (`walbus.topics.catalog`).

All layouts are told that are durable, also those that no record names yet: rows of a snapshot may be of them, and their
numbers are never given to others (`walbus.relay.layout_numbers`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from walbus.relay.reader import FileLogReader
from walbus.schema import TableSchema
from walbus.topics import Catalog, TopicNames

_SETTLED: Final = 2_000_000_000  # nanoseconds after which another version shows in the time of the last one


class LogRegistry:
    """The catalog of a log, as far as it is durable.

    Args:
        prefix: what names of topics begin with.
        now: Unix nanoseconds.
    """

    def __init__(self, prefix: str, now: Callable[[], int] = time.time_ns) -> None:
        self._names, self._now = TopicNames(prefix), now
        self._catalog = Catalog(self._names)
        self._layouts: list[TableSchema] = []
        self._seen: tuple[FileLogReader, int] | None = None

    def catalog(self, reader: FileLogReader) -> Catalog:
        """The catalog now: one look at a folder where nothing is new.

        Raises:
            DamagedRecord: a layout's file is damaged.
        """
        changed = reader.schemas.changed()
        if self._seen != (reader, changed):
            self._take(reader.schemas.all())
            self._seen = (reader, changed) if self._now() - changed > _SETTLED else None
        return self._catalog

    def _take(self, layouts: list[TableSchema]) -> None:
        known = len(self._layouts)
        if layouts[:known] != self._layouts:  # another log, or a copy that gave a version up
            self._catalog, known = Catalog(self._names), 0
        for layout in layouts[known:]:
            self._catalog.add(layout)
        self._layouts = layouts
