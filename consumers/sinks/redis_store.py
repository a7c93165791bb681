"""What a Redis is to the sink, one server or a cluster: rows go there, and the consumer's own keys lie beside them.

walbus:NAME:shape           under which key and in which form rows were written
walbus:NAME:layouts         the layouts of the tables whose rows are there
walbus:NAME:lacking         rows that lack a value
walbus:NAME:v:KEY           the version of a row that is a text or expires, of a deleted row, or of a key that changed

`RedisServer` and `RedisCluster` name those that each has besides, and what they call these.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any, TypeAlias
from uuid import uuid4

import msgspec
import redis
from redis.client import Pipeline
from redis.cluster import ClusterPipeline

from walbus.consumers.checkpoint import Part
from walbus.consumers.refused_rows import RefusedRow, RowRefused
from walbus.consumers.sinks.redis_errors import redis_errors
from walbus.consumers.sinks.redis_generations import Generation
from walbus.errors import SinkRefused

TIMEOUT_SECONDS = 5.0

#: A script, the keys behind the store's own, and the arguments behind the store's own.
Call: TypeAlias = tuple[str, Sequence[str], Sequence[bytes | str | int]]

#: A write: its table, the key beside its row's, its seq, and relation and key of the change that it is of, if of one.
Written: TypeAlias = tuple[str, str, int, "tuple[int, bytes | None] | None"]

#: Commands that only read, in one round trip to each server.
Reads: TypeAlias = Pipeline | ClusterPipeline


class Shape(msgspec.Struct):
    """What a consumer writes: under which keys, in which form, and as which texts, by table; and the pointer to it.

    `expiring` is the tables whose rows have a time to live.
    `born` is a sign by which what is written is told from what was there before a server lost everything.
    """

    key: str
    format: str
    values: dict[str, str] = {}
    pointer: str = ""
    keys: dict[str, str] = {}
    expiring: tuple[str, ...] = ()
    born: str = ""

    def follows(self, before: Shape, tables: Iterable[str]) -> bool:
        """Whether rows of these tables that were written as `before` are as they are written now."""
        if any(before.keys.get(table) != self.keys.get(table) for table in tables):
            return False
        texts = all(before.values.get(table, text) == text for table, text in self.values.items())
        return texts and (self.key, self.format) == (before.key, before.format)


class RedisStore(ABC):
    """Where rows and the consumer's own keys lie. Methods may raise what `errors` translates.

    Attributes:
        where: it is, for errors.
        generation: which of the consumer's rows this is about; the live ones, as `begin` found them.
        apply, invalidate, unlink: the scripts that write rows, tell that cached keys changed, and delete cached keys.
    """

    apply: str
    invalidate: str
    unlink: str

    def __init__(self, where: str, consumer: str) -> None:
        self.where = where
        self.generation = Generation(consumer)

    def errors(self) -> AbstractContextManager[None]:
        """Translates trouble with it: away for now, or refused."""
        return redis_errors(self.where)

    def name(self, what: str) -> str:
        """A key of the sink's own."""
        return self.generation.own + what

    @abstractmethod
    def close(self) -> None:
        """Closes the connections."""

    # The sink's own keys

    @abstractmethod
    def begin(self, *, may_evict: bool = False) -> str:
        """Checks the servers, loads the scripts, and gives the stored checkpoint's text; empty if there is none.

        Args:
            may_evict: whether keys may go that others need: those of a cache may.
        """

    @abstractmethod
    def take_over(self, part: Part) -> str:
        """As `begin`, and has a part be its new holder's: nothing goes in of one before from now on.

        Raises:
            PartLost: a later holder has it; then `send` raises that too.
            UsageError: what is stored is of another part.
            SinkRefused: members of a group cannot have it.
        """

    @property
    @abstractmethod
    def has_checkpoint(self) -> bool:
        """Whether there is one, as far as this process knows."""

    @abstractmethod
    def documents(self, what: str) -> list[bytes]:
        """The copies of one of the sink's JSON documents; `{}` where one is not there."""

    @abstractmethod
    def set_document(self, what: str, document: bytes) -> None:
        """Replaces all copies of it; raises as `send`."""

    @abstractmethod
    def lacking(self) -> set[str]:
        """The rows that lack a value, as a table and a key with a NUL between them."""

    @abstractmethod
    def add_lacking(self, member: str) -> None:
        """One more; called before it is written. Raises as `send`."""

    @abstractmethod
    def remove_lacking(self, members: Sequence[str]) -> None:
        """Not any more; some hundred at the most. Raises as `send`."""

    @abstractmethod
    def slot(self, key: str) -> int:
        """Rows of one slot may be written by one script."""

    @abstractmethod
    def beside(self, key: str) -> str:
        """The key beside a row's, in its slot."""

    @abstractmethod
    def floor(self, table: str, log_generation: int) -> list[str]:
        """What `apply` has as keys before those of rows."""

    def check_shape(self, shape: Shape, tables: Sequence[str]) -> None:
        """Compares with what is there already, and remembers what is written from now on.

        Args:
            shape: of what is written.
            tables: that have rows.

        Raises:
            SinkRefused: rows lie under other keys, or have another form.
        """
        with self.legible("shape"):
            known = [msgspec.json.decode(text, type=Shape) for text in self.documents("shape") if text != b"{}"]
        lost = next((before.pointer for before in known if before.pointer and shape.pointer != before.pointer), None)
        if self.has_checkpoint and lost is not None:
            raise SinkRefused(
                f"readers find the rows by the pointer {lost}, and the sink is to have another one, or none",
                where=self.where,
                mend=f'write pointer = "{lost}"; or let a consumer with another name and another key begin',
            )
        if self.has_checkpoint and not all(shape.follows(before, tables) for before in known):
            raise SinkRefused(
                "what this consumer wrote lies under another key, or in another form",
                where=self.where,
                mend="let a consumer with another name and another key begin with this one",
            )
        stays = self._require_expiring(shape, known, tables) if self.has_checkpoint else set()
        born = known[0].born if known else uuid4().hex
        now = msgspec.structs.replace(shape, born=born, expiring=tuple(sorted({*shape.expiring, *stays})))
        if not known or any(before != now for before in known):
            self.set_document("shape", msgspec.json.encode(now))

    def _require_expiring(self, shape: Shape, known: Sequence[Shape], tables: Sequence[str]) -> set[str]:
        """Tables whose rows expire, by what is there, and which a new name is given for, that is yet to be told.

        Raises:
            SinkRefused: there is none: their rows would go, though they are to stay.
        """
        stays = {table for before in known for table in before.expiring if table in tables}.difference(shape.expiring)
        new_names = {table for table in shape.expiring if table not in tables}
        if len(stays) > len(new_names):
            raise SinkRefused(
                f"rows of {min(stays)} were written with a time to live, and would be missing once they have expired",
                where=self.where,
                mend="keep the table in ttl; or let a consumer with another name and another key begin",
            )
        return stays

    # Writing

    @abstractmethod
    def send(self, calls: Iterable[Call], checkpoint: str | None, written: Iterable[Written]) -> None:
        """Scripts, and the checkpoint behind them, if one is given, stored only if all of them did their work.

        Args:
            calls: the scripts; the keys of each are of one slot.
            checkpoint: the new one.
            written: what they write; looked at if a key is of a wrong type.

        Raises:
            SinkUnavailable: what was written before is lost.
            RowRefused: where a row's version belongs lies something else.
            PartLost: a later holder of the part has moved the checkpoint.
            SinkRefused: another process has.
        """

    @abstractmethod
    def raise_floor(self, table: str, log_generation: int, seq: int) -> None:
        """From now on, no change of the table with a seq at or below this one applies; raises as `send`."""

    @abstractmethod
    def show_ahead(self, seq: int) -> None:
        """Rows up to this seq are about to be shown before the checkpoint tells of them; raises as `send`."""

    @abstractmethod
    def move_epoch(self, channel: str, message: str) -> None:
        """No value that was read before this comes into a cache; raises as `send`.

        Args:
            channel: where that is published; empty: nowhere.
            message: that is.
        """

    @abstractmethod
    def shut_out(self) -> None:
        """No writer from before this one writes anything from now on; raises as `send`."""

    @abstractmethod
    def settle(self) -> None:
        """Waits until what is written is synced, where a server syncs its append-only file once a second.

        Raises:
            SinkUnavailable: one does not get to it.
        """

    @abstractmethod
    def remove(self, *keys: str) -> None:
        """Deletes some keys of one slot, whose memory is freed behind the answer. Raises as `send`."""

    # Reading

    @abstractmethod
    def pipeline(self) -> Reads:
        """Commands of one key each that go in one round trip."""

    @abstractmethod
    def scan(self, pattern: str) -> Iterator[str]:
        """Keys that are not the sink's own; some may come twice. One that is no text is no row's."""

    def rows_among(self, names: Iterable[bytes]) -> Iterator[str]:
        """Of keys, those that are texts and not the sink's own."""
        return (key for key in texts_among(names) if not key.startswith(self.generation.own))

    # What is wrong

    @contextmanager
    def legible(self, what: str) -> Iterator[None]:
        """Raises SinkRefused: what is read of one of the sink's own keys is nothing that a sink writes."""
        try:
            yield
        except (msgspec.MsgspecError, ValueError, LookupError, TypeError) as error:
            raise SinkRefused(
                f"the sink's own key {self.name(what)} holds something else ({type(error).__name__})",
                where=self.where,
                mend="delete that key, and then have all rows read again: `walbus consumers reset NAME --to snapshot`",
            ) from None

    def refuse_eviction(self, memory: Mapping[str, Any]) -> None:
        """Raises SinkRefused: keys may go from a server that others need, by what it says of its memory."""
        policy = memory.get("maxmemory_policy", "noeviction")
        if policy != "noeviction":
            raise SinkRefused(
                f"this Redis may evict keys (maxmemory-policy {policy}), and rows would be missing",
                where=self.where,
                mend="set maxmemory-policy to noeviction, or use another Redis",
            )

    def in_the_way(self, error: redis.ResponseError, written: Iterable[Written]) -> RowRefused | None:
        """Of an error: the first row whose version cannot be kept, because its key holds something else.

        None if it is another error. Rows beside it are not at fault.
        """
        if "WRONGTYPE" not in str(error):
            return None
        rows = [(table, beside, RefusedRow(of[0], of[1], seq)) for table, beside, seq, of in written if of and of[1]]
        with self.pipeline() as pipeline:
            for _, beside, _ in rows:
                pipeline.type(beside)
            types = pipeline.execute()
        for (table, _, row), kind in zip(rows, types, strict=True):
            if kind not in (b"none", b"string"):
                what = f"Redis refuses a row (WRONGTYPE): where its version belongs lies a {kind.decode()}"
                mend = f"delete the keys below {self.name('v:')} that are no strings"
                return RowRefused(what, where=f"{table} in {self.where}", mend=mend, row=row)
        return None

    def another_writer(self) -> SinkRefused:
        """The error where somebody else has moved the checkpoint."""
        return SinkRefused(
            "another consumer writes this Redis under the same name",
            where=self.where,
            mend="let one process run the consumer, or give each its own name and key",
        )


def texts_among(names: Iterable[bytes]) -> Iterator[str]:
    """Of keys, those that are texts: another one is none of ours."""
    for name in names:
        with suppress(UnicodeDecodeError):
            yield name.decode()
