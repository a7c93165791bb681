"""The sink's side of one Redis server: its keys, its scripts, what is stored there, and its errors.

walbus:NAME:checkpoint      the checkpoint, which is the fence too, behind the number of the generation (0: without)
walbus:NAME:shape           under which key and in which form rows were written
walbus:NAME:done            how many scripts of the MULTI under way did their work
walbus:NAME:layouts         the layouts of the tables whose rows are there
walbus:NAME:lacking         rows that lack a value
walbus:NAME:floor:G:TABLE   no change of the log with a seq at or below this applies (after a TRUNCATE), in the
                            log that generation G began
walbus:NAME:v:KEY           the version of a row that is a text or expires, of a deleted row, or of a key that changed
walbus:NAME:epoch           moves when all cached values of a table are forgotten
walbus:NAME:ahead           up to which seq rows are shown that the checkpoint does not tell of yet
walbus:NAME:held            writes wait, since a copy is about to take the rows' place; it goes by itself
walbus:NAME:new, :kept      the numbers of the generation that is being filled, and of the one that was replaced

All but the first and the last line are those of generation 0; another one has them below walbus:NAME:NUMBER:.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import NoReturn, TypeAlias, cast

import msgspec
import redis
from redis.backoff import NoBackoff
from redis.client import Pipeline
from redis.retry import Retry

from walbus.consumers.refused_rows import RefusedRow, RowRefused
from walbus.consumers.sinks.copies import SinkSwapped
from walbus.consumers.sinks.redis_generations import Generation, pointed, rows_of, stamped, unstamped
from walbus.consumers.sinks.redis_scripts import (
    APPLY,
    CARRY,
    COMMIT,
    DROP,
    EMPTY,
    FENCED,
    GATE,
    HELD,
    INVALIDATE,
    POINT,
    POINTER,
    RAISE,
    SWAP,
)
from walbus.errors import SinkRefused, SinkUnavailable

_TIMEOUT_SECONDS = 5.0
_SYNC_SECONDS = 2.0  # within which a server that syncs once a second has begun to
_LONGEST_SYNC_SECONDS = 30.0
_LONGEST_HOLD_SECONDS = 10.0  # longer than writes are held back
_HOLD_LOOK_SECONDS = 0.02
_ATTEMPTS = 3  # to read a checkpoint that another process moves meanwhile
_AWAY = (
    redis.exceptions.OutOfMemoryError,
    redis.exceptions.ReadOnlyError,
    redis.exceptions.NoScriptError,  # restarted meanwhile
    redis.exceptions.MasterDownError,
    redis.exceptions.TryAgainError,
)
#: States of a server that pass, told by an error's first word: its disk is full, a script runs, replicas are missing.
_PASSING = frozenset({"MISCONF", "BUSY", "NOREPLICAS", "CLUSTERDOWN"})

_SCRIPTS = (APPLY, CARRY, COMMIT, DROP, EMPTY, GATE, INVALIDATE, POINT, RAISE, SWAP)

#: A script, the keys behind its first two, and the arguments behind the checkpoint that it expects.
Call: TypeAlias = tuple[str, Sequence[str], Sequence[bytes | str | int]]

#: A write: its table, the key beside its row's, its seq, and relation and key of the change that it is of, if of one.
Written: TypeAlias = tuple[str, str, int, "tuple[int, bytes | None] | None"]


class Shape(msgspec.Struct):
    """What a consumer writes: under which key, in which form, and as which texts, by table; and the pointer to it."""

    key: str
    format: str
    values: dict[str, str] = {}
    pointer: str = ""

    def follows(self, before: Shape) -> bool:
        """Whether rows that were written as `before` are as they are written now."""
        texts = all(before.values.get(table, text) == text for table, text in self.values.items())
        return texts and (self.key, self.format) == (before.key, before.format)


class _Packer:
    """Commands in Redis's protocol: a script has thousands of arguments, for each of which the library's own copies."""

    def pack(self, *command: str | bytes | int | float) -> list[bytes]:
        """One command; its name may be of two words."""
        words = command[0].encode().split() if isinstance(command[0], str) else [command[0]]
        parts = [b"*%d\r\n" % (len(words) + len(command) - 1)]
        for argument in (*words, *command[1:]):
            part = argument if isinstance(argument, bytes) else str(argument).encode()
            parts.append(b"$%d\r\n%b\r\n" % (len(part), part))
        return [b"".join(parts)]


class RedisServer:
    """One server, and the keys of one consumer that are there for itself. Methods may raise what `errors` translates.

    Args:
        url: of the server; its password goes nowhere else.
        consumer: whose keys these are.
        pointer: the key that names the live rows to readers; empty: there is none.

    Attributes:
        generation: which of the consumer's rows this is about; the live ones, as `begin` found them.
    """

    def __init__(self, url: str, consumer: str, pointer: str = "") -> None:
        # A retry behind our back would meet a checkpoint that its own first attempt has moved.
        self._redis = redis.Redis.from_url(
            url,
            socket_timeout=_TIMEOUT_SECONDS,
            socket_connect_timeout=_TIMEOUT_SECONDS,
            retry=Retry(NoBackoff(), 0),
            command_packer=_Packer(),
        )
        address = self._redis.connection_pool.connection_kwargs
        self.where = f"Redis at {address.get('host', address.get('path', ''))}:{address.get('port', '')}"
        self.generation = Generation(consumer)
        self._consumer, self._pointer = consumer, pointer
        self._stored = ""  # the checkpoint that the server has, as far as this process knows
        self._scripts: dict[str, str] = {}  # their hashes

    def close(self) -> None:
        """Closes the connection."""
        self._redis.close()

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Translates trouble with the server: away for now, or refused."""
        try:
            yield
        except (redis.AuthenticationError, redis.exceptions.AuthorizationError) as error:
            mend = "mend user and password in the sink's url"
            raise SinkRefused(
                f"Redis lets nobody in so ({type(error).__name__})", where=self.where, mend=mend
            ) from None
        except (redis.ConnectionError, redis.TimeoutError, OSError) as error:
            raise SinkUnavailable(f"Redis does not answer ({type(error).__name__})", where=self.where) from None
        except _AWAY as error:
            raise SinkUnavailable(f"Redis cannot write now ({type(error).__name__})", where=self.where) from None
        except redis.RedisError as error:
            # Of a server's message only the first word is told: the rest may quote a key or a value. In a pipeline,
            # redis-py writes the whole command before it.
            word = str(error).rpartition("caused error: ")[2].partition(" ")[0]
            if word in _PASSING:
                raise SinkUnavailable(f"Redis cannot write now ({word})", where=self.where) from None
            raise SinkRefused(f"Redis refuses ({type(error).__name__}: {word})", where=self.where) from None

    # The sink's own keys

    def begin(self, *, may_evict: bool = False) -> str:
        """As `prepare`; gives the stored checkpoint's text, empty if there is none."""
        self.prepare(may_evict=may_evict)
        self.generation = self._found()
        return unstamped(self._stored)[1]

    def prepare(self, *, may_evict: bool = False) -> None:
        """Checks the server, and loads the scripts.

        Args:
            may_evict: whether keys may go that others need: those of a cache may.
        """
        with self.pipeline() as pipeline:
            pipeline.info("cluster")
            pipeline.info("memory")
            cluster, memory = pipeline.execute()
        if cluster.get("cluster_enabled"):
            raise SinkRefused(
                "this Redis is a node of a cluster, where a row and its version may lie on two",
                where=self.where,
                mend="use a Redis without cluster mode (with replicas, if it shall survive one)",
            )
        policy = memory.get("maxmemory_policy", "noeviction")
        if policy != "noeviction" and not may_evict:
            raise SinkRefused(
                f"this Redis may evict keys (maxmemory-policy {policy}), and rows would be missing",
                where=self.where,
                mend="set maxmemory-policy to noeviction, or use another Redis",
            )
        with self.pipeline() as pipeline:
            for script in _SCRIPTS:
                pipeline.script_load(script)
            self._scripts = dict(zip(_SCRIPTS, pipeline.execute(), strict=True))

    def _found(self) -> Generation:
        """The live rows, with their checkpoint, and with the pointer on them."""
        for _ in range(_ATTEMPTS):
            self._stored = self._text(self._checkpoint_key)
            number = unstamped(self._stored)[0]
            found = Generation(self._consumer, number) if self._stored else self._pointed()
            if not self._pointer or self._points(found):
                return found
        raise SinkUnavailable("another process moves the checkpoint", where=self.where)

    def _pointed(self) -> Generation:
        """The rows that are read where a checkpoint is lost: they are filled again in place."""
        if not self._pointer or self._redis.type(self._pointer) != b"string":
            return Generation(self._consumer)
        return pointed(self._consumer, self._text(self._pointer))

    def _points(self, to: Generation) -> bool:
        keys = (self._checkpoint_key, self._pointer)
        answer = self.run(POINT, keys, self._stored, to.rows, rows_of(self._consumer))
        if answer == POINTER:
            raise self.names_others(self._pointer)
        return answer != FENCED

    def names_others(self, pointer: str) -> SinkRefused:
        """The error for a pointer's key that holds something else."""
        what = f"the key {pointer}, which is to name the rows to readers, holds something that is not this sink's"
        return SinkRefused(what, where=self.where, mend="delete that key, or name another one as the sink's pointer")

    @property
    def _checkpoint_key(self) -> str:
        return Generation(self._consumer).own + "checkpoint"

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is one, as far as this process knows."""
        return bool(self._stored)

    @property
    def stored(self) -> str:
        """The checkpoint that the server has, as far as this process knows, as it is stored."""
        return self._stored

    def document(self, what: str) -> bytes:
        """One of the sink's JSON documents; `{}` if it is not there."""
        return self._get(self.name(what)) or b"{}"

    def set_document(self, what: str, document: bytes) -> None:
        """Replaces it."""
        self._redis.set(self.name(what), document)

    def check_shape(self, shape: Shape) -> None:
        """Compares with what is there already, and remembers what is written from now on.

        Raises:
            SinkRefused: rows lie under other keys, or have another form.
        """
        known = self._get(self.name("shape"))
        before = msgspec.json.decode(known, type=Shape) if known else None
        if self._stored and before is not None and before.pointer and shape.pointer != before.pointer:
            raise SinkRefused(
                f"readers find the rows by the pointer {before.pointer}, and the sink is to have another one, or none",
                where=self.where,
                mend=f'write pointer = "{before.pointer}"; or let a consumer with another name and another key begin',
            )
        if self._stored and before is not None and not shape.follows(before):
            raise SinkRefused(
                "what this consumer wrote lies under another key, or in another form",
                where=self.where,
                mend="let a consumer with another name and another key begin with this one",
            )
        if before != shape:
            self.set_document("shape", msgspec.json.encode(shape))

    def lacking(self) -> set[str]:
        """The rows that lack a value."""
        return {member.decode() for member in cast(set[bytes], self._redis.smembers(self.name("lacking")))}

    def add_lacking(self, member: str) -> None:
        """One more."""
        self._redis.sadd(self.name("lacking"), member)

    def remove_lacking(self, members: Sequence[str]) -> None:
        """Not any more."""
        self._redis.srem(self.name("lacking"), *members)

    def name(self, what: str) -> str:
        """A key of the sink's own."""
        return self.generation.own + what

    # Writing

    def send(self, calls: Iterable[Call], checkpoint: str | None, written: Iterable[Written]) -> None:
        """Scripts in one MULTI; with the checkpoint last, if one is given, stored only if all of them did their work.

        Args:
            calls: the scripts.
            checkpoint: the new one.
            written: what they write; looked at if a key is of a wrong type.

        Raises:
            SinkUnavailable: the server has lost its checkpoint, and so its rows; or the pointer does not name them.
            RowRefused: where a row's version belongs lies something else.
            SinkRefused: another process has moved the checkpoint.
        """
        made, until = list(calls), time.monotonic() + _LONGEST_HOLD_SECONDS
        while HELD in (answers := self._answers(made, checkpoint, written)):
            if POINTER in answers:
                what = f"somebody changed the pointer {self._pointer}; it is set on the rows again"
                raise SinkUnavailable(what, where=self.where)
            self._wait_while_held(until)
        if FENCED in answers:
            self.fenced()
        self._stored = self._stored if checkpoint is None else stamped(self.generation, checkpoint)

    def _answers(self, calls: Sequence[Call], checkpoint: str | None, written: Iterable[Written]) -> list[object]:
        own = (self._checkpoint_key, self.name("done"))
        with self._redis.pipeline(transaction=True) as pipeline:
            pipeline.set(own[1], 0)  # without memory the server refuses this one, and with it all of them
            if self._pointer:
                gate = (*own, self.name("held"), self._pointer, self._stored, self.generation.rows)
                pipeline.evalsha(self._scripts[GATE], 4, *gate)
            for script, keys, arguments in calls:
                pipeline.evalsha(self._scripts[script], 2 + len(keys), *own, *keys, self._stored, *arguments)
            if checkpoint is not None:
                text = stamped(self.generation, checkpoint)
                commit = (*own, self.name("ahead"), self._stored, text, len(calls))
                pipeline.evalsha(self._scripts[COMMIT], 3, *commit)
            try:
                return pipeline.execute()
            except redis.ResponseError as error:
                if "WRONGTYPE" in str(error) and (refusal := self._in_the_way(written)) is not None:
                    raise refusal from None
                raise

    def _wait_while_held(self, until: float) -> None:
        if time.monotonic() > until:
            raise SinkUnavailable("a rebuilt copy is about to take the rows' place", where=self.where)
        time.sleep(_HOLD_LOOK_SECONDS)

    def run(self, script: str, keys: Sequence[str], *arguments: str | int) -> int:
        """One script; its answer."""
        return int(self._redis.evalsha(self._scripts[script], len(keys), *keys, *arguments))

    def call(self, script: str, key: str, *arguments: str | int) -> None:
        """One script on the checkpoint and another key; raises as `send`."""
        keys, until = (self._checkpoint_key, key, self.name("held")), time.monotonic() + _LONGEST_HOLD_SECONDS
        while (answer := self.run(script, keys, self._stored, *arguments)) == HELD:
            self._wait_while_held(until)
        if answer == FENCED:
            self.fenced()

    def show_ahead(self, seq: int) -> None:
        """Rows up to this seq are about to be shown before the checkpoint tells of them; raises as `send`."""
        self.call(RAISE, self.name("ahead"), seq)

    def settle(self) -> None:
        """Waits until what is written is synced, where the server syncs its append-only file once a second.

        One that syncs with each command has done so already; one that leaves it to its machine, or has no such file,
        was never asked to keep what is written.

        Raises:
            SinkUnavailable: it does not get to it.
        """
        if not self._redis.info("persistence").get("aof_enabled"):
            return
        if self._redis.config_get("appendfsync").get("appendfsync") != "everysec":
            return
        began = time.monotonic()
        while True:
            time.sleep(_SYNC_SECONDS / 10)
            waited = time.monotonic() - began
            if waited >= _SYNC_SECONDS and not self._redis.info("persistence").get("aof_pending_bio_fsync"):
                return
            if waited >= _LONGEST_SYNC_SECONDS:
                raise SinkUnavailable("Redis does not get to sync its append-only file", where=self.where)

    def remove(self, *keys: str) -> None:
        """Deletes keys; their memory is freed behind the answer."""
        self._redis.unlink(*keys)

    def _in_the_way(self, written: Iterable[Written]) -> RowRefused | None:
        """The first row whose version cannot be kept, because its key holds something else; others are not at fault."""
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

    def fenced(self) -> NoReturn:
        """Raises what it means that the stored checkpoint is not the one that is known."""
        text = self._text(self._checkpoint_key)
        if not text:
            raise SinkUnavailable("this Redis came back empty; it is filled from a snapshot", where=self.where)
        if unstamped(text)[0] > self.generation.number:
            raise SinkSwapped("a rebuilt copy has taken the rows' place", where=self.where)
        raise SinkRefused(
            "another consumer writes this Redis under the same name",
            where=self.where,
            mend="let one process run the consumer, or give each its own name and key",
        )

    # Reading

    def pipeline(self) -> Pipeline:
        """Commands that go in one round trip."""
        return self._redis.pipeline(transaction=False)

    def scan(self, pattern: str) -> Iterator[str]:
        """Keys that are not the sink's own; some may come twice. One that is no text is no row's."""
        return (key for key in self.scan_all(pattern) if not key.startswith(self.generation.own))

    def scan_all(self, pattern: str) -> Iterator[str]:
        """Keys, the sink's own among them."""
        for name in self._redis.scan_iter(match=pattern, count=1000):
            with suppress(UnicodeDecodeError):
                yield name.decode()

    def _text(self, key: str) -> str:
        """That of a key; empty if it is not there."""
        return (self._get(key) or b"").decode(errors="replace")

    def _get(self, key: str) -> bytes | None:
        return cast("bytes | None", self._redis.get(key))
