"""The numbers of table layouts, as the log's writer gives them; whatever keeps the layouts.

A table's numbers rise as its layouts follow each other: readers take the highest that they were told for the table's
present layout. So a layout is a version that is there already only if that is the table's last one; one that a table
comes back to (a column dropped and added again, a rename that is taken back) gets another number.

A version whose SCHEMA record never became durable (the writer died between the two) counts as new once more, so that
the record is written again.

A number is never given to another layout, since rows of a snapshot, and readers of table topics, may know it before the
log tells it. A copy that takes over may not have found the last ones: so each term has numbers of its own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Final

from walbus.schema import TableSchema

NUMBERS_A_TERM: Final = 1 << 16


class LayoutNumbers(ABC):
    """The writer's registry, in memory; `_write` makes a version durable.

    Args:
        known: every version so far.
        announced: the largest id whose SCHEMA record is durable.
        term: of the log; 1 where no copy has taken over.
    """

    def __init__(self, known: Iterable[TableSchema], announced: int, term: int = 1) -> None:
        self._before = (term - 1) * NUMBERS_A_TERM
        self._known: dict[int, TableSchema] = {}
        self._newest: dict[int, TableSchema] = {}  # by OID
        for schema in known:
            self._keep(schema)
        self._unannounced = {schema_id for schema_id in self._known if schema_id > announced}

    @abstractmethod
    def _write(self, version: TableSchema) -> None:
        """Makes a new version durable."""

    def all(self) -> list[TableSchema]:
        """Every version, by number."""
        return [self._known[schema_id] for schema_id in sorted(self._known)]

    def register(self, schema: TableSchema) -> tuple[TableSchema, bool]:
        """The table's last version if it has this layout, else a new one; and whether it is still to be told.

        Raises:
            LogFull: no room for a new version.
            Fenced: another writer gave this number.
        """
        known = self._newest.get(schema.oid)
        if known is None or not known.same_layout(schema):
            return self._add(schema), True
        new = known.id in self._unannounced
        self._unannounced.discard(known.id)
        return known, new

    def forget_announcements(self, schema_ids: list[int]) -> None:
        """These versions' SCHEMA records were dropped with an unfinished transaction."""
        self._unannounced.update(schema_ids)

    def _add(self, schema: TableSchema) -> TableSchema:
        version = TableSchema.from_dict({**schema.to_dict(), "id": max(self._before, *self._known, 0) + 1})
        self._write(version)
        self._keep(version)
        return version

    def _keep(self, version: TableSchema) -> None:
        self._known[version.id] = version
        self._note_newest(version)

    def _give_away(self, known: TableSchema, version: TableSchema) -> None:
        """Notes that a number is another layout's from now on."""
        self._known[version.id] = version
        del self._newest[known.oid]
        for schema_id in sorted(self._known):
            self._note_newest(self._known[schema_id])

    def _note_newest(self, version: TableSchema) -> None:
        newest = self._newest.get(version.oid)
        if newest is None or newest.id <= version.id:
            self._newest[version.oid] = version
