"""TOPIC.meta: which log this is, who writes it, and its table layouts; JSON by key, compacted.

log           {"log_id", "system_identifier", "database", "slot", "begun" (Unix microseconds), "topic_id"}
writer        {"writer": a random number, "since" (Unix microseconds)}
layout/ID     as `/v1/schemas/{id}` gives it under `schema`
"""

from __future__ import annotations

import threading
from typing import Any, NamedTuple, TypeVar

import msgspec

from walbus.errors import DamagedRecord
from walbus.log import SourceIdentity
from walbus.relay.kafka.cluster import ClusterClients
from walbus.relay.kafka.partition import Partition, ends_of
from walbus.schema import TableSchema

_LAYOUT = b"layout/"


class _Log(msgspec.Struct):
    log_id: str
    system_identifier: str
    database: str
    slot: str
    begun: int
    topic_id: str


class _Writer(msgspec.Struct):
    writer: int
    since: int


_D = TypeVar("_D")


class LogDocument(NamedTuple):
    """Which log it is.

    Attributes:
        log_id: its random name.
        source: the database that it belongs to.
        begun: when it was made, Unix microseconds.
        topic_id: of the topic that holds it.
    """

    log_id: str
    source: SourceIdentity
    begun: int
    topic_id: str


class Meta:
    """What the topic holds, as of the last `refresh`; thread-safe.

    Args:
        clients: of the cluster.
    """

    def __init__(self, clients: ClusterClients) -> None:
        self._clients = clients
        self._topic = clients.settings.meta
        self._lock = threading.Lock()
        self._partition = Partition(clients, self._topic)
        self._documents: dict[bytes, bytes] = {}

    def refresh(self) -> None:
        """Reads what was committed since the last time.

        Raises:
            LogMissing, LogUnreachable: as `ends_of`.
        """
        (ends,) = ends_of(self._clients, self._topic)
        with self._lock:
            if self._partition.next < ends.first:
                self._partition.seek(ends.first)
            while (message := self._partition.read(ends.stable)) is not None:
                if message.key is not None:
                    self._documents[message.key] = message.value

    @property
    def log(self) -> LogDocument | None:
        """Which log this is; None where there is none yet."""
        found = self._decoded(b"log", _Log)
        if found is None:
            return None
        source = SourceIdentity(found.system_identifier, found.database, found.slot)
        return LogDocument(found.log_id, source, found.begun, found.topic_id)

    @property
    def writer(self) -> int | None:
        """Who writes the log."""
        found = self._decoded(b"writer", _Writer)
        return None if found is None else found.writer

    def layout(self, schema_id: int) -> TableSchema:
        """The layout with this number; KeyError if there is none."""
        found: dict[str, Any] | None = self._decoded(_layout_key(schema_id), dict)
        if found is None:
            raise KeyError(schema_id)
        return TableSchema.from_dict(found)

    def layouts(self) -> list[TableSchema]:
        """Every layout, by number."""
        ids = sorted(int(key.removeprefix(_LAYOUT)) for key in list(self._documents) if key.startswith(_LAYOUT))
        return [self.layout(schema_id) for schema_id in ids]

    def close(self) -> None:
        """Frees its connections."""
        with self._lock:
            self._partition.close()

    def _decoded(self, key: bytes, form: type[_D]) -> _D | None:
        data = self._documents.get(key)
        if data is None:
            return None
        try:
            return msgspec.json.decode(data, type=form)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise self._damaged(key.decode(errors="replace")) from error

    def _damaged(self, key: str) -> DamagedRecord:
        where = f"topic {self._topic}, key {key}"
        return DamagedRecord("a document makes no sense", where=where, mend="let nobody else write to the topic")


def log_document(log: LogDocument) -> tuple[bytes, bytes]:
    """Key and value."""
    source = log.source
    document = _Log(log.log_id, source.system_identifier, source.database, source.slot, log.begun, log.topic_id)
    return b"log", msgspec.json.encode(document)


def writer_document(writer: int, since: int) -> tuple[bytes, bytes]:
    """Key and value."""
    return b"writer", msgspec.json.encode(_Writer(writer, since))


def layout_document(version: TableSchema) -> tuple[bytes, bytes]:
    """Key and value."""
    return _layout_key(version.id), msgspec.json.encode(version.to_dict())


def _layout_key(schema_id: int) -> bytes:
    return _LAYOUT + b"%08d" % schema_id
