"""One table's index as the sink knows it, as the server tells it, and what can be done with its aliases. No connection.

An index is read by one alias, `public.orders`, and written by another one, which has its own name in it and is taken
away when a rebuilt copy takes its place: what an older process writes late is refused then, and never reaches the copy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, TypeAlias

import msgspec

from walbus.consumers.sinks.opensearch_documents import LOGS_AT_MOST, IndexTemplate, Mapped
from walbus.errors import SinkRefused
from walbus.schema import TableSchema

META: Final = "walbus"
FENCED: Final = "fenced"  #: says, in the meta data, that the index has had its writer's alias: it is not given it again
ASIDE: Final = "%was-"  #: in no table's alias: what is written otherwise there has two digits behind its %

#: Behind the aliases of the indices that are read, of those of a copy, and of those that a copy has replaced.
LIVE: Final = ""
NEW: Final = "%new"
OLD: Final = "%old"

Action: TypeAlias = Mapping[str, Mapping[str, object]]  # of a request that moves aliases


class IndexSettings(msgspec.Struct):
    """Of an index, as the server tells them."""

    index: dict[str, Any]


class FoundIndex(msgspec.Struct):
    """An index as the server tells it."""

    aliases: dict[str, Any]
    mappings: dict[str, Any]
    settings: IndexSettings

    @property
    def meta(self) -> dict[str, Any] | None:
        """What a consumer keeps there."""
        noted = self.mappings.get("_meta")
        meta = noted.get(META) if isinstance(noted, dict) else None
        return meta if isinstance(meta, dict) else None

    @property
    def keeps_documents(self) -> bool:
        """Whether each document can be read as it was written, which an index template may have otherwise."""
        source = {"enabled": True, "mode": "stored", **self.mappings.get("_source", {})}
        settings = self.settings.index
        mode = settings.get("mapping", {}).get("source", {}).get("mode", source["mode"])
        is_made_up = str(settings.get("derived_source", {}).get("enabled", False)).lower() == "true"
        is_partial = bool(source.get("includes") or source.get("excludes"))
        return source["enabled"] is True and str(mode).lower() == "stored" and not is_made_up and not is_partial

    @property
    def consumer(self) -> str | None:
        """Whose it is; None: no consumer's."""
        return (self.meta or {}).get("consumer")


class IndexNote(msgspec.Struct):
    """What a consumer keeps in the mapping of a table's index; see `TableIndex`."""

    layout: TableSchema
    log_generation: int
    number: Annotated[int, msgspec.Meta(ge=0, lt=LOGS_AT_MOST)]
    floor: int
    reread: bool
    routing: str | None


def note_in(name: str, told: FoundIndex) -> IndexNote:
    """What a consumer keeps in an index.

    Raises:
        SinkRefused: it is not as it was written.
    """
    try:
        return msgspec.convert(told.meta, IndexNote)
    except ValueError:
        what = "what Walbus notes in the mapping of this index (_meta) is not as it was written"
        mend = "delete the index: the consumer then reads its tables again"
        raise SinkRefused(what, where=name, mend=mend) from None


@dataclass(frozen=True, slots=True)
class IndexChoice:
    """How indices are made.

    Attributes:
        template: of their aliases.
        settings: over the server's defaults and index templates.
        fields: by table and column, the mapping of a field.
        routing: by table, the key column that documents are routed by.
        tombstone_seconds: how long a deleted document is remembered.
        state_index: the index for checkpoints.
    """

    template: IndexTemplate
    settings: Mapping[str, Any]
    fields: Mapping[str, Mapping[str, Mapped]]
    routing: Mapping[str, str]
    tombstone_seconds: int
    state_index: str

    @property
    def writers(self) -> str:
        """What the aliases begin with that indices are written by."""
        return f"{self.state_index}%to-"


@dataclass(frozen=True, slots=True)
class TableIndex:
    """One table's index.

    Attributes:
        alias: that it is read by.
        name: its own.
        layout: of its documents.
        log_generation: of the log that its versions belong to; `number` logs came before.
        floor: no change of that log with a seq at or below this applies (after a TRUNCATE).
        reread: whether its documents lie under other ids than the table's key gives now, or some were left out of a
            copy.
        routing: the column of the key that its documents are routed by.
        writer: the alias that it is written by.
    """

    alias: str
    name: str
    layout: TableSchema
    log_generation: int
    number: int = 0
    floor: int = 0
    reread: bool = False
    routing: str | None = None
    writer: str = ""

    @property
    def is_aside(self) -> bool:
        """Whether another table has the name now that this one's had, whose present name is not known yet."""
        return ASIDE in self.alias

    def meta(self, consumer: str) -> dict[str, Any]:
        """For the mapping."""
        return {
            META: {
                "consumer": consumer,
                "layout": self.layout.to_dict(),
                "log_generation": self.log_generation,
                "number": self.number,
                "floor": self.floor,
                "reread": self.reread,
                "routing": self.routing,
                FENCED: True,
            }
        }


def removed(index: str, alias: str) -> Action:
    """An alias is taken away."""
    return {"remove": {"index": index, "alias": alias}}


def added(index: str, alias: str, *, hidden: bool = False) -> Action:
    """An alias is given; a hidden one is not met by wildcards."""
    return {"add": {"index": index, "alias": alias} | ({"is_hidden": True} if hidden else {})}


def deleted(index: str) -> Action:
    """An index is deleted, which must be there: otherwise nothing of the request is done."""
    return {"remove_index": {"index": index}}


__all__ = [
    "ASIDE", "FENCED", "LIVE", "META", "NEW", "OLD", "Action", "FoundIndex", "IndexChoice", "IndexNote",
    "IndexSettings", "TableIndex", "added", "deleted", "note_in", "removed",
]  # fmt: skip
