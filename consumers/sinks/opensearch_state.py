"""What a consumer keeps on the server beside the documents: its checkpoint, which is the fence too, and its tables.

Both are documents of one small index. The checkpoint is written only over the very one that this process stored or read
last (`if_seq_no`), so that of two processes under one name the older one fails; where there is none any more, the
server came back empty. The other document has the aliases of the consumer's tables, to find their indices by.

A copy has documents of its own (`Swaps.key`). With the swap they are the live ones, and those of before stay as they
were, until what the copy has replaced is dropped. A rebuild begins by writing the copy's checkpoint as it found it, or
an empty one: from then on the copy is its own, until another rebuild does so, or the document is dropped. Either ends
it.
"""

from __future__ import annotations

import re
from uuid import uuid4

import msgspec
import structlog

from walbus.consumers.checkpoint import Checkpoint, load_checkpoint
from walbus.consumers.sinks.copies import SinkSwapped
from walbus.consumers.sinks.opensearch_server import (
    CANNOT_BE_SHOWN,
    CONFLICT,
    NOT_FOUND,
    Answer,
    IndexGone,
    OpenSearchServer,
    path_of,
)
from walbus.consumers.sinks.opensearch_swaps import Swaps
from walbus.errors import InvalidText, SinkRefused, SinkUnavailable

_log = structlog.get_logger(__name__)

_BAD_REQUEST = 400
_INDEX = {
    "settings": {"number_of_shards": 1, "auto_expand_replicas": "0-1", "hidden": True},
    "mappings": {"dynamic": False, "properties": {}, "_source": {"enabled": True}},
}
_ALIAS = re.compile(r"[a-z0-9%][a-z0-9._$%-]{0,254}")  # what `IndexTemplate` makes, put aside or not


class Source(msgspec.Struct):
    """What the documents have: the first two are the checkpoint's."""

    checkpoint: str = ""
    writer: str = ""
    aliases: tuple[str, ...] = ()
    staying: tuple[str, ...] = ()


class Confirmed(msgspec.Struct, rename={"seq_no": "_seq_no", "primary_term": "_primary_term"}):
    """A document as its write is confirmed."""

    seq_no: int
    primary_term: int

    def fence(self) -> str:
        """What a write demands that replaces this one only."""
        return f"if_seq_no={self.seq_no}&if_primary_term={self.primary_term}"


class Stored(Confirmed, rename={"seq_no": "_seq_no", "primary_term": "_primary_term", "source": "_source"}):
    """A document as it is read."""

    source: Source


