"""`walbus rebuild` of a Redis sink: a next generation of rows, a pointer to it, and readers who follow the pointer."""

from __future__ import annotations

import re
from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis

from support.model_source import ITEMS, ModelSource, delete, insert, items_layout, truncate, update
from support.rebuild_rig import (
    KEPT,
    Load,
    Looks,
    config_for,
    config_of,
    differing,
    dropped,
    filled,
    looking_at,
    rebuilt,
)
from support.running_consumer import consumer, equal, followed
from support.scripted_relay import ScriptedRelay
from support.seed import announced_seed
from support.sink_writing import MARKS, following, windows
from support.sinks_under_test import SinkUnderTest, redis_under_test
from support.tampering import hand_of
from support.waiting import wait_for
from support.walbus_command import walbus
from walbus.consumers.checkpoint import Following, Point
from walbus.consumers.rebuilding import discard
from walbus.consumers.resetting import read_again
from walbus.consumers.sinks import open_copies
from walbus.consumers.sinks.redis_copy import BesideServer
from walbus.errors import SinkRefused, SinkUnavailable, UsageError
from walbus.records import Kind

pytestmark = pytest.mark.one_version

POINTER = "items:live"
FIRST, SECOND = "walbus:test:rows:1:", "walbus:test:rows:2:"
DOCS = Path(__file__).parents[2] / "docs" / "consumers.md"


@pytest.fixture(params=["hash", "json", "string", "expiring"])
def any_form(request: pytest.FixtureRequest, redis_url: str, tmp_path: Path) -> SinkUnderTest:
    return redis_under_test(tmp_path, redis_url, request.param, pointer=POINTER)


@pytest.fixture
def under_test(redis_url: str, tmp_path: Path) -> SinkUnderTest:
    return redis_under_test(tmp_path, redis_url, "hash", pointer=POINTER)


# Readers


def test_a_rebuild_under_load_swaps_with_no_moment_without_an_answer(
    any_form: SinkUnderTest, relay: ScriptedRelay, source: ModelSource, client: redis.Redis
) -> None:
    seed = announced_seed("a rebuild of Redis under load")
    filled(relay, any_form, source)
    hand_of(any_form).rename(7, "by hand")
    with Load(source, seed), Looks(looking_at(any_form)) as looks, consumer(relay, any_form) as running:
        swapped = rebuilt(relay, any_form)
        behind = looks.seen
        wait_for(lambda: looks.seen > behind, what="somebody looked behind the swap")
        wait_for(lambda: running.status().get("last_done") and source.end > swapped)
        assert client.get(POINTER) == FIRST
    with consumer(relay, any_form):
        source.commit([update(ITEMS, 1, name="goes on"), insert(ITEMS, 300)])
        equal(any_form, relay)
    assert differing(relay, any_form) == [0]
    assert dropped(any_form)
    assert not dropped(any_form)
    others = {key for key in client.scan_iter() if not key.startswith(("walbus:test:1:", FIRST))}
    assert others == {POINTER, "walbus:test:checkpoint"}, "nothing is left of what was replaced"
    with consumer(relay, any_form):
        source.commit([delete(ITEMS, 300)])
        equal(any_form, relay)
    assert differing(relay, any_form) == [0]


def test_readers_by_the_page_see_every_row_and_none_that_is_older(
    under_test: SinkUnderTest, relay: ScriptedRelay, source: ModelSource, client: redis.Redis
) -> None:
    """They ask for the pointer and for the row one after the other, while generations are swapped and dropped."""
    filled(relay, under_test, source)
    page: dict[str, Any] = {}
    (code,) = re.findall(r"```python\n(def row_of.*?)```", DOCS.read_text(), re.DOTALL)
    exec(code.replace("shop:live", POINTER), page)
    (script,) = re.findall(r"EVAL_RO \"(.*?)\"", DOCS.read_text())

    def look() -> tuple[int, int]:
        count = int(page["row_of"](client, f"{ITEMS}:0")["name"])
        again = client.eval(script, 1, POINTER, f"{ITEMS}:0")
        return KEPT if int(dict(zip(again[::2], again[1::2], strict=True))["name"]) >= count else 0, count

    with Load(source, 3), Looks(lambda: nullcontext(look)) as looks, consumer(relay, under_test):
        for count in range(1, 4):
            seen = looks.seen
            rebuilt(relay, under_test)
            assert dropped(under_test)
            wait_for(lambda seen=seen: looks.seen > seen, what=f"somebody looked behind swap {count}")  # type: ignore[misc]
    assert page["row_of"](client, f"{ITEMS}:no") == {}


