"""A Redis sink rebuilt among faults: killed at each command, other writers, a pointer moved by hand, a lost server."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import pytest
import redis
from redis.connection import AbstractConnection

from support.model_source import ITEMS, ModelSource, insert, update
from support.rebuild_rig import config_for, differing, dropped, filled, rebuilt
from support.running_consumer import RunningConsumer, consumer, equal, followed
from support.scripted_relay import ScriptedRelay
from support.sink_writing import MARKS, following, windows
from support.sinks_under_test import SinkUnderTest, redis_under_test
from support.waiting import wait_for
from walbus.consumers.checkpoint import Checkpoint, Following, Marks, Point, last_done_of
from walbus.consumers.partitions import own_place
from walbus.consumers.rebuilding import discard
from walbus.consumers.sinks import open_copies, redis_copy, redis_server
from walbus.consumers.sinks.copies import SinkSwapped
from walbus.consumers.sinks.redis_copy import HOLD_MILLISECONDS, RedisCopy
from walbus.consumers.steps import Sweep
from walbus.errors import ConfigError, SinkRefused, SinkUnavailable
from walbus.position import Position

pytestmark = pytest.mark.one_version

POINTER = "items:live"
FIRST, SECOND = "walbus:test:rows:1:", "walbus:test:rows:2:"


@pytest.fixture
def under_test(redis_url: str, tmp_path: Path) -> SinkUnderTest:
    return redis_under_test(tmp_path, redis_url, "hash", pointer=POINTER)


def goes_on(under_test: SinkUnderTest, source: ModelSource, id: int, name: str) -> None:
    """The consumer, which writes one more change behind its checkpoint."""
    with closing(under_test.open()) as sink:
        checkpoint = sink.checkpoint()
        assert isinstance(checkpoint, Following)
        source.commit([update(ITEMS, id, name=name)])
        sink.write(windows(source, last_done_of(checkpoint)), checkpoint.marks)
        sink.commit(replace(checkpoint, point=Point(source.end, source.last_seq)))


# Killed


class KilledError(BaseException):
    """The process is no more."""


class Killing:
    """From a certain command on, this thread reaches no Redis any more: as if its process were killed there.

    Args:
        at: the number of the command, from 1.
        behind: whether the server still does this command, whose answer nobody reads.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int, *, behind: bool) -> None:
        self.killed = False
        self._count, self._at, self._behind = 0, at, behind
        self._thread, self._send = threading.get_ident(), AbstractConnection.send_packed_command
        self._monkeypatch = monkeypatch

    def __enter__(self) -> Self:
        sends, killing = self._send, self

        def send(connection: AbstractConnection, command: Any, *rest: Any, **options: Any) -> None:
            if threading.get_ident() != killing._thread:
                return sends(connection, command, *rest, **options)
            killing._count += 1
            if killing._count >= killing._at:
                if killing._behind and not killing.killed:
                    sends(connection, command, *rest, **options)
                    assert connection.can_read(timeout=60), "it was done"
                killing.killed = True
                raise KilledError
            return sends(connection, command, *rest, **options)

        self._monkeypatch.setattr(AbstractConnection, "send_packed_command", send)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        self._monkeypatch.undo()
        return kind is KilledError


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("behind", [False, True], ids=["before", "behind"])
def test_wherever_it_is_killed_readers_have_every_row_and_the_next_one_comes_to_its_end(
    behind: bool,
    under_test: SinkUnderTest,
    relay: ScriptedRelay,
    source: ModelSource,
    client: redis.Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    filled(relay, under_test, source)
    commands: list[int] = []
    acts: list[Callable[[], object]] = [lambda: rebuilt(relay, under_test), lambda: dropped(under_test)]
    for act in acts:
        for at in range(1, 1_000):
            with Killing(monkeypatch, at, behind=behind) as killing:
                act()
            assert under_test.rows() == source.rows(), f"killed at command {at}"
            goes_on(under_test, source, 20 + at % 100, f"behind {at}")
            assert under_test.rows() == source.rows(), f"killed at command {at}, and gone on"
            if not killing.killed:
                commands.append(at)
                break
            if client.exists("walbus:test:kept"):
                if act is acts[0]:
                    assert dropped(under_test)
                continue
            rebuilt(relay, under_test)
            if act is acts[0]:
                assert dropped(under_test)
    print(f"commands of a rebuild and of a drop: {commands}")
    assert commands[0] > 20
    assert commands[1] > 3
    generation = client.get("walbus:test:checkpoint").partition(" ")[0]
    there = (f"walbus:test:{generation}:", f"walbus:test:rows:{generation}:")
    others = {key for key in client.scan_iter() if not key.startswith(there)}
    assert others == {POINTER, "walbus:test:checkpoint"}, "nothing is left of the ones that were killed"
    assert differing(relay, under_test) == [0]


# Who writes


@pytest.mark.parametrize("begun", [True, False])
def test_who_writes_the_old_rows_yet_writes_nothing_and_goes_on_with_the_copy(
    begun: bool, under_test: SinkUnderTest, relay: ScriptedRelay, source: ModelSource, client: redis.Redis
) -> None:
    """Another process, that slept from before the swap, or from before there was any checkpoint."""
    early = None if begun else under_test.open()
    filled(relay, under_test, source)
    with closing(early or under_test.open()) as sleeper:
        rebuilt(relay, under_test)
        done = source.end
        source.commit([update(ITEMS, 3, name="behind the swap")])
        with pytest.raises(SinkSwapped):  # one that knows no layouts yet as soon as it notes one
            sleeper.write(windows(source, done), MARKS)
            sleeper.commit(following(source))
        assert client.hget(f"{ITEMS}:3", "name") == "n3"
        assert dropped(under_test)
        with pytest.raises(SinkSwapped):
            sleeper.commit(following(source))
        assert not client.exists(f"{ITEMS}:3")
        sleeper.rollback()
        assert last_done_of(sleeper.checkpoint()) == done
        sleeper.write(windows(source, done), MARKS)
        sleeper.commit(following(source))
    assert under_test.rows() == source.rows()


def test_a_writer_is_held_back_until_the_copy_lets_go_and_has_lost_nothing(
    under_test: SinkUnderTest,
    relay: ScriptedRelay,
    source: ModelSource,
    client: redis.Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What holds it back would go by itself in the time that a busy machine takes to look; here it stays."""
    monkeypatch.setattr(redis_copy, "HOLD_MILLISECONDS", 60_000)
    monkeypatch.setattr(redis_server, "_LONGEST_HOLD_SECONDS", 600.0)
    filled(relay, under_test, source)
    copies = open_copies("redis", under_test.options, under_test.place)
    with closing(copies), closing(copies.beside()) as copy, consumer(relay, under_test) as running:
        wait_for(lambda: running.status().get("phase") == "online")
        copy.hold()
        with client.monitor() as monitor:
            position = source.commit([update(ITEMS, 1, name="held back")])
            for _ in range(2):  # it comes, is held back, and comes again
                while monitor.next_command()["command"].split(" ")[0] != "EXEC":
                    pass
        assert last_done_of(copies.live()) < position
        assert under_test.rows()["1"]["name"] == "n1"
        copy.rollback()
        equal(under_test, relay)
        wait_for(lambda: running.status().get("last_done") == str(position))


def test_a_consumer_that_is_held_back_stops_at_once(
    under_test: SinkUnderTest,
    relay: ScriptedRelay,
    source: ModelSource,
    client: redis.Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What holds it back would here be waited for longer than the test takes."""
    filled(relay, under_test, source)
    monkeypatch.setattr(redis_server, "_LONGEST_HOLD_SECONDS", 600.0)
    running = RunningConsumer(relay, under_test.name, under_test.options, under_test.place.folder)
    wait_for(lambda: running.status().get("phase") == "online")
    client.set("walbus:test:held", 1)
    with client.monitor() as monitor:
        source.commit([update(ITEMS, 1, name="held back")])
        while monitor.next_command()["command"].split(" ")[0] != "EXEC":
            pass
    assert running.stop() is None
    assert under_test.rows()["1"]["name"] == "n1"


def test_what_holds_a_writer_back_goes_by_itself(
    under_test: SinkUnderTest, relay: ScriptedRelay, source: ModelSource, client: redis.Redis
) -> None:
    filled(relay, under_test, source)
    copies = open_copies("redis", under_test.options, under_test.place)
    with closing(copies), closing(copies.beside()) as copy:
        copy.hold()
        assert 0 < client.pttl("walbus:test:held") <= HOLD_MILLISECONDS
        goes_on(under_test, source, 1, "by itself")
        with pytest.raises(SinkUnavailable, match="are newer than the copy's"):
            copy.swap(following(source))
    assert under_test.rows() == source.rows()


def test_a_transaction_shown_in_parts_is_not_taken_back_by_a_swap(
    under_test: SinkUnderTest, relay: ScriptedRelay, source: ModelSource, client: redis.Redis
) -> None:
    """Rows that are shown before their checkpoint are newer than a copy as of that checkpoint's position."""
    filled(relay, under_test, source)
    done, before = source.end, following(source)
    copies = open_copies("redis", under_test.options, under_test.place)
    with closing(under_test.open()) as live, closing(copies), closing(copies.beside()) as copy:
        copy.write(windows(source), MARKS)
        copy.commit(before)
        checkpoint: Checkpoint | None = live.checkpoint()
        source.commit([update(ITEMS, 0, name="5"), insert(ITEMS, 400)])
        live.write(windows(source, done), MARKS)
        live.sweep(Sweep("public.none", MARKS, 0, before))  # sends what is gathered, without a checkpoint
        assert client.hget(f"{ITEMS}:0", "name") == "5"
        assert copy.hold() == checkpoint
        with pytest.raises(SinkUnavailable, match="are newer than the copy's"):
            copy.swap(before)
        copy.rollback()
        copy.checkpoint()
        copy.write(windows(source, done), MARKS)
        copy.hold()
        copy.swap(following(source))
    assert under_test.rows() == source.rows()
    assert client.get(POINTER) == FIRST


def test_two_rebuilds_at_once_do_not_mix(
    under_test: SinkUnderTest, relay: ScriptedRelay, source: ModelSource, client: redis.Redis
) -> None:
    filled(relay, under_test, source)
    copies = open_copies("redis", under_test.options, under_test.place)
    with closing(copies), closing(copies.beside()) as one, closing(copies.beside()) as two:
        one.write(windows(source), MARKS)
        one.commit(following(source))
        with pytest.raises(SinkRefused, match="another consumer writes this Redis"):  # as soon as it notes a layout
            two.write(windows(source), MARKS)
            two.commit(following(source))
        one.hold()
        one.swap(following(source))
        with pytest.raises(SinkRefused, match="has taken the rows' place already"):
            two.checkpoint()
    assert under_test.rows() == source.rows()


def test_a_rebuild_that_had_committed_nothing_when_another_one_swapped_is_told_so(
    under_test: SinkUnderTest, relay: ScriptedRelay, source: ModelSource, client: redis.Redis
) -> None:
    """The copy's checkpoint was deleted by the swap: it is what such a one expects, and it went on in the live rows."""
    filled(relay, under_test, source)
    copies = open_copies("redis", under_test.options, under_test.place)
    with closing(copies), closing(copies.beside()) as late, closing(copies.beside()) as one:
        late.write(windows(source), MARKS)
        one.write(windows(source), MARKS)
        one.commit(following(source))
        one.hold()
        one.swap(following(source))
        goes_on(under_test, source, 3, "behind the swap")
        there = {key: client.hgetall(key) for key in client.scan_iter(match=f"{FIRST}*")}
        with pytest.raises(SinkSwapped, match="another process has had this copy take"):
            late.commit(following(source))
        assert {key: client.hgetall(key) for key in client.scan_iter(match=f"{FIRST}*")} == there
        late.rollback()
        with pytest.raises(SinkRefused, match="has taken the rows' place already"):
            late.checkpoint()
    assert not client.exists("walbus:test:new")
    assert dropped(under_test)
    rebuilt(relay, under_test)
    assert under_test.rows() == source.rows()


# A copy is discarded beside its rebuild


def test_a_rebuild_whose_copy_is_discarded_ends_and_says_so(
    under_test: SinkUnderTest, relay: ScriptedRelay, source: ModelSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(relay, under_test, source)
    furnish = RedisCopy.furnish

    def discarding(copy: RedisCopy) -> None:
        furnish(copy)
        assert discard("test", config_for(under_test), under_test.place.folder)

    monkeypatch.setattr(RedisCopy, "furnish", discarding)
    with pytest.raises(SinkRefused, match="this copy is gone: somebody discarded it"):
        rebuilt(relay, under_test)
    monkeypatch.undo()
    assert under_test.rows() == source.rows()
    rebuilt(relay, under_test)
    assert under_test.rows() == source.rows()


def test_no_row_is_missing_of_a_copy_that_was_discarded_before_its_first_checkpoint(
    under_test: SinkUnderTest, relay: ScriptedRelay, source: ModelSource, client: redis.Redis
) -> None:
    """Of what was sent before, nothing is left; a checkpoint behind that would have told that it was there."""
    filled(relay, under_test, source)
    copies = open_copies("redis", under_test.options, under_test.place)
    with closing(copies), closing(copies.beside()) as copy:
        copy.write(windows(source), MARKS)
        copy.write([], Marks(2, 1))  # rows of one mark are sent before those of another
        assert len(set(client.scan_iter(match=f"{FIRST}*"))) == len(source.rows())
        assert discard("test", config_for(under_test), under_test.place.folder)
        with pytest.raises(SinkUnavailable):
            copy.commit(following(source))
        copy.rollback()
        assert copy.checkpoint() is None
        copy.write(windows(source), MARKS)
        copy.commit(following(source))
        copy.hold()
        copy.swap(following(source))
    assert under_test.rows() == source.rows()


# A pointer moved by hand


@pytest.mark.parametrize("set_to", [None, "", SECOND])
def test_a_pointer_that_somebody_moved_is_set_back_before_anything_more_is_written(
    set_to: str | None, under_test: SinkUnderTest, relay: ScriptedRelay, source: ModelSource, client: redis.Redis
) -> None:
    filled(relay, under_test, source)
    rebuilt(relay, under_test)
    with consumer(relay, under_test) as running:
        followed(running, under_test, relay, update(ITEMS, 1, name="a"))
        client.delete(POINTER) if set_to is None else client.set(POINTER, set_to)
        followed(running, under_test, relay, update(ITEMS, 1, name="b"))
        assert client.get(POINTER) == FIRST
    client.set(POINTER, "")
    with closing(under_test.open()):
        assert client.get(POINTER) == FIRST, "at the start too"


@pytest.mark.parametrize("kind", ["list", "text", "rows of another consumer"])
def test_a_pointer_that_holds_something_else_stops_the_consumer_and_is_left(
    kind: str, under_test: SinkUnderTest, relay: ScriptedRelay, source: ModelSource, client: redis.Redis
) -> None:
    def put() -> None:
        client.delete(POINTER)
        if kind == "list":
            client.rpush(POINTER, "x")
        else:
            client.set(POINTER, "secret" if kind == "text" else "walbus:other:rows:1:")

    told = rf"the key {POINTER}, which is to name.*delete that key, or name another"
    put()
    with pytest.raises(SinkRefused, match=told) as refused:
        under_test.open()
    assert "secret" not in str(refused.value)
    client.delete(POINTER)
    filled(relay, under_test, source)
    copies = open_copies("redis", under_test.options, under_test.place)
    with closing(copies), closing(copies.beside()) as copy:
        copy.write(windows(source), MARKS)
        copy.commit(following(source))
        copy.hold()
        put()
        with pytest.raises(SinkRefused, match=told):
            copy.swap(following(source))
    assert client.get("walbus:test:checkpoint").startswith("{"), "nothing was swapped"
    client.delete(POINTER)
    running = RunningConsumer(relay, "redis", under_test.options, under_test.place.folder)
    wait_for(lambda: running.status().get("phase") == "online")
    put()
    source.commit([update(ITEMS, 1, name="x")])
    error = running.ended()
    assert isinstance(error, SinkRefused)
    assert re.search(told, str(error))
    assert client.type(POINTER) == ("list" if kind == "list" else "string")
    assert client.hget(f"{ITEMS}:1", "name") == "n1", "nothing was written that nobody reads"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"pointer": "walbus:test:checkpoint"}, "a pointer is a key of your own"),
        ({"pointer": ""}, "a pointer is a key of your own"),
        ({"pointer": f"{ITEMS}:live"}, rf"a row of {ITEMS} may lie under this key.*name another"),
        ({"pointer": POINTER, "invalidate": "delete"}, "leave out format, values, ttl and pointer"),
    ],
)
def test_a_pointer_that_cannot_be_one_is_refused(
    options: dict[str, Any], told: str, redis_url: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=told):
        redis_under_test(tmp_path, redis_url, "hash", **options).open()


