"""The log's layouts as a schema registry, for whoever reads table topics (`walbus.topics.catalog`).

Only layouts are told whose SCHEMA record is durable and served: the number of another one may still be given anew,
while readers keep a schema under its id for good.
"""

from __future__ import annotations

from walbus.relay.reader import FileLogReader
from walbus.topics import Catalog, TopicNames


class LogRegistry:
    """The catalog of a log, as far as it is durable.

    Args:
        prefix: what names of topics begin with.
    """

    def __init__(self, prefix: str) -> None:
        self._names = TopicNames(prefix)
        self._of: FileLogReader | None = None
        self._catalog = Catalog(self._names)
        self._announced = 0

    def catalog(self, reader: FileLogReader) -> Catalog:
        """The catalog now: one read of half a kilobyte where nothing is new.

        Raises:
            DamagedRecord: a layout's file is damaged.
        """
        announced = reader.tip().announced_schema
        if reader is not self._of or announced < self._announced:
            self._of, self._catalog, self._announced = reader, Catalog(self._names), 0
        if announced > self._announced:
            for layout in reader.schemas.all():
                if self._catalog.last < layout.id <= announced:
                    self._catalog.add(layout)
            self._announced = announced
        return self._catalog
