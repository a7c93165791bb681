"""What the topic PREFIX.checkpoint says: where the writer is, which topics its tables have, and which layouts.

    checkpoint   consumer, writer, number of the commit, and the checkpoint
    table/OID    a table, and its topic
    topic/NAME   a topic that the sink has written
    layout/N     a layout, and the ids that its schemas have in records

    rebuild      the generation of topics that a rebuild was given last
    hold         a rebuild is about to swap: the writer waits
    kept         topics that the last swap replaced

Each is a document under its key, and the topic is compacted. They are sent in the transaction of the rows that they
are about; `rebuild` and `hold` by a rebuild, beside the writer. No I/O.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import msgspec

from walbus.errors import SinkRefused
from walbus.position import ORIGIN, Position, parse_position
from walbus.schema import TableSchema

FORMAT = 1
_CHECKPOINT = b"checkpoint"


class Document(NamedTuple):
    """A record of the topic; no value: there is none any more."""

    key: bytes
    value: bytes | None


@dataclass(frozen=True)
class Written:
    """The document `checkpoint`.

    Attributes:
        consumer: whose topics they are.
        identity: of the topics, given with the first commit.
        writer: which process wrote it.
        number: of the commit.
        checkpoint: as text; None before the first.
        log_id: of the log that the last rows are of; None before the first.
        ended: up to where ends of transactions were told.
        format: of the values.
        ids: whose the ids of schemas are: `relay`, or `registry`, of one that is configured.
        generation: of the topics; 0 before the first rebuild.
    """

    consumer: str
    identity: str
    writer: str
    number: int = 0
    checkpoint: str | None = None
    log_id: str | None = None
    ended: Position = ORIGIN
    format: str = "rows"
    ids: str = "relay"
    generation: int = 0

    def document(self) -> Document:
        """Its stored form."""
        fields = {
            "version": FORMAT,
            "consumer": self.consumer,
            "identity": self.identity,
            "writer": self.writer,
            "number": self.number,
            "checkpoint": self.checkpoint,
            "log_id": self.log_id,
            "ended": str(self.ended),
            "format": self.format,
            "ids": self.ids,
            "generation": self.generation,
        }
        return Document(_CHECKPOINT, msgspec.json.encode(fields))


@dataclass(frozen=True)
class SinkTable:
    """A table whose rows have a topic.

    Attributes:
        layout: the newest that its rows had.
        log_generation: `Marks.log_generation` when that layout came: its number counts only within one log.
        topic, topic_id, partitions: its topic.
        parked: whether the topic is not that of its name, which another table has by now.
        lacks: whether rows lack a value that nobody has; the copy beside the consumer knows which.
        unknown: whether the topic may lack rows, and nobody knows which.
    """

    layout: TableSchema
    log_generation: int
    topic: str
    topic_id: str
    partitions: int
    parked: bool = False
    lacks: bool = False
    unknown: bool = False

    @property
    def oid(self) -> int:
        """The relation's OID in the source."""
        return self.layout.oid

    def document(self) -> Document:
        """Its stored form."""
        fields = {
            "layout": self.layout.to_dict(),
            "log_generation": self.log_generation,
            "topic": self.topic,
            "topic_id": self.topic_id,
            "partitions": self.partitions,
            "parked": self.parked,
            "lacks": self.lacks,
            "unknown": self.unknown,
        }
        return Document(_table_key(self.oid), msgspec.json.encode(fields))


def _table_key(oid: int) -> bytes:
    return b"table/%d" % oid


class KnownLayout(NamedTuple):
    """A layout that records name.

    Attributes:
        layout: it.
        log_generation: of the log that its number is of.
        rows, keys: ids of the schemas of values and keys; no keys for a table without a key.
    """

    layout: TableSchema
    log_generation: int
    rows: int
    keys: int | None

    def document(self) -> Document:
        """Its stored form."""
        fields = {
            "layout": self.layout.to_dict(),
            "log_generation": self.log_generation,
            "rows": self.rows,
            "keys": self.keys,
        }
        return Document(_layout_key(self.layout.id), msgspec.json.encode(fields))


def _layout_key(number: int) -> bytes:
    return b"layout/%d" % number


class GivenGeneration(NamedTuple):
    """The document `rebuild`.

    Attributes:
        generation: of the topics that the rebuild fills, or has filled.
        dropped: whether they are not to be filled any more.
    """

    generation: int
    dropped: bool = False

    def document(self) -> Document:
        """Its stored form."""
        return Document(b"rebuild", msgspec.json.encode(self._asdict()))


def hold_document(by: str | None) -> Document:
    """That a rebuild is about to swap; None: none is."""
    return Document(b"hold", None if by is None else msgspec.json.encode({"by": by}))