def test_parts_have_pointers_of_their_own() -> None:
    options = {"key": "{partition}:{table}:{key}", "pointer": "items:live"}
    with pytest.raises(ConfigError, match=r"all parts would have one.*key consumer\.test\.pointer.*\{partition\}"):
        own_place("redis", options, "1/2", "test")
    placed = own_place("redis", {**options, "pointer": "items:{partition}"}, "1/2", "test")
    assert placed["pointer"] == "items:1-of-2"


# Servers that lose keys


def test_a_redis_that_evicts_is_refused_before_anything_is_read(
    under_test: SinkUnderTest, relay: ScriptedRelay, source: ModelSource, client: redis.Redis
) -> None:
    filled(relay, under_test, source)
    client.config_set("maxmemory-policy", "allkeys-lru")
    try:
        with pytest.raises(SinkRefused, match="may evict keys"):
            rebuilt(relay, under_test)
    finally:
        client.config_set("maxmemory-policy", "noeviction")
    assert not client.exists("walbus:test:new")
    assert under_test.rows() == source.rows()


@pytest.mark.parametrize("with_consumer", [True, False])
def test_a_redis_that_comes_back_empty_in_the_middle_is_filled_and_swapped(
    with_consumer: bool, under_test: SinkUnderTest, relay: ScriptedRelay, source: ModelSource, client: redis.Redis
) -> None:
    filled(relay, under_test, source)
    relay.seeding = True  # so the rebuild waits in the middle
    done: list[Position] = []
    rebuilding = threading.Thread(target=lambda: done.append(rebuilt(relay, under_test)))
    asked = len(relay.asked("/v1/snapshot"))
    rebuilding.start()
    try:
        wait_for(lambda: len(relay.asked("/v1/snapshot")) > asked, what="it reads")
        client.flushall()
        client.script_flush()
    finally:
        relay.seeding = False
    running = RunningConsumer(relay, "redis", under_test.options, under_test.place.folder) if with_consumer else None
    try:
        source.commit([update(ITEMS, 1, name="came back")])
        rebuilding.join(120)
    finally:
        error = running.stop() if running else None
    assert error is None
    assert len(done) == 1
    with consumer(relay, under_test):
        equal(under_test, relay)
    assert client.get(POINTER) == FIRST
    assert differing(relay, under_test) == [0]


def test_a_lost_checkpoint_is_filled_where_readers_look(
    under_test: SinkUnderTest, relay: ScriptedRelay, source: ModelSource, client: redis.Redis
) -> None:
    filled(relay, under_test, source)
    rebuilt(relay, under_test)
    client.delete("walbus:test:checkpoint")
    with consumer(relay, under_test) as running:
        followed(running, under_test, relay, update(ITEMS, 1, name="read again"))
    assert client.get(POINTER) == FIRST
    assert client.hget(f"{FIRST}{ITEMS}:1", "name") == "read again"
