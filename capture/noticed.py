"""From what the watch found to what the log is told: layouts, and events that tables must be seeded again.

**Where such an event may stand.** A reader that has dealt with it reads the table anew and folds what follows in the
log over it, so nothing may follow that was written under the older definition. The watch samples the end of the WAL
behind its look (`Due.lsn`): the statement that it saw had committed by then, and so had whatever was written before it.
The event is written once everything that commits before that LSN is in the log, between two transactions, at ordinal 0
of the LSN up to which the log is complete. One kind of change lets transactions run across it, a change of the
publication: its event names them by the snapshot behind the look, and the reader's own snapshot must see them.

PostgreSQL 14 sends what follows an ATTACH or a DETACH as if there had been none (`walbus.capture.regrouped`), until
another session begins: such an event waits for one that began behind the look, and the stream makes way for it.

The event is durable before the watch remembers the state that it tells of; a crash in between tells it again.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import structlog

from walbus.capture.assembly import Assembler
from walbus.capture.refusals import publication_gone
from walbus.capture.report import Report
from walbus.capture.silent import Reseed
from walbus.capture.unnumbered import Patiently, Unnumbered
from walbus.capture.watch import CatalogWatch, Due
from walbus.log import SchemaRegistry
from walbus.lsn import format_lsn
from walbus.schema import TableSchema

logger = structlog.get_logger(__name__)


def _once(action: Callable[[], object]) -> object:
    return action()


class Noticed:
    """What one connection learns of the catalog, besides the stream.

    Args:
        watch: looks.
        schemas: the log's layouts.
        assembler: takes the events.
        report: gets the number of tables.
        publication: OID that the publication must keep.
        monotonic: seconds that never step back.
    """

    def __init__(  # noqa: PLR0913  (the watch, and all that learns of what it found)
        self,
        watch: CatalogWatch,
        schemas: SchemaRegistry,
        assembler: Assembler,
        report: Report,
        publication: int,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._watch = watch
        self._schemas = schemas
        self._assembler = assembler
        self._report = report
        self._publication = publication
        self._patiently: Patiently = _once
        self._layouts = Unnumbered(schemas, assembler.layout_begun_at, monotonic)
        self._due: Due | None = None
        self._told: Due | None = None

    def take(self, patiently: Patiently) -> None:
        """Takes what the watch found since the last call; whatever is registered is registered `patiently`.

        Raises:
            SourceGap: the publication is gone.
            Exception: as `CatalogWatch.take`.
        """
        found = self._watch.take()
        if found is None:
            return
        if found.publication != self._publication:
            raise publication_gone("the publication was dropped, and changes with it", "streaming")
        self._assembler.near_xid = found.xmax
        self._report.tables = found.tables
        self._patiently = patiently
        self._layouts.found(found.layouts, found.look)
        self._register()
        self._due = None if found.due is self._told else found.due  # a look may have begun before it was told

    def renewal(self, begun: int) -> Due | None:
        """What only another session may tell, one that begins at or behind its LSN.

        Args:
            begun: where the slot was confirmed when the session began that sends what follows.
        """
        due = self._due
        return due if due is not None and due.regrouped and begun < due.lsn else None

    def announce(self, now: int, begun: int) -> Due | None:
        """Puts the events that are due into the assembler; what they were, for `told` once they are durable.

        Args:
            now: the server's clock, Unix microseconds.
            begun: as for `renewal`.
        """
        self._register()
        due, assembler = self._due, self._assembler
        if due is None or assembler.in_transaction or assembler.bound < due.lsn or self._layouts.waits_for(due.lsn):
            return None
        if self._layouts.waits_with({reseed.oid for reseed in due.reseeds}):  # an earlier connection saw the change
            return None
        if self.renewal(begun) is not None:
            return None
        self._watch.remembered.telling(due.state)
        newest = {schema.oid: schema for schema in self._schemas.all()}
        for reseed in due.reseeds:
            schema = newest.get(reseed.oid)
            if schema is not None:  # a table that the log never heard of has no rows to be wrong
                self._announce(schema, reseed, due, now)
        return due

    def _register(self) -> None:
        self._layouts.register(self._assembler.bound, self._patiently)

    def _announce(self, schema: TableSchema, reseed: Reseed, due: Due, now: int) -> None:
        logger.warning("table.changed_without_events", table=schema.table, reason=reseed.reason.value, what=reseed.what)
        document = {
            "reason": reseed.reason.value,
            "what": reseed.what,
            "lsn": format_lsn(due.lsn),
            "snapshot": due.snapshot,
        }
        self._assembler.announce(schema, document, now)

    def told(self, due: Due) -> None:
        """The events are durable."""
        self._due = None
        self._told = due
        self._watch.told(due)
