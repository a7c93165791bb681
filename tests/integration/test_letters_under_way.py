"""Dead letters of a consumer that runs: what makes them void, what makes room for others, what a stop leaves."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from support.calling import Recorder, calling
from support.model_source import ITEMS, ModelSource, column, delete, insert, items_layout, truncate, update
from support.scripted_relay import ScriptedRelay
from support.waiting import wait_for
from walbus.consumers import DeadLetters, Delivered, Failures, RedisCheckpointStore, SqliteCheckpointStore
from walbus.errors import DeadLettersFull
from walbus.events import Change

pytestmark = pytest.mark.one_version

PARK = Failures("dead-letter", attempts=1)
PARK_AFTER_TWO = Failures("dead-letter", attempts=2, first_pause=0.01)


@pytest.fixture(params=["threads", "asyncio"])
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def poison(*ids: int):
    return lambda change: change.key["id"] in ids


def letters(folder: Path) -> DeadLetters:
    return DeadLetters(folder / "caller" / "dead-letters.sqlite")


def parked(folder: Path) -> list[tuple[object, str]]:
    with closing(letters(folder)) as store:
        return [(letter.change.key["id"], letter.error) for letter in store.letters()]


def park_some(relay: ScriptedRelay, folder: Path, way: str, *ids: int) -> None:
    """A run that parks those ids, and ends."""
    calls = Recorder(poison(*ids))
    with calling(way, relay.url, folder, calls, PARK) as run:
        wait_for(lambda: len(parked(folder)) == len(ids))
        wait_for(lambda: len(calls.durable) == len(relay.source.rows()) - len(ids))
    assert run.error is None


def out_of_the_log(source: ModelSource) -> None:
    """Whoever is behind reads a snapshot."""
    source.horizon = source.end
    source.trim(source.end)


def test_a_rollback_parks_no_change_that_was_not_refused(source, relay, tmp_path: Path, way: str) -> None:
    source.commit([insert(ITEMS, 1, "a"), update(ITEMS, 1, name="poison"), update(ITEMS, 1, name="c")])
    once = [True]

    def fail() -> None:
        if once:
            once.pop()
            raise RuntimeError("the window's end")

    calls = Recorder(lambda change: change.after["name"] == "poison")
    calls.raising["window_end"] = fail
    with calling(way, relay.url, tmp_path, calls, PARK_AFTER_TWO, start="earliest") as run:
        wait_for(lambda: len(calls.durable) == 1)
    assert run.error is None and not once
    assert [change.after["name"] for change in calls.durable] == ["a"]
    assert parked(tmp_path) == [(1, "ValueError"), (1, "behind")]


def test_a_snapshot_makes_letters_void_of_rows_that_it_lacks_and_of_no_others(
    source, relay, tmp_path: Path, way: str
) -> None:
    source.commit([insert(ITEMS, n) for n in (1, 2, 3, 4)])
    park_some(relay, tmp_path, way, 1, 3, 4)
    source.commit([delete(ITEMS, 1), update(ITEMS, 3, name="later")])
    out_of_the_log(source)
    calls = Recorder()
    with capture_logs() as logs, calling(way, relay.url, tmp_path, calls, PARK) as run:
        wait_for(lambda: "bootstrap_end" in calls.calls)
        wait_for(lambda: [change.key["id"] for change in calls.durable] == [2])
        assert parked(tmp_path) == [(3, "ValueError"), (4, "ValueError"), (3, "behind")]
        with closing(letters(tmp_path)) as store:
            store.retry()
            wait_for(lambda: not store.letters())
    assert run.error is None
    assert [(c.key["id"], c.after["name"]) for c in calls.durable[1:]] == [(3, "name"), (4, "name"), (3, "later")]
    (void,) = [log for log in logs if log["event"] == "consumer.letters_void"]
    assert (void["table"], void["letters"]) == (ITEMS, 1)


def test_a_snapshot_that_is_begun_anew_forgets_what_the_first_one_brought(source, relay, tmp_path: Path) -> None:
    source.commit([insert(ITEMS, 1), insert(ITEMS, 2)])
    park_some(relay, tmp_path, "threads", 1)
    source.commit([update(ITEMS, 1, name="later"), insert(ITEMS, 5), insert(ITEMS, 6)])
    out_of_the_log(source)

    def stop() -> None:
        calls.run.subscription.stop()

    calls = Recorder()
    calls.raising["sweep"] = stop
    with calling("threads", relay.url, tmp_path, calls, PARK) as run:
        run.ended()
    assert parked(tmp_path) == [(1, "ValueError"), (1, "behind")]
    source.commit([delete(ITEMS, 1)])
    other = ModelSource("log-b")
    other.commit([insert(ITEMS, 2)])
    other.trim(other.end)
    relay.source = other
    calls = Recorder()
    with calling("threads", relay.url, tmp_path, calls, PARK):
        wait_for(lambda: "bootstrap_end" in calls.calls)
    assert parked(tmp_path) == [], "letters of another log, whatever their seq, and of rows that came once and are gone"


def test_letters_of_a_table_are_known_by_its_new_name(source, relay, tmp_path: Path, way: str) -> None:
    source.commit([insert(ITEMS, 1), insert(ITEMS, 2)])
    park_some(relay, tmp_path, way, 1)
    source.commit([delete(ITEMS, 1)])
    source.add_layout(items_layout("articles", column("id", 23, "int4", in_key=True), column("name"), column("body")))
    source.commit([update("public.articles", 2, name="x")])
    out_of_the_log(source)
    calls = Recorder()
    with calling(way, relay.url, tmp_path, calls, PARK):
        wait_for(lambda: "bootstrap_end" in calls.calls)
        wait_for(lambda: not parked(tmp_path))


def test_a_full_store_has_room_again_when_what_is_in_it_is_tried_first(source, relay, tmp_path: Path, way: str) -> None:
    source.commit([insert(ITEMS, n) for n in (1, 2, 3, 4)])
    full = Failures("dead-letter", attempts=1, dead_letters=2)
    calls = Recorder(poison(1, 2, 3))
    with calling(way, relay.url, tmp_path, calls, full) as run:
        error = run.ended()
    assert isinstance(error, DeadLettersFull)
    assert [type(told) for told, _ in calls.errors].count(DeadLettersFull) == 1
    assert calls.calls[-2:] == ["rollback", "stop"]
    with closing(letters(tmp_path)) as store:
        assert store.retry() == 2
    calls = Recorder(poison(3))
    with calling(way, relay.url, tmp_path, calls, full) as run:
        wait_for(lambda: 4 in [change.key["id"] for change in calls.durable])
    assert run.error is None
    assert [change.key["id"] for change in calls.durable][:2] == [1, 2], "letters come before the log"
    assert parked(tmp_path) == [(3, "ValueError")]


def test_a_store_that_fills_up_tries_what_was_asked_for_before_it_gives_up(
    source, relay, tmp_path: Path, way: str
) -> None:
    source.commit([insert(ITEMS, n) for n in (1, 2, 3, 4)])
    mended: list[int] = []

    def refuse(change: Change) -> bool:
        if change.key["id"] == 3 and not mended:
            with closing(letters(tmp_path)) as operators:
                mended.append(operators.retry())
        return change.key["id"] == 3 or (change.key["id"] in (1, 2) and not mended)

    calls = Recorder(refuse)
    full = Failures("dead-letter", attempts=1, dead_letters=2)
    with calling(way, relay.url, tmp_path, calls, full) as run:
        wait_for(lambda: 4 in [change.key["id"] for change in calls.durable])
    assert run.error is None
    assert mended == [2]
    assert parked(tmp_path) == [(3, "ValueError")]
    assert sorted({change.key["id"] for change in calls.durable}) == [1, 2, 4]


def test_what_is_parked_already_needs_no_room(source, relay, tmp_path: Path, way: str) -> None:
    source.commit([insert(ITEMS, n) for n in (1, 2, 3)])
    full = Failures("dead-letter", attempts=1, dead_letters=2)

    def killed() -> None:
        raise KeyboardInterrupt

    for _ in range(2):
        calls = Recorder(poison(1, 2))
        calls.raising["window_end"] = killed
        with calling(way, relay.url, tmp_path, calls, full) as run:
            assert isinstance(run.ended(), KeyboardInterrupt)
    assert parked(tmp_path) == [(1, "ValueError"), (2, "ValueError")]


def test_a_stop_is_seen_while_letters_are_tried_and_the_rest_stays_asked_for(
    source, relay, tmp_path: Path, way: str
) -> None:
    source.commit([insert(ITEMS, n) for n in (1, 2, 3)])
    park_some(relay, tmp_path, way, 1, 2, 3)
    with closing(letters(tmp_path)) as store:
        store.retry()

    class Stopping(Recorder):
        def on_window_end(self, window: Delivered) -> None:
            super().on_window_end(window)
            if window.phase == "dead-letter":
                self.run.subscription.stop()

    calls = Stopping()
    with calling(way, relay.url, tmp_path, calls, PARK) as run:
        assert run.ended() is None
    assert [change.key["id"] for change in calls.durable] == [1]
    with closing(letters(tmp_path)) as store:
        assert [(letter.change.key["id"], letter.asked) for letter in store.letters()] == [(2, True), (3, True)]


def test_a_letter_that_is_interrupted_is_rolled_back_and_stays(source, relay, tmp_path: Path, way: str) -> None:
    source.commit([insert(ITEMS, 1)])
    park_some(relay, tmp_path, way, 1)
    with closing(letters(tmp_path)) as store:
        store.retry()

    calls = Recorder()
    calls.raising["window_end"] = killed
    with calling(way, relay.url, tmp_path, calls, PARK) as run:
        assert isinstance(run.ended(), KeyboardInterrupt)
    assert calls.calls == ["start", "window_start", "change", "window_end", "rollback", "stop"]
    assert parked(tmp_path) == [(1, "ValueError")]


def killed() -> None:
    raise KeyboardInterrupt


def behind_a_letter(source: ModelSource, relay: ScriptedRelay, folder: Path, way: str) -> None:
    """Row 1 is parked; then comes an update of it, and what makes both void."""
    source.commit([insert(ITEMS, 1), insert(ITEMS, 2)])
    park_some(relay, folder, way, 1)
    source.commit([update(ITEMS, 1, name="b"), truncate(ITEMS), insert(ITEMS, 3)])


def test_letters_that_a_truncate_makes_void_keep_their_order_until_it_is_committed(
    source, relay, tmp_path: Path, way: str
) -> None:
    """What came before the TRUNCATE comes again behind a crash, and still waits behind the letter."""
    behind_a_letter(source, relay, tmp_path, way)
    calls = Recorder()
    calls.raising["checkpoint"] = killed
    with calling(way, relay.url, tmp_path, calls, PARK) as run:
        assert isinstance(run.ended(), KeyboardInterrupt)
    assert parked(tmp_path) == [(1, "ValueError"), (1, "behind")]
    calls = Recorder()
    with calling(way, relay.url, tmp_path, calls, PARK) as run:
        wait_for(lambda: calls.durable and not parked(tmp_path))
    assert calls.ids == [3]


def test_a_rolled_back_truncate_leaves_the_letters_in_their_place(source, relay, tmp_path: Path, way: str) -> None:
    behind_a_letter(source, relay, tmp_path, way)
    once = [True]

    def fail() -> None:
        if once:
            once.pop()
            raise RuntimeError("the window's end")

    calls = Recorder()
    calls.raising["window_end"] = fail
    with calling(way, relay.url, tmp_path, calls, PARK_AFTER_TWO) as run:
        wait_for(lambda: calls.durable and not parked(tmp_path))
    assert run.error is None and not once
    assert calls.ids == [3]


def test_letters_go_with_a_truncate_that_was_committed_before_a_crash(
    source, relay, tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    behind_a_letter(source, relay, tmp_path, way)
    with monkeypatch.context() as patch:
        patch.setattr(DeadLetters, "committed", lambda _: killed())
        with calling(way, relay.url, tmp_path, Recorder(), PARK) as run:
            assert isinstance(run.ended(), KeyboardInterrupt)
    assert len(parked(tmp_path)) == 2
    calls = Recorder()
    with calling(way, relay.url, tmp_path, calls, PARK) as run:
        wait_for(lambda: not parked(tmp_path))
    assert calls.ids == []


def test_a_consumer_whose_checkpoint_is_elsewhere_is_told_that_its_letters_are_not(
    relay, tmp_path: Path, redis_url: str
) -> None:
    told = []
    sqlite, redis = SqliteCheckpointStore(tmp_path / "own.sqlite", "caller"), RedisCheckpointStore(redis_url, "caller")
    with closing(sqlite), closing(redis):
        for store, failures in ((sqlite, PARK), (redis, Failures("skip")), (redis, PARK)):
            calls = Recorder()
            run = calling("threads", relay.url, tmp_path, calls, failures, checkpoints=store)
            with capture_logs() as logs, run:
                wait_for(lambda calls=calls: calls.calls)
            told.append([log["file"] for log in logs if log["event"] == "consumer.letters_stay_here"])
    assert told == [[], [], [str(tmp_path / "caller" / "dead-letters.sqlite")]]
