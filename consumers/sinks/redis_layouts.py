"""The layouts of a consumer's tables, as they are remembered in Redis beside what it wrote."""

from __future__ import annotations

from typing import Any

import msgspec

from walbus.consumers.sinks.redis_server import RedisServer
from walbus.schema import TableSchema

_DOCUMENT = "layouts"


class StoredLayouts:
    """By the tables' OIDs. Methods may raise what `RedisServer.errors` translates.

    Args:
        server: that has them.
    """

    def __init__(self, server: RedisServer) -> None:
        self._server = server
        self._by_oid: dict[int, TableSchema] = {}
        self._log_generation = 0  # that their numbers belong to

    def load(self) -> None:
        """Reads them from the server."""
        stored = msgspec.json.decode(self._server.document(_DOCUMENT), type=dict[str, Any])
        known = (TableSchema.from_dict(document) for document in stored.get("layouts", []))
        self._by_oid = {layout.oid: layout for layout in known}
        self._log_generation = stored.get("log_generation", 0)

    def get(self, oid: int) -> TableSchema | None:
        """The one that a table has."""
        return self._by_oid.get(oid)

    def all(self) -> list[TableSchema]:
        """Those of all tables."""
        return list(self._by_oid.values())

    def named(self, table: str) -> TableSchema | None:
        """The one of the table that is called so."""
        return next((layout for layout in self._by_oid.values() if layout.table == table), None)

    def present(self, layout: TableSchema, log_generation: int) -> TableSchema | None:
        """The one that the table has, if it is this one or a later one of the same log; None: this one is news."""
        known = self._by_oid.get(layout.oid)
        return known if known and known.id >= layout.id and log_generation <= self._log_generation else None

    def store(self, layout: TableSchema, log_generation: int) -> None:
        """The table has this one now; with another log, all that were known are of no use any more."""
        if log_generation > self._log_generation:
            self._log_generation, self._by_oid = log_generation, {}
        self._by_oid[layout.oid] = layout
        documents = [table.to_dict() for table in self._by_oid.values()]
        document = {"log_generation": self._log_generation, "layouts": documents}
        self._server.set_document(_DOCUMENT, msgspec.json.encode(document))
