"""The sink's side of one Redis server.

Beside the keys that `redis_store` names it has these:

walbus:NAME:checkpoint      the checkpoint, which is the fence too, behind the number of the generation (0: without); of
                            a part that members of a group have after each other, under the token of who has it
walbus:NAME:done            how many scripts of the MULTI under way did their work
walbus:NAME:floor:G:TABLE   no change of the log with a seq at or below this applies (after a TRUNCATE), in the
                            log that generation G began
walbus:NAME:epoch           moves when all cached values of a table are forgotten
walbus:NAME:ahead           up to which seq rows are shown that the checkpoint does not tell of yet
walbus:NAME:held            writes wait, since a copy is about to take the rows' place; it goes by itself
walbus:NAME:new, :kept      the numbers of the generation that is being filled, and of the one that was replaced

All but the first and the last line, and those that `redis_store` names, are those of generation 0; another one has
them below walbus:NAME:NUMBER:.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn, cast
from uuid import uuid4

import redis
from redis.backoff import NoBackoff
from redis.client import Pipeline
from redis.retry import Retry

from walbus.consumers.checkpoint import Part, is_behind
from walbus.consumers.sinks.copies import SinkSwapped
from walbus.consumers.sinks.redis_generations import Generation, begun, is_begun, pointed, rows_of, stamped, unstamped
from walbus.consumers.sinks.redis_scripts import (
    APPLY,
    CARRY,
    COMMIT,
    DROP,
    EMPTY,
    FENCED,
    GATE,
    GUARDED,
    HELD,
    INVALIDATE,
    POINT,
    POINTER,
    RAISE,
    SWAP,
    UNLINK,
)
from walbus.consumers.sinks.redis_store import TIMEOUT_SECONDS, Call, RedisStore, Written, texts_among
from walbus.consumers.sinks.taking_over import Stored, is_stamp, parse_stored, require_not_above, text_under
from walbus.errors import InvalidText, SinkRefused, SinkUnavailable

_SYNC_SECONDS = 2.0  # within which a server that syncs once a second has begun to
_LONGEST_SYNC_SECONDS = 30.0
_LONGEST_HOLD_SECONDS = 10.0  # longer than writes are held back
_HOLD_LOOK_SECONDS = 0.02
_UNANSWERED = 16  # commits that are remembered, of a server that answers none
_ATTEMPTS = 3  # to find the live rows: each time that it fails, another copy has taken their place meanwhile
_SCRIPTS = (APPLY, CARRY, COMMIT, DROP, EMPTY, GATE, GUARDED, INVALIDATE, POINT, RAISE, SWAP, UNLINK)


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


class RedisServer(RedisStore):
    """One server, and the keys of one consumer that are there for itself.

    Args:
        url: of the server; its password goes nowhere else.
        consumer: whose keys these are.
        pointer: the key that names the live rows to readers; empty: there is none.
        stopping: see `SinkPlace`.
    """

    apply, invalidate, unlink = APPLY, INVALIDATE, UNLINK

    def __init__(
        self, url: str, consumer: str, pointer: str = "", stopping: Callable[[], bool] = lambda: False
    ) -> None:
        # A retry behind our back would meet a checkpoint that its own first attempt has moved.
        self._redis = redis.Redis.from_url(
            url,
            socket_timeout=TIMEOUT_SECONDS,
            socket_connect_timeout=TIMEOUT_SECONDS,
            retry=Retry(NoBackoff(), 0),
            command_packer=_Packer(),
        )
        address = self._redis.connection_pool.connection_kwargs
        super().__init__(f"Redis at {address.get('host', address.get('path', ''))}:{address.get('port', '')}", consumer)
        self._consumer, self._pointer, self._stopping = consumer, pointer, stopping
        self._stored = ""  # the checkpoint that the server has, as far as this process knows
        self._unanswered: deque[str] = deque(maxlen=_UNANSWERED)  # that were sent to it, and may come to it late
        self._scripts: dict[str, str] = {}  # their hashes

    def close(self) -> None:
        """See `RedisStore.close`."""
        self._redis.close()

    def is_in_cluster(self) -> bool:
        """Whether it is a node of a cluster."""
        return bool(self._redis.info("cluster").get("cluster_enabled"))

    # The sink's own keys

    def begin(self, *, may_evict: bool = False) -> str:
        """See `RedisStore.begin`."""
        self.prepare(may_evict=may_evict)
        self.generation = self._found()
        return self._text_known

    def take_over(self, part: Part) -> str:
        """See `RedisStore.take_over`."""
        until = time.monotonic() + _LONGEST_HOLD_SECONDS
        while True:
            self.begin()
            with self._legible():
                text = stamped(self.generation, text_under(part, self._text_known, self.where))
            keys = (self._checkpoint_key, self.name("held"), self._checkpoint_key)
            answer = self.run(GUARDED, keys, self._stored, "SET", text)
            if answer == HELD:
                self._wait_while_held(until)
            elif answer != FENCED:
                self._stored = text
                return unstamped(text)[1]

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
        if not may_evict:
            self.refuse_eviction(memory)
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
            if (not self._pointer or self._points(found)) and self._has_begun(found):
                return found
        raise SinkUnavailable("one copy after the other takes the rows' place", where=self.where)

    def _has_begun(self, found: Generation) -> bool:
        """Whether what is stored is of these rows, once there is a checkpoint, or a sign that there is none yet."""
        if not self._stored:
            self._redis.set(self._checkpoint_key, stamped(found, begun(uuid4().hex)), nx=True)
            self._stored = self._text(self._checkpoint_key)
        return bool(self._stored) and unstamped(self._stored)[0] == found.number

    def _pointed(self) -> Generation:
        """The rows that are read where a checkpoint is lost: they are filled again in place."""
        if not self._pointer or self._redis.type(self._pointer) != b"string":
            return Generation(self._consumer)
        return pointed(self._consumer, self._text(self._pointer))

    def _points(self, to: Generation) -> bool:
        number = to.number if self._stored else ""
        answer = self.run(POINT, (self._checkpoint_key, self._pointer), number, to.rows, rows_of(self._consumer))
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
        """See `RedisStore.has_checkpoint`."""
        return bool(self._text_known) and not is_stamp(self._text_known)

    @property
    def _text_known(self) -> str:
        return "" if is_begun(self._stored) else unstamped(self._stored)[1]

    @property
    def stored(self) -> str:
        """The checkpoint that the server has, as far as this process knows, as it is stored."""
        return self._stored

    def documents(self, what: str) -> list[bytes]:
        """See `RedisStore.documents`."""
        return [self._get(self.name(what)) or b"{}"]

    def set_document(self, what: str, document: bytes) -> None:
        """See `RedisStore.set_document`."""
        self._guarded("SET", [self.name(what)], document)

    def lacking(self) -> set[str]:
        """See `RedisStore.lacking`."""
        return {member.decode() for member in cast(set[bytes], self._redis.smembers(self.name("lacking")))}

    def add_lacking(self, member: str) -> None:
        """See `RedisStore.add_lacking`."""
        self._guarded("SADD", [self.name("lacking")], member)

    def remove_lacking(self, members: Sequence[str]) -> None:
        """See `RedisStore.remove_lacking`."""
        self._guarded("SREM", [self.name("lacking")], *members)

    def slot(self, key: str) -> int:
        """See `RedisStore.slot`: a script may write any rows."""
        return 0

    def beside(self, key: str) -> str:
        """See `RedisStore.beside`."""
        return self.name(f"v:{key}")

    def floor(self, table: str, log_generation: int) -> list[str]:
        """See `RedisStore.floor`."""
        return [self.name(f"floor:{log_generation}:{table}")]

    # Writing

    def send(self, calls: Iterable[Call], checkpoint: str | None, written: Iterable[Written]) -> None:
        """See `RedisStore.send`: all of it is one MULTI. Raises SinkUnavailable too if the pointer names other rows."""
        made, until = list(calls), time.monotonic() + _LONGEST_HOLD_SECONDS
        while HELD in (answers := self._answers(made, checkpoint, written)):
            if POINTER in answers:
                what = f"somebody changed the pointer {self._pointer}; it is set on the rows again"
                raise SinkUnavailable(what, where=self.where)
            self._wait_while_held(until)
        if FENCED in answers:
            self.fenced()
        if checkpoint is not None:
            self._stored = stamped(self.generation, checkpoint)
            self._unanswered.clear()

    def _answers(self, calls: Sequence[Call], checkpoint: str | None, written: Iterable[Written]) -> list[object]:
        own = (self._checkpoint_key, self.name("done"))
        with self._redis.pipeline(transaction=True) as pipeline:
            pipeline.set(own[1], 0)  # without memory the server refuses this one, and with it all of them
            if self._pointer:
                gate = (*own, self.name("held"), self._pointer, self._stored, self.generation.rows)
                pipeline.evalsha(self._scripts[GATE], 4, *gate)
            for script, keys, arguments in calls:
                pipeline.evalsha(self._scripts[script], 2 + len(keys), *own, *keys, self._stored, *arguments)
            text = "" if checkpoint is None else stamped(self.generation, checkpoint)
            if text:
                commit = (*own, self.name("ahead"), self._stored, text, len(calls))
                pipeline.evalsha(self._scripts[COMMIT], 3, *commit)
            try:
                return pipeline.execute()
            except redis.ResponseError as error:
                if (refusal := self.in_the_way(error, written)) is not None:
                    raise refusal from None
                raise
            except (redis.ConnectionError, redis.TimeoutError, OSError):
                self._unanswered.append(text)
                raise

    def _wait_while_held(self, until: float) -> None:
        if self._stopping() or time.monotonic() > until:
            raise SinkUnavailable("a rebuilt copy is about to take the rows' place", where=self.where)
        time.sleep(_HOLD_LOOK_SECONDS)

    def run(self, script: str, keys: Sequence[str], *arguments: str | bytes | int) -> int:
        """One script; its answer."""
        return int(self._redis.evalsha(self._scripts[script], len(keys), *keys, *arguments))

    def call(self, script: str, key: str, *arguments: str | int) -> None:
        """One script on the checkpoint and another key; raises as `send`."""
        self._run_unless_held(script, (self._checkpoint_key, key, self.name("held")), *arguments)

    def _guarded(self, command: str, keys: Sequence[str], *arguments: str | bytes) -> None:
        """A command on each of some keys, while the checkpoint is the one that is known; raises as `send`."""
        self._run_unless_held(GUARDED, (self._checkpoint_key, self.name("held"), *keys), command, *arguments)

    def _run_unless_held(self, script: str, keys: Sequence[str], *arguments: str | bytes | int) -> None:
        until = time.monotonic() + _LONGEST_HOLD_SECONDS
        while (answer := self.run(script, keys, self._stored, *arguments)) == HELD:
            self._wait_while_held(until)
        if answer == FENCED:
            self.fenced()

    def show_ahead(self, seq: int) -> None:
        """See `RedisStore.show_ahead`."""
        self.call(RAISE, self.name("ahead"), seq)

    def raise_floor(self, table: str, log_generation: int, seq: int) -> None:
        """See `RedisStore.raise_floor`."""
        self.call(RAISE, *self.floor(table, log_generation), seq)

    def move_epoch(self, channel: str, message: str) -> None:
        """See `RedisStore.move_epoch`."""
        self.call(EMPTY, self.name("epoch"), uuid4().hex, channel, message)

    def shut_out(self) -> None:
        """See `RedisStore.shut_out`: the checkpoint does that."""

    def settle(self) -> None:
        """See `RedisStore.settle`."""
        settle(self._redis, self.where, self._stopping)

    def remove(self, *keys: str) -> None:
        """See `RedisStore.remove`."""
        self._guarded("UNLINK", keys)

    def fenced(self) -> NoReturn:
        """Raises what it means that the stored checkpoint is not the one that is known."""
        text = self._text(self._checkpoint_key)
        if not text or is_begun(text):  # perhaps another process has looked at it since
            raise SinkUnavailable("this Redis came back empty; it is filled from a snapshot", where=self.where)
        if unstamped(text)[0] > self.generation.number:
            raise SinkSwapped("a rebuilt copy has taken the rows' place", where=self.where)
        if text in self._unanswered:
            what = "what this Redis was sent when it did not answer has come to it late"
            raise SinkUnavailable(what, where=self.where)
        if own := self._parsed(self._stored).token:
            require_not_above(self._parsed(text), own, self.where)  # nobody stores a text over one with a higher token
            what = "this Redis has lost writes that it had acknowledged, and the part is taken over again"
            raise SinkUnavailable(what, where=self.where)
        if is_behind(self._parsed(text).checkpoint, self._parsed(self._stored).checkpoint):
            what = "this Redis has lost writes that it had acknowledged; they are made again"
            raise SinkUnavailable(what, where=self.where)
        raise self.another_writer()

    def _parsed(self, text: str) -> Stored:
        with self._legible():
            return Stored(None, None) if is_begun(text) else parse_stored(unstamped(text)[1])

    @contextmanager
    def _legible(self) -> Iterator[None]:
        """Raises SinkRefused: what is stored is no checkpoint."""
        try:
            yield
        except InvalidText as error:
            raise SinkRefused(error.what, where=self.where, mend=error.mend) from None

    # Reading

    def pipeline(self) -> Pipeline:
        """See `RedisStore.pipeline`."""
        return self._redis.pipeline(transaction=False)

    def scan(self, pattern: str) -> Iterator[str]:
        """See `RedisStore.scan`."""
        return self.rows_among(self._scanned(pattern))

    def scan_all(self, pattern: str) -> Iterator[str]:
        """Keys, the sink's own among them."""
        return texts_among(self._scanned(pattern))

    def _scanned(self, pattern: str) -> Iterator[bytes]:
        yield from self._redis.scan_iter(match=pattern, count=1000)

    def _text(self, key: str) -> str:
        """That of a key; empty if it is not there."""
        return (self._get(key) or b"").decode(errors="replace")

    def _get(self, key: str) -> bytes | None:
        return cast("bytes | None", self._redis.get(key))


def settle(server: redis.Redis, where: str, stopping: Callable[[], bool]) -> None:
    """Waits until what is written is synced, where a server syncs its append-only file once a second.

    One that syncs with each command has done so already; one that leaves it to its machine, or has no such file, was
    never asked to keep what is written.

    Raises:
        SinkUnavailable: it does not get to it, or nobody waits for it any more (`SinkPlace.stopping`).
    """
    if not server.info("persistence").get("aof_enabled"):
        return
    if server.config_get("appendfsync").get("appendfsync") != "everysec":
        return
    began = time.monotonic()
    while True:
        time.sleep(_SYNC_SECONDS / 10)
        waited = time.monotonic() - began
        if waited >= _SYNC_SECONDS and not server.info("persistence").get("aof_pending_bio_fsync"):
            return
        if stopping() or waited >= _LONGEST_SYNC_SECONDS:
            raise SinkUnavailable("Redis does not get to sync its append-only file", where=where)
