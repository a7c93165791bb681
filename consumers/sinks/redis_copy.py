"""Rows in Redis that are filled beside the live ones, and take their place.

The copy is the next generation (`redis_generations`): a sink like any other, whose rows, versions and own keys lie
apart from the live ones. Readers take what stands before a row's key from the pointer. A swap is one script: it stores
the copy's checkpoint, with the number of its generation, as the live one, and sets the pointer. Whoever wrote the live
rows finds by the same fence as ever that its checkpoint is no longer the stored one, and by the number that it was
swapped.

Redis has no lock that the live rows' writer would wait for. So the copy sets a key for a few seconds (`hold`), which
each of the writer's MULTI looks at first; it goes by itself should the copy be killed. The swap does not rely on it:
it compares the live checkpoint, and up to which seq rows are shown that the checkpoint does not tell of, and does
nothing where readers would see older rows than before.

What was replaced is kept, and dropped a few hundred keys at a time, none of which is another's: of generation 0, whose
rows lie among others', those that have a version; of a later one, all below its prefix.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from typing import Any, Final, NoReturn, Self, cast
from uuid import uuid4

import msgspec
import redis

from walbus.consumers.checkpoint import Checkpoint, Following, Marks, dump_checkpoint, last_done_of, load_checkpoint
from walbus.consumers.sinks.base import SinkPlace
from walbus.consumers.sinks.copies import SinkSwapped
from walbus.consumers.sinks.redis import RedisSink
from walbus.consumers.sinks.redis_generations import Generation, begun, is_begun, rows_of, stamped, unstamped
from walbus.consumers.sinks.redis_options import RedisOptions
from walbus.consumers.sinks.redis_scripts import CARRY, DROP, FENCED, NOT_YET, POINTER, SWAP, SWAPPED
from walbus.consumers.sinks.redis_server import RedisServer
from walbus.consumers.sinks.redis_stored import SCRIPT_ENTRIES, some
from walbus.errors import InvalidText, SinkRefused, SinkUnavailable, UsageError

#: Milliseconds that the live rows' writer is held back, unless the swap comes before: more than a rebuild takes for it.
HOLD_MILLISECONDS: Final = 5_000

_CARRIED: Final = "carried"  # document of the tables whose rows came from the live ones


class BesideServer(RedisServer):
    """The server's side of a generation that is not the live one.

    Args:
        options, place: of the sink.
        number: of the generation.
    """

    def __init__(self, options: RedisOptions, place: SinkPlace, number: int) -> None:
        super().__init__(options.url.get_secret_value(), place.consumer, stopping=place.stopping)
        self.generation = Generation(place.consumer, number)
        self._swapped_pointer = options.pointer or ""
        self._holds = ""  # the key that holds back the live rows' writer, if it does
        self._found_beside = ""  # the live rows' shape: another one, where a server came back empty and is filled again

    @property
    def _checkpoint_key(self) -> str:
        return self.name("checkpoint")

    def _found(self) -> Generation:
        stored = self._text(self._checkpoint_key)
        if stored == SWAPPED or unstamped(self.live)[0] >= self.generation.number:
            what = "this copy has taken the rows' place already, or another one has"
            mend = f"`walbus rebuild {self._consumer} --discard` drops what is left of it"
            raise SinkRefused(what, where=self.where, mend=mend)
        beside = self._text(f"{Generation(self._consumer, unstamped(self.live)[0]).own}shape")
        if self.has_checkpoint and not stored and beside == self._found_beside != "":
            what = "this copy is gone: somebody discarded it"
            mend = f"`walbus rebuild {self._consumer}` begins another one, once nobody discards this one"
            raise SinkRefused(what, where=self.where, mend=mend)
        self.note("new", self.generation.number)
        if self.noted("new") != self.generation.number:
            mend = "let one rebuild of the consumer run"
            raise SinkRefused("another rebuild has begun another copy", where=self.where, mend=mend)
        self._found_beside = beside
        self._redis.set(self._checkpoint_key, begun(uuid4().hex), nx=True)
        self._stored = self._text(self._checkpoint_key)
        return self.generation

    def fenced(self) -> NoReturn:
        """As that of the live rows; of another rebuild, that has had this copy take their place, SinkSwapped tells."""
        text = self._text(self._checkpoint_key)
        if text == SWAPPED:
            raise SinkSwapped("another process has had this copy take the rows' place", where=self.where)
        if is_begun(text):
            raise self.another_writer()
        super().fenced()

    @property
    def live(self) -> str:
        """The live checkpoint as it is stored, with its generation's number."""
        return self._text(super()._checkpoint_key)

    # Which generations there are

    def noted(self, record: str) -> int | None:
        """The number of the generation that is `new`, or `kept`; None: there is none."""
        number = self._text(self.record(record))
        if number and not number.isdecimal():
            raise SinkRefused(f"{self.record(record)} is no number", where=self.where, mend="delete that key")
        return int(number) if number else None

    def note(self, record: str, number: int) -> None:
        """Says so, unless there is one."""
        self._redis.set(self.record(record), number, nx=True)

    def record(self, record: str) -> str:
        """The key that says which generation is `new`, or `kept`."""
        return rows_of(self._consumer).removesuffix("rows:") + record

    def drop(self, record: str, rows: Iterable[str]) -> None:
        """Deletes keys of the generation, while it is the one that is noted so.

        Raises:
            SinkUnavailable: another process has dropped it meanwhile.
        """
        for keys in some(rows, SCRIPT_ENTRIES):
            self._require_wanted()
            if self.run(DROP, (self.record(record), *keys), self.generation.number) == FENCED:
                raise SinkUnavailable("another process drops these rows", where=self.where)

    def own_keys(self) -> Iterator[str]:
        """The sink's own keys for this generation."""
        own = self.generation.own
        if self.generation.number:
            yield from self.scan_all(f"{own}*")
            return
        yield from self.scan_all(f"{own}v:*")
        yield from self.scan_all(f"{own}floor:*")
        yield from (own + name for name in ("shape", "done", "layouts", "lacking", "ahead"))

    def carry(self, table: str, carried: Sequence[tuple[str, str, str]], since: int, marks: Marks) -> None:
        """Copies rows of another generation, unless something is known of them here.

        Args:
            table: that they are of.
            carried: of each, the key that it has there, and the one beside that; and the key that it gets.
            since: the first generation of marks whose seqs say something there.
            marks: that they get.
        """
        self._require_wanted()
        keys = [self.name("checkpoint"), *self.floor(table, marks.log_generation)]
        for row, beside, here in carried:
            keys += (row, beside, here, self.beside(here))
        if self.run(CARRY, keys, self.stored, since, marks.generation) == FENCED:
            self.fenced()

    def _scanned(self, pattern: str) -> Iterator[bytes]:
        """Page by page, of which many may be empty: a stop is seen."""
        cursor, keys = 0, list[bytes]()
        while True:
            self._require_wanted()
            cursor, keys = cast("tuple[int, list[bytes]]", self._redis.scan(cursor, match=pattern, count=1000))
            yield from keys
            if not cursor:
                return

    def _require_wanted(self) -> None:
        if self._stopping():
            raise SinkUnavailable("it was stopped while it went over many keys", where=self.where)

    # The swap

    def hold(self) -> str:
        """Holds back the live rows' writer; their checkpoint, as `live`."""
        number = unstamped(self.live)[0]
        self._holds = f"{Generation(self._consumer, number).own}held"
        self._redis.set(self._holds, 1, px=HOLD_MILLISECONDS)
        held = self.live
        if unstamped(held)[0] != number or number >= self.generation.number:
            self.release()
            raise SinkUnavailable("a copy has taken the rows' place", where=self.where)
        return held

    def release(self) -> None:
        """The live rows' writer goes on. Never raises: otherwise that is a matter of seconds.

        It may be another rebuild's hold by now, on which no swap relies.
        """
        if self._holds:
            with suppress(redis.RedisError, OSError):
                self._redis.unlink(self._holds)
            self._holds = ""

    def swap(self, held: str, checkpoint: str, seq: int) -> None:
        """This generation becomes the live one.

        Args:
            held: what `hold` gave.
            checkpoint: that goes with these rows.
            seq: the last one that is in them.

        Raises:
            SinkSwapped: it is already, by another process.
            SinkUnavailable: the live rows went on meanwhile, or show more than their checkpoint tells of.
            SinkRefused: the pointer's key holds something else; or another process writes the copy.
        """
        live = Generation(self._consumer, unstamped(held)[0])
        answer = self.run(
            SWAP,
            (
                *(super()._checkpoint_key, self._swapped_pointer, self._checkpoint_key),
                *(self.record("kept"), self.record("new")),
                *(f"{live.own}ahead", f"{live.own}held", self.name("ahead")),
            ),
            *(held, self._stored, self.generation.rows, rows_of(self._consumer)),
            *(stamped(self.generation, checkpoint), live.number, seq),
        )
        if answer == FENCED:
            self.fenced()
        if answer == POINTER:
            raise self.names_others(self._swapped_pointer)
        if answer == NOT_YET:
            raise SinkUnavailable("the rows that are read are newer than the copy's", where=self.where)
        self._holds = ""


