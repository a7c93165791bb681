"""The sink's side of one Redis server: its keys, its scripts, what is stored there, and its errors.

walbus:NAME:checkpoint      the checkpoint, which is the fence too
walbus:NAME:layouts         the layouts of the tables whose rows are there
walbus:NAME:lacking         rows that lack a value
walbus:NAME:floor:G:TABLE   no change of the log with a seq at or below this applies (after a TRUNCATE), in the
                            log that generation G began
walbus:NAME:v:KEY           the version of a row that is a text, or of a deleted row
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias, cast

import redis
from redis.backoff import NoBackoff
from redis.client import Pipeline
from redis.retry import Retry

from walbus.consumers.checkpoint import Marks
from walbus.consumers.sinks.redis_rows import Entry, HashForm, JsonForm, KeyTemplate, StoredRow, arguments
from walbus.consumers.sinks.redis_scripts import APPLY, COMMIT, RAISE_FLOOR, VERSION_FIELD
from walbus.errors import SinkRefused, SinkUnavailable

_SCRIPT_ENTRIES = 500  # one script blocks the server; this many rows take it a few milliseconds
_TIMEOUT_SECONDS = 5.0
_AWAY = (
    redis.exceptions.OutOfMemoryError,
    redis.exceptions.ReadOnlyError,
    redis.exceptions.NoScriptError,  # restarted meanwhile
    redis.exceptions.MasterDownError,
    redis.exceptions.TryAgainError,
)
#: States of a server that pass, told by an error's first word: its disk is full, a script runs, replicas are missing.
_PASSING = frozenset({"MISCONF", "BUSY", "NOREPLICAS", "CLUSTERDOWN"})

_Answer: TypeAlias = Any  # redis-py types the answers of a pipeline so, whatever the command


class RedisServer:
    """One consumer's keys on one server. Every method may raise what `errors` translates.

    Args:
        url: of the server; its password goes nowhere else.
        prefix: of all keys but the rows' own.
        template: of the rows' keys.
        form: of the rows.
        tombstone_ms: how long a deleted row's version is kept.
    """

    def __init__(
        self, url: str, prefix: str, template: KeyTemplate, form: HashForm | JsonForm, tombstone_ms: int
    ) -> None:
        # A retry behind our back would meet a checkpoint that its own first attempt has moved.
        self._redis = redis.Redis.from_url(
            url, socket_timeout=_TIMEOUT_SECONDS, socket_connect_timeout=_TIMEOUT_SECONDS, retry=Retry(NoBackoff(), 0)
        )
        address = self._redis.connection_pool.connection_kwargs
        self.where = f"Redis at {address.get('host', address.get('path', ''))}:{address.get('port', '')}"
        self._prefix, self._template, self._form = prefix, template, form
        self._tombstone_ms = tombstone_ms
        self._stored = ""  # the checkpoint that the server has, as far as this process knows

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

    def begin(self) -> str:
        """Checks the server, loads the scripts, and gives the stored checkpoint's text; empty if there is none."""
        policy = self._redis.info("memory").get("maxmemory_policy", "noeviction")
        if policy != "noeviction":
            raise SinkRefused(
                f"this Redis may evict keys (maxmemory-policy {policy}), and rows would be missing",
                where=self.where,
                mend="set maxmemory-policy to noeviction, or use another Redis",
            )
        self._apply = self._redis.script_load(APPLY)
        self._raise_floor = self._redis.script_load(RAISE_FLOOR)
        self._set_checkpoint = self._redis.script_load(COMMIT)
        self._stored = (self._get(self._name("checkpoint")) or b"").decode()
        return self._stored

    def layouts(self) -> bytes:
        """The layouts' document."""
        return self._get(self._name("layouts")) or b"{}"

    def set_layouts(self, document: bytes) -> None:
        """Replaces the layouts' document."""
        self._redis.set(self._name("layouts"), document)

    def lacking(self) -> set[str]:
        """The rows that lack a value."""
        return {member.decode() for member in cast(set[bytes], self._redis.smembers(self._name("lacking")))}

    def add_lacking(self, member: str) -> None:
        """One more."""
        self._redis.sadd(self._name("lacking"), member)

    def remove_lacking(self, members: Sequence[str]) -> None:
        """Not any more."""
        self._redis.srem(self._name("lacking"), *members)

    # Writing

    def send(self, gathered: Sequence[tuple[str, Entry]], marks: Marks, checkpoint: str | None) -> None:
        """Writes of (table, entry) in one MULTI; with the checkpoint last, if one is given.

        Raises:
            SinkUnavailable: the server has lost its checkpoint, and so its rows.
            SinkRefused: another process has moved the checkpoint.
        """
        with self._redis.pipeline(transaction=True) as pipeline:
            for table, entries in _runs(gathered):
                self._send_run(pipeline, table, entries, marks)
            if checkpoint is not None:
                pipeline.evalsha(self._set_checkpoint, 1, self._name("checkpoint"), self._stored, checkpoint)
            if -1 in pipeline.execute():
                self._fenced()
        self._stored = self._stored if checkpoint is None else checkpoint

    def raise_floor(self, table: str, seq: int, marks: Marks) -> None:
        """From now on, no change of the table with a seq at or below this one applies."""
        keys = (self._name("checkpoint"), self._floor(table, marks))
        if self._redis.evalsha(self._raise_floor, 2, *keys, self._stored, seq) == -1:
            self._fenced()

    def forget(self, key: str) -> None:
        """Deletes a row whose table is called otherwise now."""
        self._redis.delete(key, self._name(f"v:{key}"))

    def _send_run(self, pipeline: Pipeline, table: str, entries: Sequence[Entry], marks: Marks) -> None:
        keys = [self._name("checkpoint"), self._floor(table, marks)]
        for entry in entries:
            keys += (entry.key, self._name(f"v:{entry.key}"))
        head = (self._stored, marks.log_generation, self._tombstone_ms)
        pipeline.evalsha(self._apply, len(keys), *keys, *head, *arguments(entries, marks.generation))

    def _fenced(self) -> None:
        if self._get(self._name("checkpoint")) is None:
            raise SinkUnavailable("this Redis came back empty; it is filled from a snapshot", where=self.where)
        raise SinkRefused(
            "another consumer writes this Redis under the same name",
            where=self.where,
            mend="let one process run the consumer, or give each its own name and key",
        )

    # Reading

    def rows(self, keys: Sequence[str], marks: Marks) -> list[StoredRow | None]:
        """Rows as they are stored, in one round trip; None where there is none of ours."""
        with self._redis.pipeline(transaction=False) as pipeline:
            for key in keys:
                if isinstance(self._form, HashForm):
                    pipeline.hgetall(key)
                else:
                    pipeline.get(key)
                    pipeline.get(self._name(f"v:{key}"))
            answers = pipeline.execute(raise_on_error=False)
        for answer in answers:
            if isinstance(answer, redis.RedisError) and not str(answer).startswith("WRONGTYPE"):
                raise answer
        if isinstance(self._form, HashForm):
            return [self._from_hash(fields, marks) for fields in answers]
        return [self._from_text(*pair, marks) for pair in zip(answers[::2], answers[1::2], strict=True)]

    def keys_of(self, table: str, marks: Marks) -> list[str]:
        """The keys of a table's rows: versions tell them from others' that look alike."""
        scan = self._redis.scan_iter(match=self._template.pattern(table), count=1000)
        found = [key for key in (name.decode() for name in scan) if not key.startswith(self._prefix)]
        ours: list[str] = []
        for start in range(0, len(found), _SCRIPT_ENTRIES):
            keys = found[start : start + _SCRIPT_ENTRIES]
            ours += [key for key, row in zip(keys, self.rows(keys, marks), strict=True) if row is not None]
        return ours

    def _from_hash(self, fields: _Answer, marks: Marks) -> StoredRow | None:
        if isinstance(fields, redis.RedisError):  # a key of another type
            return None
        version = fields.pop(VERSION_FIELD.encode(), None)
        return self._row(version, [part for pair in fields.items() for part in pair], marks) if version else None

    def _from_text(self, text: _Answer, version: bytes | None, marks: Marks) -> StoredRow | None:
        return self._row(version, [text], marks) if version and isinstance(text, bytes) else None

    def _row(self, version: bytes, parts: list[bytes], marks: Marks) -> StoredRow:
        seq, mark = map(int, version.split(b":"))
        return StoredRow(seq if mark >= marks.log_generation else -1, mark, self._form.columns(parts))

    def _get(self, key: str) -> bytes | None:
        return cast("bytes | None", self._redis.get(key))

    def _name(self, what: str) -> str:
        return self._prefix + what

    def _floor(self, table: str, marks: Marks) -> str:
        return self._name(f"floor:{marks.log_generation}:{table}")


def _runs(gathered: Sequence[tuple[str, Entry]]) -> Iterator[tuple[str, list[Entry]]]:
    """The writes by table, each in its order; rows of two tables never share a key."""
    by_table: dict[str, list[Entry]] = {}
    for table, entry in gathered:
        by_table.setdefault(table, []).append(entry)
    for table, entries in by_table.items():
        for start in range(0, len(entries), _SCRIPT_ENTRIES):
            yield table, entries[start : start + _SCRIPT_ENTRIES]
