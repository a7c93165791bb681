"""Documents as a server gives them, whoever wrote them.

A server puts each into its answer byte for byte as it came, and takes what is no JSON to others (`UNREADABLE`), or what
it cannot show as JSON itself, such as some YAML: one of those makes a whole answer unreadable, or an error. Such an
answer is asked for again in halves, down to the document, of which then only its place and version are told. So
whatever somebody wrote into an index, the other documents are read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from walbus.consumers.sinks.opensearch_bulks import NO_SENSE, UNREADABLE, Found, Page, Place, documents_of, page_of
from walbus.consumers.sinks.opensearch_server import (
    CANNOT_BE_SHOWN,
    NOT_FOUND,
    Answer,
    IndexGone,
    OpenSearchServer,
    path_of,
)

_READ_DOCUMENTS = 100  # they may be of a megabyte each
_SCROLL_SIZE = 2_000
_SCROLL_KEPT = "5m"
_EVERY: Final[Mapping[str, object]] = {"match_all": {}}
_SCROLL_ID = re.compile(rb'"_scroll_id":"([^"\\]+)"')  # stands before the documents


class _UnreadablePageError(Exception):
    """A page of a search has a document that only the server makes sense of."""


def documents_at(server: OpenSearchServer, places: Sequence[Place]) -> list[Found | None]:
    """Documents as they are at this moment, searchable or not.

    Raises:
        IndexGone, SinkUnavailable, SinkRefused
    """
    found: list[Found | None] = []
    for start in range(0, len(places), _READ_DOCUMENTS):
        for document in _read(server, places[start : start + _READ_DOCUMENTS]):
            if document.error is not None:
                raise IndexGone("an index is not there", where=server.where)
            found.append(document if document.found else None)
    return found


def found_by(server: OpenSearchServer, index: str, query: object) -> Iterator[list[Found]]:
    """Pages of the documents that a query finds, as they were when it began, without their sources.

    Raises:
        SinkUnavailable: a part of the index cannot be searched now.
        SinkRefused
    """
    return _scrolled(server, index, query, sources=False)


def all_documents(server: OpenSearchServer, index: str) -> Iterator[list[Found]]:
    """Pages of the documents of an index, as they were when it began.

    Where only the server makes sense of one of them, all come again, as they are now.

    Raises:
        SinkUnavailable: a part of the index cannot be searched now.
        SinkRefused
    """
    try:
        yield from _scrolled(server, index, _EVERY, sources=True)
    except _UnreadablePageError:
        yield from _one_by_one(server, index)


def _one_by_one(server: OpenSearchServer, index: str) -> Iterator[list[Found]]:
    for page in _scrolled(server, index, _EVERY, sources=False):
        for start in range(0, len(page), _READ_DOCUMENTS):
            part = page[start : start + _READ_DOCUMENTS]
            documents = documents_at(server, [Place(index, found.id, found.routing) for found in part])
            yield [document for document in documents if document is not None]


def _read(server: OpenSearchServer, places: Sequence[Place]) -> list[Found]:
    answer = server.ask("POST", "/_mget", {"docs": [place.told() for place in places]}, accepted=CANNOT_BE_SHOWN)
    try:
        found = documents_of(answer.body)
    except NO_SENSE:  # an error has no documents
        if len(places) == 1:
            return [_without_source(server, places[0])]
        half = len(places) // 2
        return _read(server, places[:half]) + _read(server, places[half:])
    return server.counted(found, len(places), "documents")


def _without_source(server: OpenSearchServer, place: Place) -> Found:
    answer = server.ask("POST", "/_mget", {"docs": [{**place.told(), "_source": False}]})
    (found,) = server.counted(server.read(documents_of, answer), 1, "documents")
    found.source = UNREADABLE
    return found


def _scrolled(server: OpenSearchServer, index: str, query: object, *, sources: bool) -> Iterator[list[Found]]:
    size = _READ_DOCUMENTS if sources else _SCROLL_SIZE
    body = {"query": query, "size": size, "version": True, "_source": sources, "sort": ["_doc"]}
    path = f"/{path_of(index)}/_search?scroll={_SCROLL_KEPT}&allow_partial_search_results=false"
    accepted, scroll = CANNOT_BE_SHOWN if sources else (), None
    answer = server.ask("POST", path, body, accepted=accepted)
    try:
        page = _page(server, answer, sources=sources)
        while page.hits.hits:
            yield page.hits.hits
            scroll = _SCROLL_ID.search(answer.body) or scroll
            more = {"scroll": _SCROLL_KEPT, "scroll_id": page.scroll_id}
            answer = server.ask("POST", "/_search/scroll", more, accepted=accepted)
            page = _page(server, answer, sources=sources)
    finally:
        if scroll := _SCROLL_ID.search(answer.body) or scroll:
            server.ask("DELETE", "/_search/scroll", {"scroll_id": [scroll[1].decode()]}, accepted=[NOT_FOUND])


def _page(server: OpenSearchServer, answer: Answer, *, sources: bool) -> Page:
    try:
        page = page_of(answer.body)
    except NO_SENSE:
        if sources:
            raise _UnreadablePageError from None
        page = server.read(page_of, answer)
    server.require_whole(page.shards)
    return page


__all__ = ["all_documents", "documents_at", "found_by"]