class RedisCopy(RedisSink):
    """See `walbus.consumers.sinks.copies.SinkCopy`."""

    shows_uncommitted = False

    def __init__(self, options: RedisOptions, place: SinkPlace, server: BesideServer) -> None:
        super().__init__(options, place.tables, server)
        self._beside, self._place, self._held = server, place, ""
        self._committed: Checkpoint | None = None
        self._carried: set[str] = set()  # tables whose rows came from the live ones

    def checkpoint(self) -> Checkpoint | None:
        """See `Sink.checkpoint`."""
        self._committed = super().checkpoint()
        with self._server.errors():
            [document] = self._server.documents(_CARRIED)
        self._carried = set(msgspec.json.decode(document, type=dict[str, list[str]]).get("tables", []))
        return self._committed

    def incomplete(self) -> tuple[str, ...]:
        """See `Sink.incomplete`. What a carried row lacks it lacks in the live ones too, and nobody can read it."""
        return tuple(table for table in super().incomplete() if table not in self._carried)

    def furnish(self) -> None:
        """See `SinkCopy.furnish`: the rows of tables that the bootstrap has no more are carried over."""
        server, own = _server_of(self._options, self._place), self._committed
        live = RedisSink(self._options, self._tables_wanted, server)
        with closing(live), self._server.errors():
            before = live.checkpoint()
            if before is None or own is None:
                return
            for layout in live.layouts():
                if self._layouts.get(layout.oid) is None and self._layouts.named(layout.table) is None:
                    self._carried.add(layout.table)
                    self._server.set_document(_CARRIED, msgspec.json.encode({"tables": sorted(self._carried)}))
                    self._carry(live, server, layout.table, before.marks, own.marks)
                    self._layouts.store(layout, own.marks.log_generation)  # says that all its rows are here

    def hold(self) -> Checkpoint | None:
        """See `SinkCopy.hold`."""
        with self._server.errors():
            self._held = self._beside.hold()
        return _loaded(self._held, self._beside)

    def commit(self, checkpoint: Checkpoint) -> None:
        """See `Sink.commit`."""
        super().commit(checkpoint)
        self._committed = checkpoint
        self._beside.release()

    def rollback(self) -> None:
        """See `Sink.rollback`."""
        super().rollback()
        self._beside.release()

    def swap(self, checkpoint: Checkpoint) -> None:
        """See `SinkCopy.swap`."""
        seq = checkpoint.point.seq if isinstance(checkpoint, Following) else 0
        with self._server.errors():
            self._send()
            self._beside.swap(self._held, dump_checkpoint(checkpoint), seq)
        self._done = last_done_of(checkpoint)

    def _carry(self, live: RedisSink, server: RedisServer, table: str, before: Marks, own: Marks) -> None:
        """The rows of a table; what the copy knows of them by the log stays."""
        prefix, here = server.generation.rows, self._server.generation.rows
        for keys in some(live.keys_of(table), SCRIPT_ENTRIES):
            carried = [(key, server.name(f"v:{key}"), here + key.removeprefix(prefix)) for key in keys]
            self._beside.carry(table, carried, before.log_generation, own)
        for key in live.lacking_keys(table):
            self._lacking.add(table, here + key.removeprefix(prefix))


