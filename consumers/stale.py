"""Which rows an event has made stale, and which rows that were read since are not. Pure.

An event of the log says that the rows of a table must be had again. The bootstrap seeds the table anew, as a generation
that folds from some place of the log, and what is read of a generation that began behind the event's statement is as
the source has it. That place is what decides here, by the bootstrap's own rule. Its applied position cannot: several
events stand at one position, where a bootstrap may have folded some of them; and whoever goes on at that position gets
all of them again, and would read the table again for ever, as long as the source is idle.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from walbus.events import Change
from walbus.lsn import parse_lsn
from walbus.position import Position
from walbus.records import Op

#: Reasons of a SCHEMA event's `reseed` behind which there are no rows to be had.
_WITHOUT_ROWS = frozenset(("dropped", "unpublished"))
#: Rows behind the statement were known by the old key until the event itself.
_KEY_CHANGED = "key_changed"


@dataclass(frozen=True, slots=True)
class Stale:
    """A table of which an event says that its rows must be had again.

    Attributes:
        table: by name.
        event: where the event stands.
        settled: rows of a generation that folds from this LSN or later are good too; None if only those of one that
            folds from the event are.
    """

    table: str
    event: Position
    settled: int | None = None

    def is_behind(self, folds_from: Position) -> bool:
        """Whether a generation that folds from there began behind what the event tells."""
        return folds_from >= self.event or (self.settled is not None and folds_from.commit_lsn >= self.settled)


def stale_rows(change: Change, event: Position) -> list[Stale]:
    """The tables whose rows a SCHEMA or EPOCH event, at a position, says must be had again."""
    told = (change.detail or {}).get("reseed")
    if not told:
        return []
    if change.op is Op.EPOCH:
        return [Stale(table["table"], event) for table in told]
    if told["reason"] in _WITHOUT_ROWS:
        return []
    exact = told["reason"] == _KEY_CHANGED or "lsn" not in told
    return [Stale(change.table, event, None if exact else parse_lsn(told["lsn"]))]


class Freshness:
    """What one session knows of the rows that it has read. Places of a log: another log begins with a new one."""

    def __init__(self) -> None:
        self._read: dict[str, Position] = {}  # what its generation folded from, or an earlier one
        self._stale: dict[str, Stale] = {}  # the last event

    def reading(self, tables: Iterable[str], folds_from: Mapping[str, Position]) -> None:
        """Tables are about to be read from the bootstrap, which serves generations that fold from these places."""
        self._read |= {table: folds_from[table] for table in tables if table in folds_from}

    def heed(self, told: Iterable[Stale]) -> list[str]:
        """Takes note of events; the tables whose rows, as they were read, are older."""
        stale = [one for one in told if one.table not in self._read or not one.is_behind(self._read[one.table])]
        self._stale |= {one.table: one for one in stale}
        return [one.table for one in stale]

    def serves(self, table: str, folds_from: Position | None) -> bool:
        """Whether a generation's rows are good (None: the bootstrap does not say where it folds from)."""
        stale = self._stale.get(table)
        return stale is None or folds_from is None or stale.is_behind(folds_from)
