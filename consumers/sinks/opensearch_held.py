"""Documents read back and compared with what should be there: whole, as they are stored, whoever wrote them last.

A document is compared by its fields: one that is null and one that is not there are the same, as they are for a search,
and what lies between the signs of JSON is not looked at. One that makes no sense to anybody but the server
has no fields that a row could have. Its key is read off its id, and off nothing inside of it. One
that lies under another routing than its key gives is another document, whatever its id. Where the id is a digest, which
tells no key, the routing is a part of what it is compared by.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

import msgspec

from walbus.consumers.sinks.base import HeldRow
from walbus.consumers.sinks.opensearch_bulks import NO_SENSE, Found, Place, fields_of
from walbus.consumers.sinks.opensearch_documents import LACKS, MARK, is_digest, key_of_id, routing_of, seq_of
from walbus.consumers.sinks.opensearch_reading import all_documents
from walbus.consumers.sinks.opensearch_server import OpenSearchServer
from walbus.consumers.sinks.opensearch_table_index import TableIndex

_OWN: Final = (MARK, LACKS)
_NO_VALUES: Final = (None,)  #: of a document that nobody but the server makes sense of: what no row has


def held_rows(server: OpenSearchServer, index: TableIndex) -> Iterator[HeldRow]:
    """The rows of a table, as they were when this was begun, in any order.

    Raises:
        SinkUnavailable, SinkRefused
    """
    server.refresh([index.name])
    for page in all_documents(server, index.name):
        for found in page:
            yield HeldRow(_key(index, found), seq_of(index.number, found.version), _values(found.source))


def held_row(columns: int, place: Place, seq: int, row: Mapping[str, object]) -> HeldRow:
    """A row as it will be read back.

    Args:
        columns: that its key has.
        place: of its document.
        seq: of the change that it comes from.
        row: its fields, as they are written.
    """
    key = key_of_id(place.id, columns)
    if is_digest(place.id) and place.routing is not None:
        key = _under(key, place.routing)
    return HeldRow(key, seq, _values(msgspec.json.encode(row)))


def _key(index: TableIndex, found: Found) -> tuple[str, ...]:
    columns = [index.layout.columns[number].name for number in index.layout.key_indexes]
    key, wanted = key_of_id(found.id, len(columns)), None
    if index.routing is not None and not is_digest(found.id) and len(key) == len(columns):
        wanted = routing_of(key[columns.index(index.routing)]) if index.routing in columns else None
    return key if found.routing == wanted else _under(key, found.routing)


def _under(key: tuple[str, ...], routing: str | None) -> tuple[str, ...]:
    return (*key, f"routing {routing}")


def _values(source: bytes | msgspec.Raw) -> tuple[object, ...]:
    fields = fields_of(source)
    if fields is None:
        return _NO_VALUES
    told = ((name, bytes(value)) for name, value in sorted(fields.items()) if name not in _OWN)
    return tuple((name, _bare(value)) for name, value in told if value != b"null")


def _bare(value: bytes) -> bytes:
    """Without what lies between the signs of JSON."""
    try:
        return msgspec.json.format(value, indent=-1)
    except NO_SENSE:
        return value