class RedisCopies:
    """See `walbus.consumers.sinks.copies.SinkCopies`.

    Args:
        options: of the sink, with a pointer.
        place: whose it is.
    """

    def __init__(self, options: RedisOptions, place: SinkPlace) -> None:
        self._options, self._place = options, place
        self._records = BesideServer(options, place, 0)

    @classmethod
    def copies(cls, options: Mapping[str, Any], place: SinkPlace) -> Self:
        """See `SwappableSinkType.copies`.

        Raises:
            UsageError: there is no pointer, or there are no rows.
            ConfigError: an option is wrong.
        """
        read = RedisOptions.read(options, place)
        where = f"consumer {place.consumer}"
        if read.invalidate is not None:
            what = "with invalidate the sink holds no rows that could be rebuilt"
            raise UsageError(what, where=where, mend="let a consumer without invalidate fill rows")
        if read.pointer is None:
            raise UsageError(
                "the sink has no pointer by which readers would find the rebuilt rows",
                where=where,
                mend=f'give it one, such as pointer = "{place.consumer}:live", start the consumer with it, and have '
                "readers put what that key holds before the keys that they read (docs/consumers.md)",
            )
        return cls(read, place)

    def live(self) -> Checkpoint | None:
        """See `SinkCopies.live`."""
        with self._records.errors():
            return _loaded(self._records.live, self._records)

    def kept(self) -> bool:
        """See `SinkCopies.kept`."""
        with self._records.errors():
            return self._records.noted("kept") is not None

    def beside(self) -> RedisCopy:
        """See `SinkCopies.beside`."""
        with self._records.errors():
            number = self._records.noted("new")
            copy = RedisCopy(self._options, self._place, self._server(number or self._next()))
            try:
                copy.checkpoint()
            except BaseException:
                copy.close()
                raise
            return copy

    def discard(self) -> bool:
        """See `SinkCopies.discard`."""
        return self._drop("new")

    def drop_kept(self) -> bool:
        """See `SinkCopies.drop_kept`."""
        return self._drop("kept")

    def close(self) -> None:
        """See `SinkCopies.close`."""
        self._records.close()

    def _next(self) -> int:
        """The number of a new copy, below which nothing lies."""
        self._records.prepare()  # a Redis that may evict keys is refused before anything is noted there
        number = max(unstamped(self._records.live)[0], self._records.noted("kept") or 0) + 1
        self._records.note("new", number)
        self._clear("new", number)
        return number

    def _server(self, number: int) -> BesideServer:
        return BesideServer(self._options, self._place, number)

    def _drop(self, record: str) -> bool:
        with self._records.errors():
            number = self._records.noted(record)
            if number is None:
                return False
            if number == unstamped(self._records.live)[0]:
                what = f"{self._records.record(record)} names the rows that are read"
                raise SinkRefused(what, where=self._records.where, mend="delete that key: nothing is to be dropped")
            self._clear(record, number, self._records.record(record))
        return True

    def _clear(self, record: str, number: int, *others: str) -> None:
        """Deletes all that is a generation's: its own keys behind its rows, since they tell which rows are its.

        Whoever fills it meanwhile is fenced at the end at the latest: then its checkpoint, and others, go at once.
        """
        server = self._server(number)
        with closing(server):
            server.prepare()
            if number:
                server.drop(record, [server.name("checkpoint")])
                server.drop(record, server.scan(f"{server.generation.rows}*"))
            else:
                rows = RedisSink(self._options, self._place.tables, server)
                server.drop(record, (key for table in rows.layouts() for key in rows.keys_of(table.table)))
            server.drop(record, server.own_keys())
            server.drop(record, (server.name("checkpoint"), *others) if number else others)


def _server_of(options: RedisOptions, place: SinkPlace) -> RedisServer:
    """The server that a sink's options name."""
    return RedisServer(options.url.get_secret_value(), place.consumer, options.pointer or "", place.stopping)


def _loaded(stored: str, server: RedisServer) -> Checkpoint | None:
    try:
        return load_checkpoint(unstamped(stored)[1]) if stored and not is_begun(stored) else None
    except InvalidText as error:
        raise SinkRefused(error.what, where=server.where, mend=error.mend) from None


__all__ = ["RedisCopies", "RedisCopy"]