def kept_document(topics: Iterable[str] | None) -> Document:
    """Topics that a swap replaced; None: they are gone."""
    return Document(b"kept", None if topics is None else msgspec.json.encode({"topics": sorted(topics)}))


def topic_document(name: str, topic_id: str | None) -> Document:
    """A topic that the sink has written; None: it is gone."""
    return Document(b"topic/" + name.encode(), None if topic_id is None else msgspec.json.encode({"id": topic_id}))


@dataclass
class SinkState:
    """All documents, in memory.

    Attributes:
        written: the checkpoint; None before the first.
        tables: by OID.
        layouts: of the last log, by number.
        topics: ids of those that the sink has written, by name.
        given: what the last rebuild was given; None before the first.
        hold: which rebuild has the writer wait; None: none.
        kept: topics that the last swap replaced, and that are there yet.
    """

    written: Written | None = None
    tables: dict[int, SinkTable] = field(default_factory=dict)
    layouts: dict[int, KnownLayout] = field(default_factory=dict)
    topics: dict[str, str] = field(default_factory=dict)
    given: GivenGeneration | None = None
    hold: str | None = None
    kept: tuple[str, ...] = ()

    @property
    def generation(self) -> int:
        """Of the topics."""
        return 0 if self.written is None else self.written.generation

    def take(self, key: bytes, value: bytes | None, where: str) -> None:
        """Takes a record of the topic.

        Raises:
            SinkRefused: it is none of the sink's, or of another version.
        """
        try:
            document = None if value is None else msgspec.json.decode(value)
            kind, _, number = key.decode().partition("/")
            self._take(kind, number, document)
        except (ValueError, KeyError, TypeError, UnicodeDecodeError) as error:
            raise SinkRefused(
                f"a record is none of the sink's ({type(error).__name__})",
                where=where,
                mend="give the sink another prefix, or use the Walbus that wrote it",
            ) from None

    def _take(self, kind: str, number: str, document: dict[str, Any] | None) -> None:
        match kind:
            case "checkpoint" if document is not None:
                if document["version"] != FORMAT:
                    raise ValueError("version")
                fields = {name: value for name, value in document.items() if name != "version"}
                self.written = Written(**{**fields, "ended": parse_position(document["ended"])})
            case "table" if document is None:
                self.tables.pop(int(number), None)
            case "table" if document is not None:
                layout = TableSchema.from_dict(document["layout"])
                self.tables[int(number)] = SinkTable(**{**document, "layout": layout})
            case "layout" if document is not None:
                layout = TableSchema.from_dict(document["layout"])
                self._know(KnownLayout(**{**document, "layout": layout}))
            case "layout":
                self.layouts.pop(int(number), None)
            case "topic" if document is not None:
                self.topics[number] = document["id"]
            case "topic":
                self.topics.pop(number, None)
            case "rebuild" if document is not None:
                self.given = GivenGeneration(**document)
            case "hold":
                self.hold = None if document is None else str(document["by"])
            case "kept":
                self.kept = () if document is None else tuple(document["topics"])
            case _:
                raise ValueError(kind)

    def _know(self, known: KnownLayout) -> None:
        if any(other.log_generation != known.log_generation for other in self.layouts.values()):
            self.layouts = {
                n: other for n, other in self.layouts.items() if other.log_generation >= known.log_generation
            }
        if all(other.log_generation <= known.log_generation for other in self.layouts.values()):
            self.layouts[known.layout.id] = known

    def copy(self) -> SinkState:
        """The same, to be changed."""
        return replace(self, tables=dict(self.tables), layouts=dict(self.layouts), topics=dict(self.topics))

    def by_name(self, table: str) -> SinkTable | None:
        """The table that is called so; the latest, if one was dropped and made again."""
        found = [known for known in self.tables.values() if known.layout.table == table]
        return max(found, key=lambda known: (known.log_generation, known.layout.id), default=None)

    def changed_since(self, before: SinkState) -> Iterator[Document]:
        """What must be written, beside the checkpoint, for the topic to say this instead of that."""
        for oid in before.tables:
            if oid not in self.tables:
                yield Document(_table_key(oid), None)
        for oid, table in self.tables.items():
            if before.tables.get(oid) != table:
                yield table.document()
        for number, layout in self.layouts.items():
            if before.layouts.get(number) != layout:
                yield layout.document()
        for name, topic_id in self.topics.items():
            if before.topics.get(name) != topic_id:
                yield topic_document(name, topic_id)
        if self.hold != before.hold:
            yield hold_document(self.hold)

    def in_place_of(self, live: SinkState) -> Iterator[Document]:
        """All of it but the checkpoint, for a topic that says what another one is; what only that says goes."""
        for number in live.layouts:
            yield Document(_layout_key(number), None)
        for oid in live.tables:
            yield Document(_table_key(oid), None)
        yield from replace(self, hold=None).changed_since(SinkState())
