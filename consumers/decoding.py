"""Records to changes. The layouts come from outside: `Layouts` asks for each number once."""

from __future__ import annotations

from collections.abc import Callable

from walbus.errors import DamagedRecord
from walbus.events import Change
from walbus.native import read_changes
from walbus.records import RecordHeader
from walbus.schema import TableSchema


class Layouts:
    """The table layouts of one log, by number; they never change, so each is fetched once.

    Args:
        fetch: gives the layout with a number; its errors pass through.
    """

    def __init__(self, fetch: Callable[[int], TableSchema]) -> None:
        self._fetch = fetch
        self._known: dict[int, TableSchema] = {}

    def get(self, schema_id: int) -> TableSchema | None:
        """The layout with this number; None for 0, which stands for none."""
        if schema_id == 0:
            return None
        layout = self._known.get(schema_id)
        if layout is None:
            layout = self._known[schema_id] = self._fetch(schema_id)
        return layout

    def forget(self) -> None:
        """Another log numbers its layouts anew."""
        self._known.clear()


def decode_record(header: RecordHeader, record: bytes, layouts: Layouts) -> list[Change]:
    """The changes of a record: of the log, with their positions; of a snapshot, all at the snapshot's position.

    Raises:
        DamagedRecord: the body makes no sense.
    """
    changes = read_changes(Change, header, record, layouts.get)
    if len(changes) != header.count:
        raise DamagedRecord(f"a record of {header.count} changes holds {len(changes)}", where=str(header.last))
    return changes
