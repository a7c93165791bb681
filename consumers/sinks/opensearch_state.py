"""What a consumer keeps on the server beside the documents: its checkpoint, which is the fence too, and its tables.

Both are documents of one small index. The checkpoint is written only over the very one that this process stored or read
last (`if_seq_no`), so that of two processes under one name the older one fails; where there is none any more, the
server came back empty. The other document has the aliases of the consumer's tables, to find their indices by.
"""

from __future__ import annotations

from uuid import uuid4

import msgspec

from walbus.consumers.sinks.opensearch_server import CONFLICT, NOT_FOUND, Answer, OpenSearchServer, path_of
from walbus.errors import SinkRefused, SinkUnavailable

_BAD_REQUEST = 400
_INDEX = {
    "settings": {"number_of_shards": 1, "auto_expand_replicas": "0-1", "hidden": True},
    "mappings": {"dynamic": False, "properties": {}},
}


class _Source(msgspec.Struct):
    checkpoint: str = ""
    writer: str = ""
    aliases: tuple[str, ...] = ()


class _Stored(
    msgspec.Struct, rename={"seq_no": "_seq_no", "primary_term": "_primary_term", "source": "_source"}, kw_only=True
):
    """A document as it is read, or as its write is confirmed: without its source."""

    seq_no: int
    primary_term: int
    source: _Source = msgspec.field(default_factory=_Source)

    def fence(self) -> str:
        """What a write demands that replaces this one only."""
        return f"if_seq_no={self.seq_no}&if_primary_term={self.primary_term}"


class ConsumerState:
    """The two documents of one consumer.

    Args:
        server: that has them.
        index: that they are in; made when missing.
        consumer: its name.
    """

    def __init__(self, server: OpenSearchServer, index: str, consumer: str) -> None:
        self._server, self._index, self._consumer = server, index, consumer
        self._fence = "op_type=create"  # what a write of the checkpoint demands of the one that is there
        self._writer = uuid4().hex  # tells our own writes from another's
        self._aliases: tuple[str, ...] = ()

    def begin(self) -> str:
        """The stored checkpoint's text; empty if there is none."""
        made = self._server.ask("PUT", f"/{path_of(self._index)}", _INDEX, accepted=[_BAD_REQUEST])
        if made.status == _BAD_REQUEST and b"resource_already_exists" not in made.body:
            mend = "choose another state_index"
            raise SinkRefused("the index for checkpoints cannot be made", where=self._index, mend=mend)
        found = self._get("checkpoint")
        self._fence = found.fence() if found else "op_type=create"
        tables = self._get("tables")
        self._aliases = tables.source.aliases if tables else ()
        return found.source.checkpoint if found else ""

    @property
    def aliases(self) -> tuple[str, ...]:
        """Those of the consumer's tables."""
        return self._aliases

    def set_aliases(self, aliases: tuple[str, ...]) -> None:
        """Replaces them."""
        if aliases != self._aliases:
            self._server.ask("PUT", self._path("tables"), {"aliases": aliases})
            self._aliases = aliases

    def store(self, checkpoint: str) -> None:
        """Replaces the checkpoint.

        Raises:
            SinkUnavailable: the server has lost it, and so its documents.
            SinkRefused: another process has moved it.
        """
        answer = self._put(checkpoint)
        if answer.status in (CONFLICT, NOT_FOUND):
            found = self._get("checkpoint")
            if found is None:
                where = self._server.where
                raise SinkUnavailable("the search server came back empty; it is filled from a snapshot", where=where)
            if found.source.writer != self._writer:
                raise SinkRefused(
                    "another consumer writes these indices under the same name",
                    where=self._server.where,
                    mend="let one process run the consumer, or give each its own name and index",
                )
            self._fence = found.fence()  # a write of our own arrived, and its answer did not
            answer = self._put(checkpoint)
            if answer.status in (CONFLICT, NOT_FOUND):
                raise SinkUnavailable("the checkpoint moves while it is stored", where=self._server.where)
        self._fence = self._server.told(answer, _Stored).fence()

    def drop(self) -> None:
        """Forgets the checkpoint, so that all tables are read anew."""
        self._server.ask("DELETE", self._path("checkpoint"), accepted=[NOT_FOUND])
        self._fence = "op_type=create"

    def _put(self, checkpoint: str) -> Answer:
        path = f"{self._path('checkpoint')}?{self._fence}"
        return self._server.ask("PUT", path, self._document(checkpoint), accepted=[CONFLICT, NOT_FOUND])

    def _document(self, checkpoint: str) -> dict[str, str]:
        return {"checkpoint": checkpoint, "writer": self._writer}

    def _get(self, what: str) -> _Stored | None:
        answer = self._server.ask("GET", self._path(what), accepted=[NOT_FOUND])
        return self._server.told(answer, _Stored) if answer.status != NOT_FOUND else None

    def _path(self, what: str) -> str:
        return f"/{path_of(self._index)}/_doc/{path_of(f'{what}:{self._consumer}')}"
