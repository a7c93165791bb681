"""Time travel, seeking and pausing, by both clients, on a real relay over a log whose rows are real.

Transaction i (from 1) commits at LSN 16*i with rows 1600*i+1, …, and at BASE_TIME + 16*i microseconds.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import walbus
from support.calling import Recorder, calling
from support.model_source import ITEMS, ModelSource, insert
from support.relay_log import BASE_TIME, SOURCE, FileEngine
from support.scripted_relay import ScriptedRelay
from support.serving_relay import ServingRelay
from support.waiting import wait_for
from support.well_formed_log import fill_well, rows
from walbus.consumers import MemoryCheckpointStore
from walbus.errors import PositionTrimmed, PositionUnknown, UsageError
from walbus.events import Change
from walbus.position import Position
from walbus.records import Flag
from walbus.relay.writer import FileLogWriter

pytestmark = pytest.mark.one_version

COUNT = 30


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[FileLogWriter]:
    with closing(FileEngine(tmp_path / "log")) as engine, closing(engine.open_writer(SOURCE)) as writer:
        fill_well(writer, COUNT)
        yield writer


@pytest.fixture
def relay(writer: FileLogWriter, tmp_path: Path) -> Iterator[ServingRelay]:
    with ServingRelay(tmp_path / "log") as relay:
        yield relay


def commit(writer: FileLogWriter, number: int) -> None:
    schema = writer.schemas.get(1)
    writer.append(rows(16 * number, 1, 1 + number % 3, Flag.BEGIN | Flag.END, schema))
    writer.sync()


def time_of(number: int) -> datetime:
    return datetime.fromtimestamp(0, UTC) + timedelta(microseconds=BASE_TIME + 16 * number)


def read_all(way: str, url: str, folder: Path, **options: Any) -> list[Change]:
    """Every row up to `until`; each window is committed."""

    def threads() -> list[Change]:
        with walbus.connect(url, folder=folder) as bus:
            found: list[Change] = []
            for window in bus.subscribe(name="traveller", **options):
                found += [change for change in window if change.key]
                window.commit()
            return found

    async def tasks() -> list[Change]:
        async with walbus.aconnect(url, folder=folder) as bus:
            found: list[Change] = []
            async with asyncio.timeout(60):
                async for window in bus.subscribe(name="traveller", **options):
                    found += [change for change in window if change.key]
                    await window.commit()
            return found

    return threads() if way == "threads" else asyncio.run(tasks())


def transactions(changes: list[Change]) -> list[int]:
    """Numbers of the transactions that the changes are of, in order, each once."""
    return list(dict.fromkeys(change.position.commit_lsn // 16 for change in changes))


@pytest.fixture(params=["threads", "asyncio"])
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def every(relay: ServingRelay, tmp_path: Path) -> list[Change]:
    return read_all("threads", relay.url, tmp_path / "other", start="earliest", until="latest")


def test_a_reading_until_the_logs_end_ends_there_and_the_next_one_has_nothing(relay, tmp_path: Path, way: str) -> None:
    found = read_all(way, relay.url, tmp_path, start="earliest", until="latest")
    assert transactions(found) == list(range(1, COUNT + 1))
    assert read_all(way, relay.url, tmp_path, start="earliest", until="latest") == []


PLACES: list[tuple[Callable[[list[Change]], Any], Callable[[list[Change]], Any], int, int]] = [
    (lambda _: time_of(7), lambda _: time_of(12), 7, 12),
    (lambda _: time_of(7) - timedelta(microseconds=1), lambda _: time_of(12) + timedelta(microseconds=15), 7, 12),
    (lambda _: time_of(7).isoformat(), lambda _: "1:0/C0:1", 7, 12),
    (lambda _: Position(1, 16 * 7, 1), lambda _: Position(1, 16 * 12, 1), 7, 12),
    (lambda every: f"seq:{seq_of(every, 7)}", lambda every: f"seq:{seq_of(every, 12)}", 7, 12),
    (lambda _: "earliest", lambda _: Position(1, 16 * 10, 3), 1, 10),
    (lambda _: time_of(0), lambda _: time_of(COUNT + 9), 1, COUNT),
]


def seq_of(every: list[Change], number: int) -> int:
    return next(change.seq for change in every if change.position.commit_lsn == 16 * number)


@pytest.mark.parametrize(("begin", "end", "first", "last"), PLACES)
def test_a_reading_has_the_transactions_between_its_places_and_no_others(
    relay, every, tmp_path: Path, way: str, begin, end, first: int, last: int
) -> None:
    found = read_all(way, relay.url, tmp_path, from_=begin(every), until=end(every))
    assert transactions(found) == list(range(first, last + 1))
    assert found == [change for change in every if first <= change.position.commit_lsn // 16 <= last]


def test_a_position_inside_a_transaction_begins_there(relay, every, tmp_path: Path, way: str) -> None:
    for ordinal in (30, 41, 60):  # in the first piece, at the second one's begin, inside it
        place = Position(1, 16 * 10, ordinal)
        found = read_all(way, relay.url, tmp_path / str(ordinal), from_=place, until=place)
        assert [change.position.ordinal for change in found] == list(range(ordinal, 81))
        seq = next(change.seq for change in every if change.position == place)
        by_seq = read_all(way, relay.url, tmp_path / f"seq{ordinal}", from_=f"seq:{seq}", until=place)
        assert by_seq == found


def test_a_filter_does_not_move_the_places(relay, tmp_path: Path, way: str) -> None:
    with walbus.connect(relay.url, folder=tmp_path) as bus:
        none = bus.subscribe("public.others", name="none", from_=time_of(3), until="latest")
        assert list(none) == []
        assert none.ended


def test_a_checkpoint_wins_over_from(relay, tmp_path: Path, way: str) -> None:
    read_all(way, relay.url, tmp_path, from_=time_of(7), until=time_of(12))
    again = read_all(way, relay.url, tmp_path, from_=time_of(7), until=time_of(15))
    assert transactions(again) == [13, 14, 15]


def test_an_end_that_is_still_to_come_is_waited_for(relay, writer, tmp_path: Path, way: str) -> None:
    found: list[list[Change]] = []
    until = Position(1, 16 * 32, 1)
    reader = threading.Thread(
        target=lambda: found.append(read_all(way, relay.url, tmp_path, from_=time_of(29), until=until))
    )
    reader.start()
    for number in (31, 32):
        assert not found
        commit(writer, number)
    commit(writer, 33)
    reader.join(60)
    assert transactions(found[0]) == [29, 30, 31, 32]


def test_callbacks_end_there_with_everything_committed(relay, tmp_path: Path, way: str) -> None:
    calls = Recorder()
    with calling(way, relay.url, tmp_path, calls, from_=time_of(7), until=time_of(12)) as run:
        assert run.ended() is None
    assert transactions(calls.durable) == list(range(7, 13))
    assert calls.taken == []
    assert calls.calls[-1] == "stop"


def test_a_snapshot_until_now_is_a_copy_that_ends(tmp_path: Path, way: str) -> None:
    source = ModelSource()
    source.commit([insert(ITEMS, n) for n in range(5)])
    source.trim(source.end)
    with ScriptedRelay(source) as relay:
        found = read_all(way, relay.url, tmp_path, until="latest")
    assert [change.key["id"] for change in found] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("options", "where"),
    [
        ({"from_": "yesterday"}, "from_"),
        ({"from_": datetime(2026, 1, 1)}, "from_"),
        ({"from_": datetime.now(UTC) + timedelta(hours=1)}, "from_"),
        ({"until": "tomorrow"}, "until"),
        ({"until": "seq:x"}, "until"),
    ],
)
def test_a_place_that_is_none_is_refused_by_its_name(relay, tmp_path: Path, options, where: str) -> None:
    with walbus.connect(relay.url, folder=tmp_path) as bus, pytest.raises(UsageError) as refused:
        bus.subscribe(name="traveller", **options)
    assert refused.value.where == where


def test_a_place_that_the_log_does_not_have_is_refused_when_it_is_read(relay, tmp_path: Path, way: str) -> None:
    with pytest.raises(PositionUnknown, match="the log ends at"):
        read_all(way, relay.url, tmp_path, from_=Position(1, 16 * 99, 1), until="latest")
    source = ModelSource()
    for n in range(3):
        source.commit([insert(ITEMS, n)])
    source.trim(source.end)
    with ScriptedRelay(source) as scripted, pytest.raises(PositionTrimmed, match="snapshot"):
        read_all(way, scripted.url, tmp_path, from_=Position(1, 0x1000, 1), until="latest")


def test_a_relay_that_is_away_at_the_beginning_is_waited_for(tmp_path: Path) -> None:
    source = ModelSource()
    source.commit([insert(ITEMS, 1)])
    with ScriptedRelay(source) as relay, walbus.connect(relay.url, folder=tmp_path) as bus:
        relay.away = True
        subscription = bus.subscribe(name="traveller", from_="1:0/1100:1")
        assert subscription.next(0.1) is None
        relay.away = False
        found = wait_for(lambda: subscription.next(0.5))
        assert [change.key for change in found] == [{"id": 1}]


# Seek


def test_seeking_goes_back_and_on_and_is_where_a_restart_goes_on(relay, tmp_path: Path) -> None:
    with walbus.connect(relay.url, folder=tmp_path) as bus:
        subscription = bus.subscribe(name="seeker", start="earliest")
        windows = iter(subscription)
        first = [next(windows) for _ in range(4)]
        first[-1].commit()
        for place, number in (
            (time_of(20), 20),
            (Position(1, 16 * 5, 1), 5),
            ("seq:1", 1),
            (time_of(9).isoformat(), 9),
        ):
            held = next(windows)
            subscription.seek(place)
            held.commit()  # of before: it must not move the place
            found = next(window for window in windows if any(change.key for change in window))
            assert transactions(list(found)) == [number]
        subscription.seek("latest")
        assert subscription.next(0.3) is None
        subscription.seek(time_of(21))
        held = next(windows)
        subscription.seek(time_of(12))
        held.commit()
    with walbus.connect(relay.url, folder=tmp_path) as bus:
        assert next(iter(bus.subscribe(name="seeker"))).last == Position(1, 16 * 12, 1)


def test_a_place_that_cannot_be_sought_leaves_the_consumer_where_it_is(relay, tmp_path: Path) -> None:
    with walbus.connect(relay.url, folder=tmp_path) as bus:
        subscription = bus.subscribe(name="seeker", start="earliest")
        windows = iter(subscription)
        next(windows).commit()
        with pytest.raises(PositionUnknown):
            subscription.seek(Position(1, 16 * 99, 1))
        with pytest.raises(UsageError):
            subscription.seek("somewhere")
        found = next(window for window in windows if any(change.key for change in window))
        assert transactions(list(found))[0] in (1, 2)


def test_a_consumer_that_reads_its_snapshot_cannot_seek(tmp_path: Path) -> None:
    source = ModelSource()
    source.commit([insert(ITEMS, n) for n in range(9)])
    source.trim(source.end)
    with ScriptedRelay(source) as relay, walbus.connect(relay.url, folder=tmp_path) as bus:
        subscription = bus.subscribe(name="seeker")
        next(iter(subscription)).commit()
        with pytest.raises(UsageError, match="snapshot"):
            subscription.seek("latest")


def test_asyncio_seeks_and_rewinds_too(relay, tmp_path: Path) -> None:
    async def run() -> list[list[int]]:
        async with walbus.aconnect(relay.url, folder=tmp_path) as bus, asyncio.timeout(60):
            subscription = bus.subscribe(name="seeker", start="earliest")
            found = []
            await subscription.seek(time_of(20))
            found.append(transactions(list(await anext(subscription))))
            await subscription.rewind()
            found.append(transactions(list(await anext(subscription))))
            return found

    assert asyncio.run(run()) == [[20], [20]]


def test_asyncio_forgets_what_it_had_read_for_a_task_that_was_cancelled(relay, tmp_path: Path) -> None:
    async def run() -> list[int]:
        async with walbus.aconnect(relay.url, folder=tmp_path) as bus, asyncio.timeout(60):
            subscription = bus.subscribe(name="seeker", start="earliest")
            await anext(subscription)
            waiting = asyncio.ensure_future(anext(subscription))
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            await subscription.seek(time_of(20))
            return transactions(list(await anext(subscription)))

    assert asyncio.run(run()) == [20]


def test_batches_end_where_they_are_told(relay, tmp_path: Path) -> None:
    with walbus.connect(relay.url, folder=tmp_path) as bus:
        subscription = bus.subscribe(name="batches", from_=time_of(7), until=time_of(12))
        windows = [window for batches in subscription.batches(seconds=0.2) for window in batches.deliveries]
    found = [change for window in windows for change in window]
    assert transactions(found) == list(range(7, 13))


# Pause


def streams_of(relay: ScriptedRelay) -> list[str]:
    """Names of the threads that read a stream of a relay."""
    names = [thread.name for thread in threading.enumerate()]
    return [name for name in names if name.startswith(f"walbus-stream {relay.url}/")]


@pytest.mark.parametrize("phase", ["log", "snapshot"])
def test_a_pause_keeps_no_connection_and_loses_nothing(tmp_path: Path, phase: str) -> None:
    source = ModelSource()
    source.commit([insert(ITEMS, n) for n in range(6)], pieces=3)
    if phase == "snapshot":
        source.trim(source.end)
    with ScriptedRelay(source) as relay, walbus.connect(relay.url, folder=tmp_path) as bus:
        subscription = bus.subscribe(
            name="pauser", start="earliest" if phase == "log" else "snapshot", checkpoints=MemoryCheckpointStore()
        )
        found: list[Any] = []
        while len(found) < 2:
            window = subscription.next(60)
            found += [change.key["id"] for change in window if change.key]
        assert phase == "snapshot" or streams_of(relay)  # a snapshot is short, and its stream may have ended
        subscription.pause()
        assert subscription.next(0.2) is None
        assert (subscription.paused, subscription.waiting_for) == (True, "paused")
        assert not streams_of(relay), "the stream's thread has ended"
        source.commit([insert(ITEMS, 6)])
        assert subscription.next(0.2) is None
        subscription.resume()
        while len(found) < 7:
            window = subscription.next(60)
            assert window is not None
            found += [change.key["id"] for change in window if change.key]
        assert found == list(range(7))


def test_a_pause_ends_with_the_subscription(relay, tmp_path: Path, way: str) -> None:
    calls = Recorder()
    with calling(way, relay.url, tmp_path, calls) as run:
        wait_for(lambda: calls.durable)
        run.subscription.pause()
        wait_for(lambda: run.subscription.waiting_for == "paused")
        assert run.stop() is None
    assert calls.calls[-1] == "stop"