class ConsumerState:
    """The two documents of one consumer, or of the copy beside its live sink.

    Args:
        server: that has them.
        index: that they are in; made when missing.
        swaps: of the consumer.
        beside: whether they are those of the copy.
    """

    def __init__(self, server: OpenSearchServer, index: str, swaps: Swaps, *, beside: bool = False) -> None:
        self._server, self._index, self._swaps, self._beside = server, index, swaps, beside
        self._fence = "op_type=create"  # what a write of the checkpoint demands of the one that is there
        self._writer = uuid4().hex  # tells our own writes from another's
        self._tables: Source | None = None  # as they are stored
        self._number: int | None = None  # of the copy that these are of, see `Swaps`
        self._claimed: int | None = None  # the copy that is this process's own

    def begin(self) -> Checkpoint | None:
        """The stored checkpoint; None if there is none, or none that counts. Waits while a swap is under way.

        One that stands without its tables counts for nothing: their indices would not be looked for.

        Raises:
            SinkSwapped: a copy has taken the live one's place since the last time.
            SinkRefused: among others, a document is not as this sink writes it.
            SinkUnavailable
        """
        made = self._server.ask("PUT", f"/{path_of(self._index)}", _INDEX, accepted=[_BAD_REQUEST])
        if made.status == _BAD_REQUEST and b"resource_already_exists" not in made.body:
            mend = "choose another state_index"
            raise SinkRefused("the index for checkpoints cannot be made", where=self._index, mend=mend)
        self._require_not_swapped()
        if self._beside:
            self._claim()
            self._require_not_swapped()  # by one that had the copy before, and was just about to
        found = self._get("checkpoint")
        self._fence = found.fence() if found else "op_type=create"
        tables = self._get("tables")
        self._tables = tables.source if tables else None
        checkpoint = _checkpoint_of(found, self._server, self._index, self._swaps.key(self._number or 0))
        if checkpoint is not None and tables is None:
            _log.warning("consumer.tables_missing", where=self._server.where, note="all tables are read again")
            self.drop()
            return None
        return checkpoint

    def _require_not_swapped(self) -> None:
        if self.is_swapped():
            raise SinkSwapped("a rebuilt copy has taken the sink's place", where=self._server.where)

    def _claim(self) -> None:
        """The copy is this process's own; whoever had it before is refused from now on."""
        if self._claimed == self._number:
            self.require_own()
            return
        found = self._get("checkpoint")
        self._fence = found.fence() if found else "op_type=create"
        if self._put(found.source.checkpoint if found else "").status in (CONFLICT, NOT_FOUND):
            raise SinkUnavailable("another process is about to rebuild this sink too", where=self._server.where)
        self._claimed = self._number

    def require_own(self) -> None:
        """The copy is this process's own yet.

        Raises:
            SinkRefused: it was dropped, or another rebuild has it.
        """
        self._require_own(self._get("checkpoint"))

    def _require_own(self, found: Stored | None) -> None:
        if found is None:
            what, mend = "the copy was dropped while it was filled", "`walbus rebuild` begins another one"
            raise SinkRefused(what, where=self._server.where, mend=mend)
        if found.source.writer != self._writer:
            what, mend = "another rebuild goes on with this copy", "let one process rebuild the sink"
            raise SinkRefused(what, where=self._server.where, mend=mend)

    def is_swapped(self) -> bool:
        """Whether a copy has taken the live one's place since the last time. Waits while a swap is under way.

        Raises:
            SinkUnavailable, SinkRefused
        """
        self._swaps.settle()
        number, before = self._swaps.number() + self._beside, self._number
        self._number = number
        return before is not None and before != number

    def require_unheld(self) -> None:
        """What is about to be changed may be so.

        Raises:
            SinkUnavailable: a swap is under way, or was done since `begin`.
            SinkRefused: as `require_own`, of a copy.
        """
        if self._beside:
            self.require_own()
        elif self._swaps.is_held() or self._swaps.number() != self._number:
            raise IndexGone("a rebuilt copy is taking the sink's place", where=self._server.where)

    @property
    def aliases(self) -> tuple[str, ...]:
        """Those of the consumer's tables."""
        tables = self._tables or Source()
        return tables.aliases if self._beside else (*tables.aliases, *tables.staying)

    def set_aliases(self, aliases: tuple[str, ...], staying: tuple[str, ...] = ()) -> None:
        """Replaces them. They are stored before any checkpoint is.

        Args:
            aliases: those of the tables that are there.
            staying: of a copy: those of tables that it has not, which stay as they are when it is swapped.
        """
        tables = Source(aliases=aliases, staying=staying)
        if tables != self._tables:
            self._server.ask("PUT", self._path("tables"), {"aliases": aliases, "staying": staying})
            self._tables = tables

    def store(self, checkpoint: str) -> None:
        """Replaces the checkpoint.

        Raises:
            IndexGone: the server has lost it, and so its documents.
            SinkRefused: another process has moved it; or, of a copy, as `require_own`.
        """
        answer = self._put(checkpoint)
        if answer.status in (CONFLICT, NOT_FOUND):
            found = self._get("checkpoint")
            if self._beside:
                self._require_own(found)
            if found is None:
                where = self._server.where
                raise IndexGone("the search server came back empty; it is filled from a snapshot", where=where)
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
        self._fence = self._server.told(answer, Confirmed).fence()

    def drop(self) -> None:
        """Forgets the checkpoint, so that all tables are read anew."""
        if self._beside:
            self.store("")
            return
        self._server.ask("DELETE", self._path("checkpoint"), accepted=[NOT_FOUND])
        self._fence = "op_type=create"

    def _put(self, checkpoint: str) -> Answer:
        path = f"{self._path('checkpoint')}?{self._fence}"
        return self._server.ask("PUT", path, self._document(checkpoint), accepted=[CONFLICT, NOT_FOUND])

    def _document(self, checkpoint: str) -> dict[str, str]:
        return {"checkpoint": checkpoint, "writer": self._writer}

    def _get(self, what: str) -> Stored | None:
        return read_document(self._server, self._index, what, self._swaps.key(self._number or 0))

    def _path(self, what: str) -> str:
        return _path_to(self._index, what, self._swaps.key(self._number or 0))


