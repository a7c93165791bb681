"""Writes on their way to the server, and rows as they are once these are written.

Of several writes of one document only that with the highest version is sent. Too many or too large ones are sent before
they are committed, which versions make harmless. An update that leaves values out takes them from the row as it is:
gathered here, or stored there, where documents can be read by their id before a search finds them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import msgspec

from walbus.consumers.sinks.opensearch_bulks import Found, Place, Write, fields_of
from walbus.consumers.sinks.opensearch_documents import LACKS, OUTRANKED, number_in
from walbus.consumers.sinks.opensearch_reading import documents_at, found_by
from walbus.consumers.sinks.opensearch_server import CONFLICT, OpenSearchServer

_GATHERED = 4_000  # the server works on these while the next are read
_GATHERED_BYTES = 16 << 20
_CONTESTED = 100_000  # of one index
_FETCHED = 500  # documents that are read ahead


@dataclass(frozen=True, slots=True)
class PresentRow:
    """A row as it is.

    Attributes:
        version: of its document.
        source: its fields; None where it is deleted.
        lacks: whether a value of it is missing.
    """

    version: int
    source: Mapping[str, msgspec.Raw] | None
    lacks: bool


class GatheredRows:
    """What one sink has not committed yet. Every method but `forget` may raise SinkUnavailable or SinkRefused."""

    def __init__(self, server: OpenSearchServer) -> None:
        self._server = server
        self._lacking: dict[str, set[Place]] = {}  # stored documents that lack a value, by index
        self._lacked: dict[str, dict[Place, int]] = {}  # those of them that did so behind the last reading, by version
        self._contested: dict[str, set[Place]] = {}  # where a row lay behind what is stored, by index
        self._writes: dict[Place, Write] = {}  # the last one of each document
        self._bytes = 0
        self._fetched: dict[Place, Found | None] = {}  # as they are stored, until something is sent
        self._fetched_bytes = 0

    def gather(self, write: Write) -> None:
        """Accepts a write; it is sent with the others, or before, if they are many."""
        known = self._writes.get(write.place)
        if known is not None and (known.version > write.version or (known.version == write.version and not write.even)):
            return
        self._writes[write.place] = write
        self._bytes += len(write.source or b"")
        if len(self._writes) >= _GATHERED or self._bytes >= _GATHERED_BYTES:
            self._send_gathered()

    def send(self, writes: Sequence[Write]) -> None:
        """Sends writes that are not worth gathering."""
        self._note(self._server.send(writes))

    def flush(self) -> None:
        """Sends what is gathered, and waits until all that was sent is done."""
        self._send_gathered()
        self._drain()

    def forget(self) -> None:
        """Forgets what is gathered, and waits for what is under way, whatever comes of it. Never raises."""
        self._clear()
        self._note(self._server.abandon())

    def contested(self, index: str) -> set[Place]:
        """Where rows were read, since the last time, and lay behind what is stored; some thousands of them at most."""
        return self._contested.pop(index, set())

    # Rows as they are

    def present(self, place: Place) -> PresentRow | None:
        """A row as it will be; None where there is none, or where it was deleted before."""
        gathered = self._writes.get(place)
        if place not in self._fetched:
            self.fetch([place])
        stored = self._fetched[place]
        if gathered is not None and (stored is None or stored.version <= gathered.version):
            source = None if gathered.source is None else fields_of(gathered.source)
            return PresentRow(gathered.version, source, gathered.lacks)
        if stored is None:
            return None
        fields = fields_of(stored.source)  # None: of somebody who writes what only the server makes sense of
        return PresentRow(stored.version, fields or {}, self._lacks(place) or fields is None)

    def fetch(self, places: Sequence[Place]) -> None:
        """Reads stored documents ahead; where those held are many or large, they are read again if need be."""
        missing = [place for place in dict.fromkeys(places) if place not in self._fetched][:_FETCHED]
        if not missing:
            return
        self._drain()
        if self._fetched_bytes >= _GATHERED_BYTES:
            self._fetched.clear()
            self._fetched_bytes = 0
        for place, found in zip(missing, documents_at(self._server, missing), strict=True):
            self._fetched[place] = found
            self._fetched_bytes += len(found.source) if found else 0

    @property
    def lacking(self) -> set[str]:
        """Indices with stored documents that lack a value."""
        return {index for index, places in self._lacking.items() if places}

    def find_lacking(self, indices: Sequence[str]) -> None:
        """Looks which stored documents lack a value."""
        self._lacked.clear()
        self._server.refresh(indices)
        self._lacking = {index: set(self._stored_lacking(index)) for index in indices}

    def lacks_still(self, index: str) -> bool:
        """Looks again, behind a reading of a table: whether a document lacks a value that did so behind the last one.

        Args:
            index: of the table; all that was gathered is sent.
        """
        before = self._lacked.pop(index, {})
        if not self._lacking.get(index):
            return False
        self._server.refresh([index])
        now = self._lacked[index] = self._stored_lacking(index)
        self._lacking[index] = set(now)
        return bool(before.items() & now.items())

    def give_up(self, index: str) -> None:
        """What lacks a value in an index does not count until it is written again."""
        self._lacking.pop(index, None)

    def _stored_lacking(self, index: str) -> dict[Place, int]:
        """Documents that lack a value, and their versions; those that nothing outranks are not mended by reading."""
        return {
            Place(index, found.id, found.routing): found.version
            for page in found_by(self._server, index, {"term": {LACKS: True}})
            for found in page
            if number_in(found.version) < OUTRANKED
        }

    def copied(self, before: str, now: str) -> None:
        """The documents of an index lie in another one now."""
        self._lacking[now] = {replace(place, index=now) for place in self._lacking.pop(before, ())}

    def _lacks(self, place: Place) -> bool:
        return place in self._lacking.get(place.index, ())

    # On the way

    def _clear(self) -> None:
        self._writes.clear()
        self._fetched.clear()
        self._bytes = self._fetched_bytes = 0

    def _send_gathered(self) -> None:
        writes = list(self._writes.values())
        self._clear()
        self._note(self._server.send(writes))

    def _drain(self) -> None:
        self._note(self._server.drain())

    def _note(self, done: Sequence[tuple[Write, int]]) -> None:
        """Writes that are done, and their statuses: what lacks a value is remembered until it is written whole."""
        for write, status in done:
            if status == CONFLICT and write.even and write.change is not None:
                places = self._contested.setdefault(write.place.index, set())
                if len(places) < _CONTESTED:
                    places.add(write.place)
            elif status != CONFLICT and (write.lacks or self._lacks(write.place)):
                places = self._lacking.setdefault(write.place.index, set())
                (places.add if write.lacks else places.discard)(write.place)


__all__ = ["GatheredRows", "PresentRow"]
