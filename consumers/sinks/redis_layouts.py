"""The layouts of a consumer's tables, as they are remembered in Redis beside what it wrote.

A cluster has a copy on each master. Where one is older, its master has lost how rows were brought to a newer layout. So
the oldest one counts, and all rows are brought to the newer one again: those that are of it already stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from walbus.consumers.sinks.redis_store import RedisStore
from walbus.schema import TableSchema

_DOCUMENT = "layouts"


class StoredLayouts:
    """By the tables' OIDs. Methods may raise what `RedisStore.errors` translates.

    Args:
        store: that has them.
    """

    def __init__(self, store: RedisStore) -> None:
        self._store = store
        self._by_oid: dict[int, TableSchema] = {}
        self._log_generation = 0  # that their numbers belong to

    def load(self) -> None:
        """Reads them from the server."""
        texts = self._store.documents(_DOCUMENT)
        with self._store.legible(_DOCUMENT):
            copies = [copy for text in texts if (copy := msgspec.json.decode(text, type=dict[str, Any]))]
            self._log_generation = min((int(copy["log_generation"]) for copy in copies), default=0)
            self._by_oid = {}
            for copy in copies:
                if copy["log_generation"] == self._log_generation:
                    self._take(TableSchema.from_dict(document) for document in copy["layouts"])
        if len(set(texts)) > 1:
            self._write()

    def _take(self, layouts: Iterable[TableSchema]) -> None:
        for layout in layouts:
            known = self._by_oid.get(layout.oid)
            if known is None or layout.id < known.id:
                self._by_oid[layout.oid] = layout

    def get(self, oid: int) -> TableSchema | None:
        """The one that a table has."""
        return self._by_oid.get(oid)

    def all(self) -> list[TableSchema]:
        """Those of all tables."""
        return list(self._by_oid.values())

    def named(self, table: str) -> TableSchema | None:
        """The one of the table that is called so; the latest, if one was dropped and made again."""
        found = [layout for layout in self._by_oid.values() if layout.table == table]
        return max(found, key=lambda layout: layout.id, default=None)

    def called(self, layout: TableSchema, log_generation: int) -> list[TableSchema]:
        """Those of other relations of the same log that have the name of this one's."""
        others = [other for other in self._by_oid.values() if other.oid != layout.oid and other.table == layout.table]
        return others if log_generation == self._log_generation else []

    def present(self, layout: TableSchema, log_generation: int) -> TableSchema | None:
        """The one that the table has, if it is this one or a later one of the same log; None: this one is news."""
        known = self._by_oid.get(layout.oid)
        return known if known and known.id >= layout.id and log_generation <= self._log_generation else None

    def store(self, layout: TableSchema, log_generation: int) -> None:
        """The table has this one now; with another log, all that were known are of no use any more."""
        if log_generation > self._log_generation:
            self._log_generation, self._by_oid = log_generation, {}
        self._by_oid[layout.oid] = layout
        self._write()

    def _write(self) -> None:
        documents = [table.to_dict() for table in self._by_oid.values()]
        document = {"log_generation": self._log_generation, "layouts": documents}
        self._store.set_document(_DOCUMENT, msgspec.json.encode(document))
