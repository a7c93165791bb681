"""Which rows an event has made stale, and which rows that were read since are not. Pure.

An event of the log says that the rows of a table must be had again. The bootstrap seeds the table anew, as a generation
that folds from some place of the log, and what is read of a generation that began behind the event's statement is as
the source has it. That place is what decides here, by the bootstrap's own rule. Its applied position cannot: several
events stand at one position, where a bootstrap may have folded some of them; and whoever goes on at that position gets
all of them again, and would read the table again for ever, as long as the source is idle.
"""

from __future__ import annotations

from collections.abc import Iterable
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
        oid: its own, which it has whatever its name is.
        table: its name at the event.
        event: where the event stands.
        settled: rows of a generation that folds from this LSN or later are good too; None if only those of one that
            folds from the event are.
    """

    oid: int
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
        return [Stale(table["oid"], table["table"], event) for table in told]
    if told["reason"] in _WITHOUT_ROWS or change.schema is None:
        return []
    exact = told["reason"] == _KEY_CHANGED or "lsn" not in told
    return [Stale(change.schema.oid, change.table, event, None if exact else parse_lsn(told["lsn"]))]


class Freshness:
    """What one session knows of the rows that it has read. Places of a log: another log begins with a new one.

    Tables are known by their OID: an event may name one as it was called before.
    """

    def __init__(self) -> None:
        self._read: dict[int, Position] = {}  # what its generation folded from, or an earlier one
        self._stale: dict[int, Stale] = {}  # the last event

    def reading(self, oid: int, folds_from: Position) -> None:
        """A table is about to be read from the bootstrap, which serves a generation that folds from this place."""
        self._read[oid] = folds_from

    def heed(self, told: Iterable[Stale]) -> list[Stale]:
        """Takes note of events; those by which the rows, as they were read, are older."""
        stale = [one for one in told if one.oid not in self._read or not one.is_behind(self._read[one.oid])]
        self._stale |= {one.oid: one for one in stale}
        return stale

    def serves(self, oid: int, folds_from: Position | None) -> bool:
        """Whether a generation's rows are good (None: the bootstrap does not say where it folds from)."""
        stale = self._stale.get(oid)
        return stale is None or folds_from is None or stale.is_behind(folds_from)