def read_document(server: OpenSearchServer, index: str, what: str, key: str) -> Stored | None:
    """A document.

    Args:
        server: that has it.
        index: that it is in.
        what: `checkpoint` or `tables`.
        key: whose, see `Swaps.key`.

    Raises:
        SinkRefused: it is not as this sink writes it.
        SinkUnavailable
    """
    path = _path_to(index, what, key)
    answer = server.ask("GET", path, accepted=[NOT_FOUND, *CANNOT_BE_SHOWN])
    if answer.status == NOT_FOUND:
        return None
    try:
        stored = server.told(answer, Stored)
    except SinkUnavailable:
        bare = server.ask("GET", f"{path}?_source=false", accepted=[NOT_FOUND])
        if bare.status == NOT_FOUND:
            return None
        server.told(bare, Confirmed)  # who answers is the server itself, so it is the document that makes no sense
        raise _damaged(server, path) from None
    source = stored.source
    if not all(map(_ALIAS.fullmatch, (*source.aliases, *source.staying))) or (
        what == "checkpoint" and not source.writer
    ):
        raise _damaged(server, path)
    return stored


def read_checkpoint(server: OpenSearchServer, index: str, key: str) -> Checkpoint | None:
    """The stored checkpoint; None where there is none. Arguments and errors are those of `read_document`."""
    return _checkpoint_of(read_document(server, index, "checkpoint", key), server, index, key)


def drop_claimed(server: OpenSearchServer, index: str, key: str, found: Stored) -> bool:
    """Deletes a copy's checkpoint, if it is as it was found; tells whether it was, or is gone."""
    path = f"{_path_to(index, 'checkpoint', key)}?{found.fence()}"
    return server.ask("DELETE", path, accepted=[CONFLICT, NOT_FOUND]).status != CONFLICT


def drop_documents(server: OpenSearchServer, index: str, key: str) -> bool:
    """Deletes both documents; tells whether there was one."""
    gone = [server.ask("DELETE", _path_to(index, what, key), accepted=[NOT_FOUND]) for what in ("tables", "checkpoint")]
    return any(answer.status != NOT_FOUND for answer in gone)


def _checkpoint_of(found: Stored | None, server: OpenSearchServer, index: str, key: str) -> Checkpoint | None:
    if found is None or not found.source.checkpoint:
        return None
    try:
        return load_checkpoint(found.source.checkpoint)
    except InvalidText as error:
        where = f"{server.where}{_path_to(index, 'checkpoint', key)}"
        raise SinkRefused(error.what, where=where, mend=error.mend) from None


def _damaged(server: OpenSearchServer, path: str) -> SinkRefused:
    what = "a document that Walbus keeps beside its checkpoints is not as it was written"
    mend = "delete that document: the consumer then begins with a snapshot"
    return SinkRefused(what, where=f"{server.where}{path}", mend=mend)


def _path_to(index: str, what: str, key: str) -> str:
    return f"/{path_of(index)}/_doc/{path_of(f'{what}:{key}')}"