def test_rows_of_a_table_that_the_bootstrap_has_no_more_are_carried_over(
    any_form: SinkUnderTest, relay: ScriptedRelay, source: ModelSource, client: redis.Redis
) -> None:
    gone = source.add_layout(items_layout("things", oid=16500)).table
    source.commit([insert(gone, n, f"n{n}", "large") for n in range(3)])
    filled(relay, any_form, source)
    relay.unlisted.add(gone)
    with consumer(relay, any_form):
        rebuilt(relay, any_form)
        assert dropped(any_form)
        assert any_form.rows(gone) == source.rows(gone)
        source.commit([update(gone, 1, name="n1 anew"), delete(gone, 2), insert(gone, 9)])
        wait_for(lambda: any_form.rows(gone) == source.rows(gone), what="their versions are theirs yet")
        source.commit([truncate(gone)])
        wait_for(lambda: any_form.rows(gone) == {})
    assert not list(client.scan_iter(match=f"{gone}:*"))


def test_rows_whose_carrying_over_breaks_off_are_carried_over_by_the_next_attempt(
    any_form: SinkUnderTest, relay: ScriptedRelay, source: ModelSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The layout told that they were all there before they were: the swap left them behind."""
    gone = source.add_layout(items_layout("things", oid=16500)).table
    source.commit([insert(gone, n, f"n{n}", "large") for n in range(3)])
    filled(relay, any_form, source)
    relay.unlisted.add(gone)
    carry, breaks = BesideServer.carry, [SinkUnavailable("Redis went away")]

    def breaking(server: BesideServer, *told: Any) -> None:
        if breaks:
            raise breaks.pop()
        carry(server, *told)

    monkeypatch.setattr(BesideServer, "carry", breaking)
    rebuilt(relay, any_form)
    assert not breaks and any_form.rows(gone) == source.rows(gone)


@pytest.mark.timeout(180)  # it never ended
@pytest.mark.parametrize("form", ["hash", "json", "string"])  # one that has expired is not missed
def test_rows_that_lack_a_value_are_carried_over_with_what_is_known_of_them(
    form: str,
    redis_url: str,
    tmp_path: Path,
    relay: ScriptedRelay,
    source: ModelSource,
    client: redis.Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nobody has the value: neither the live rows, nor the bootstrap, which the copy waited for."""
    under_test = redis_under_test(tmp_path, redis_url, form, pointer=POINTER)
    gone = source.add_layout(items_layout("things", oid=16500)).table
    source.commit([insert(gone, n, f"n{n}", "large") for n in range(3)])
    filled(relay, under_test, source)
    with closing(under_test.open()) as live:
        checkpoint = live.checkpoint()
        assert isinstance(checkpoint, Following)
        client.delete(f"{gone}:1")  # so there is nothing to take the value from
        source.commit([update(gone, 1, name="without its body")])
        live.write(windows(source, checkpoint.point.last_done), checkpoint.marks)
        live.commit(replace(checkpoint, point=Point(source.end, source.last_seq)))
        assert live.incomplete() == (gone,)
    relay.unlisted.add(gone)
    swap, breaks = BesideServer.swap, [SinkUnavailable("Redis went away")]

    def breaking(server: BesideServer, *told: Any) -> None:
        if breaks:
            raise breaks.pop()  # what was carried is known to the next attempt too
        swap(server, *told)

    monkeypatch.setattr(BesideServer, "swap", breaking)
    rebuilt(relay, under_test)
    assert not breaks
    assert client.smembers("walbus:test:1:lacking") == {f"{gone}\0{FIRST}{gone}:1"}
    with closing(under_test.open()) as live:
        assert live.incomplete() == (gone,)
        done = source.end
        source.commit([update(gone, 1, name="whole", body="again")])
        live.write(windows(source, done), checkpoint.marks)
        live.commit(replace(checkpoint, point=Point(source.end, source.last_seq)))
        assert live.incomplete() == ()
    assert under_test.rows(gone) == source.rows(gone)


# A sink that gets a pointer


def test_a_sink_without_a_pointer_gets_one_and_is_rebuilt(
    relay: ScriptedRelay, source: ModelSource, client: redis.Redis, redis_url: str, tmp_path: Path
) -> None:
    plain = redis_under_test(tmp_path, redis_url, "json")
    pointed = redis_under_test(tmp_path, redis_url, "json", pointer=POINTER)
    filled(relay, plain, source)
    with pytest.raises(UsageError, match=r'no pointer by which readers.*pointer = "test:live".*docs/consumers\.md'):
        rebuilt(relay, plain)
    assert not client.exists(POINTER)
    with consumer(relay, pointed) as running:
        followed(running, pointed, relay, update(ITEMS, 1, name="pointed"))
        assert client.get(POINTER) == ""
        rebuilt(relay, pointed)
        followed(running, pointed, relay, update(ITEMS, 1, name="swapped"))
    assert client.get(POINTER) == FIRST
    other: dict[str, Any]
    for other in ({}, {"pointer": "others:live"}):
        with pytest.raises(SinkRefused, match=rf'by the pointer {POINTER}.*write pointer = "{POINTER}"'):
            redis_under_test(tmp_path, redis_url, "json", **other).open()


def test_a_sink_that_holds_no_rows_is_refused(relay: ScriptedRelay, redis_url: str, tmp_path: Path) -> None:
    without = replace(redis_under_test(tmp_path, redis_url, "hash"), options={"url": redis_url, "invalidate": "delete"})
    with pytest.raises(UsageError, match="with invalidate the sink holds no rows"):
        rebuilt(relay, without)


# Other commands, and what others have


def test_what_was_replaced_is_dropped_and_nothing_of_others(
    any_form: SinkUnderTest, relay: ScriptedRelay, source: ModelSource, client: redis.Redis
) -> None:
    filled(relay, any_form, source)
    others = {f"{ITEMS}:999": "another's", "walbus:test2:checkpoint": "{}", "public.others:1": "x", "items:1": "y"}
    for key, value in others.items():
        client.set(key, value)
    for count in (1, 2):
        source.commit([insert(ITEMS, 1_000 * count + n) for n in range(700)])
        rebuilt(relay, any_form)
        assert client.exists(f"{'' if count == 1 else FIRST}{ITEMS}:1"), "it is kept"
        assert dropped(any_form)
    left = {key for key in client.scan_iter() if not key.startswith(("walbus:test:2:", SECOND))}
    assert left == {*others, POINTER, "walbus:test:checkpoint"}
    assert {key: client.get(key) for key in others} == others
    assert any_form.rows() == source.rows()


def test_an_unfinished_copy_is_discarded_whole(
    any_form: SinkUnderTest, relay: ScriptedRelay, source: ModelSource, client: redis.Redis
) -> None:
    filled(relay, any_form, source)
    before = set(client.scan_iter())
    with closing(open_copies("redis", any_form.options, any_form.place)) as copies:
        with closing(copies.beside()) as copy:
            copy.write(windows(source), MARKS)
            copy.commit(following(source))
            assert set(client.scan_iter()) > before
            assert discard("test", config_for(any_form), any_form.place.folder)
            with pytest.raises(SinkUnavailable):
                copy.commit(following(source))  # whoever fills it yet is fenced
        assert not copies.discard()
    client.delete("walbus:test:1:done")  # a count, which the fenced one began
    assert set(client.scan_iter()) == before


def test_a_copy_that_takes_the_rows_place_while_it_is_discarded_loses_none(
    under_test: SinkUnderTest, relay: ScriptedRelay, source: ModelSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(relay, under_test, source)
    with closing(open_copies("redis", under_test.options, under_test.place)) as copies:
        with closing(copies.beside()) as copy:
            copy.write(windows(source), MARKS)
            copy.commit(following(source))
            prepare = BesideServer.prepare

            def swapped_before(server: BesideServer, **options: Any) -> None:
                monkeypatch.undo()
                copy.hold()
                copy.swap(following(source))
                prepare(server, **options)

            monkeypatch.setattr(BesideServer, "prepare", swapped_before)
            with pytest.raises(SinkUnavailable, match="another process drops these rows"):
                copies.discard()
        assert copies.kept()
    assert under_test.rows() == source.rows()
    with consumer(relay, under_test) as running:
        followed(running, under_test, relay, update(ITEMS, 1, name="behind the swap"))


@pytest.mark.parametrize("record", ["new", "kept"])
def test_the_rows_that_are_read_are_never_dropped(
    under_test: SinkUnderTest, relay: ScriptedRelay, source: ModelSource, client: redis.Redis, record: str
) -> None:
    filled(relay, under_test, source)
    rebuilt(relay, under_test)
    client.set(f"walbus:test:{record}", 1)
    with (
        closing(open_copies("redis", under_test.options, under_test.place)) as copies,
        pytest.raises(SinkRefused, match="names the rows that are read"),
    ):
        copies.discard() if record == "new" else copies.drop_kept()
    assert under_test.rows() == source.rows()


def test_verify_and_reset_are_about_the_rows_that_the_pointer_names(
    under_test: SinkUnderTest, relay: ScriptedRelay, source: ModelSource, client: redis.Redis
) -> None:
    filled(relay, under_test, source)
    rebuilt(relay, under_test)
    client.hset(f"{ITEMS}:3", "name", "of the old rows")
    assert differing(relay, under_test) == [0]
    client.hset(f"{FIRST}{ITEMS}:3", "name", "by hand")
    assert differing(relay, under_test) == [1]
    read_again("test", config_for(under_test), under_test.place.folder)
    with consumer(relay, under_test) as running:
        followed(running, under_test, relay, update(ITEMS, 4, name="read again"))
    assert differing(relay, under_test) == [0]
    assert client.get(POINTER) == FIRST


def test_a_deleted_row_stays_deleted_in_the_copy(
    any_form: SinkUnderTest, source: ModelSource, client: redis.Redis
) -> None:
    """The copy's tombstones are its own: rows of an older state that come late find them."""
    source.commit([insert(ITEMS, 1), insert(ITEMS, 2)])
    late = [replace(window, kind=Kind.SNAPSHOT) for window in windows(source)]
    source.commit([delete(ITEMS, 1)])
    with closing(any_form.open()) as live:
        live.write(windows(source), MARKS)
        live.commit(following(source))
    copies = open_copies("redis", any_form.options, any_form.place)
    with closing(copies), closing(copies.beside()) as copy:
        copy.write(windows(source), MARKS)
        copy.commit(following(source))
        copy.hold()
        copy.swap(following(source))
    assert 0 < client.pttl(f"walbus:test:1:v:{FIRST}{ITEMS}:1") <= 3_600_000
    with closing(any_form.open()) as live:
        live.write(late, MARKS)
        live.commit(following(source))
    assert any_form.rows().keys() == {"2"}
    assert (client.pttl(f"{FIRST}{ITEMS}:2") > 0) == ("ttl" in any_form.options)


def test_the_command_says_what_it_did(
    under_test: SinkUnderTest, relay: ScriptedRelay, source: ModelSource, tmp_path: Path
) -> None:
    filled(relay, under_test, source)
    config = str(config_of(relay, under_test, tmp_path))
    done = walbus("rebuild", "test", "-c", config)
    assert done.stdout == f"test was swapped at {source.end}; `walbus rebuild test --drop-old` drops what it replaced\n"
    assert "is there yet" in walbus("rebuild", "test", "-c", config).one_line()
    assert walbus("rebuild", "test", "--drop-old", "-c", config).stdout == "test: what was replaced is dropped\n"
    assert walbus("rebuild", "test", "--discard", "-c", config).stdout == "test: there is no copy\n"
