"""The consumers that a relay knows: real relay, real clients, over real sockets."""

from __future__ import annotations

import asyncio
import concurrent.futures
import http.client
import json
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

import walbus
from support.relay_log import BASE_TIME, SOURCE, FileEngine, progress, table_schema, transaction
from support.serving_relay import ServingRelay
from support.waiting import wait_for
from walbus.consumers import ConsumerBehind, Subscription
from walbus.errors import RelayUnavailable, RequestRefused, UsageError
from walbus.position import Position
from walbus.relay.writer import FileLogWriter

pytestmark = pytest.mark.one_version

REPORT = {
    "session": "1", "begins": True, "log_id": "", "phase": "online", "last_done": None, "seq": 0, "generation": 0,
    "whole": True,
}  # fmt: skip


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[FileEngine]:
    with closing(FileEngine(tmp_path / "log")) as engine:
        yield engine


@pytest.fixture
def writer(engine: FileEngine) -> FileLogWriter:
    """Of a log whose tables are orders (schema 1) and items (schema 2), with ten transactions of orders."""
    writer = engine.open_writer(SOURCE)
    writer.schemas.register(table_schema("orders", 1))
    writer.schemas.register(table_schema("items", 2))
    commit(writer, *range(0x10, 0xB0, 0x10))
    return writer


@pytest.fixture
def relay(engine: FileEngine, writer: FileLogWriter) -> Iterator[ServingRelay]:
    with ServingRelay(engine.folder) as relay:
        yield relay


def commit(writer: FileLogWriter, *lsns: int, table: int = 1) -> None:
    for lsn in lsns:
        writer.append(transaction(lsn, 2, table=table, schema_id=table, time=int(time.time() * 1e6)))
    writer.sync()


def at(lsn: int, ordinal: int = 2) -> Position:
    return Position(1, lsn, ordinal)


class Reader:
    """A consumer in a thread that commits every window, or those alone that it is let."""

    def __init__(self, relay: ServingRelay, name: str, folder: Path, *tables: str) -> None:
        self.bus = walbus.connect(relay.url, folder=folder)
        self.subscription: Subscription = self.bus.subscribe(*tables, name=name, start="earliest")
        self.may_commit = threading.Event()
        self.may_commit.set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            window = self.subscription.next(0.1)
            if window is not None and self.may_commit.wait(60):
                window.commit()

    def close(self) -> None:
        self.may_commit.set()
        self._stop.set()
        self._thread.join(30)
        assert not self._thread.is_alive()
        self.bus.close()


def seen(relay: ServingRelay, name: str) -> dict:
    status, document = relay.json("GET", f"/v1/consumers/{name}")
    assert status == 200, document
    return document


def online_at(relay: ServingRelay, name: str, place: Position) -> dict | None:
    """What is known of a consumer, once a report has both: it may have come to a place before it finds nothing more."""
    document = seen(relay, name)
    return document if (document["last_done"], document["phase"]) == (str(place), "online") else None


def test_a_consumer_is_known_with_its_place_and_its_lag(relay, writer, tmp_path):
    with closing(Reader(relay, "cache", tmp_path, "public.orders")):
        document = wait_for(lambda: online_at(relay, "cache", at(0xA0)), what="its place, and that it waits for more")
        assert document["confirmed"]
        assert document["whole"]
        assert document["lag"] == {"changes": 0, "bytes": 0, "seconds": 0.0, "leaves_in_hours": None, "gone": False}
        assert (document["sent"], document["streams"]) == (str(at(0xA0)), 1)
        assert document["tables"] == ["public.orders"]
        assert document["address"] == "127.0.0.1"
        assert document["first_seen"] <= document["last_seen"] <= time.time()
        assert [one["name"] for one in relay.json("GET", "/v1/consumers")[1]["consumers"]] == ["cache"]
    wait_for(lambda: seen(relay, "cache")["streams"] == 0, what="the stream to end")
    assert seen(relay, "cache")["last_done"] == str(at(0xA0))


def test_a_stopped_consumers_last_place_is_told_before_it_goes(relay, writer, tmp_path, monkeypatch):
    monkeypatch.setattr("walbus.consumers.reporting._CLOSE_SECONDS", 60.0)  # however long the report takes
    with walbus.connect(relay.url, folder=tmp_path) as bus:
        for window in bus.subscribe(name="brief", start="earliest"):
            window.commit()
            if window.last == at(0xA0):
                break
    assert seen(relay, "brief")["last_done"] == str(at(0xA0))


def test_what_a_consumer_has_not_done_shows_as_lag_in_changes_bytes_and_seconds(relay, writer, engine, tmp_path):
    with closing(Reader(relay, "slow", tmp_path)) as reader:
        wait_for(lambda: seen(relay, "slow")["last_done"] == str(at(0xA0)), what="its place")
        reader.may_commit.clear()
        before = writer.bounds().bytes
        commit(writer, *range(0x100, 0x150, 0x10))
        lag = wait_for(lambda: seen(relay, "slow")["lag"], what="its lag")
        assert lag["changes"] == 10
        assert lag["bytes"] == writer.bounds().bytes - before
        assert 0 <= lag["seconds"] < 10
        assert 0.9 < lag["leaves_in_hours"] <= 168
        wait_for(lambda: seen(relay, "slow")["sent"] == str(at(0x140)), what="it to be sent what it has not done")
        reader.may_commit.set()
        wait_for(lambda: seen(relay, "slow")["lag"]["changes"] == 0, what="it to catch up")


def test_lags_are_looked_up_in_a_log_of_many_segments(engine, writer):
    lsns = range(0x1000, 0x1000 + 0x10 * 400, 0x10)
    for lsn in lsns:
        writer.append(transaction(lsn, 2, size=2000, time=BASE_TIME))
        if lsn % 0x100 == 0:
            writer.sync()
    writer.sync()
    assert len(engine.segments()) > 10
    with ServingRelay(engine.folder, retention_hours=1.0) as relay:
        lags = {}
        for i, lsn in enumerate((0, 0x1000, 0x1500, 0x2000, lsns[-1])):
            put(relay, f"c{i}", log_id=writer.bounds().log_id, last_done=str(at(lsn)), session=str(i))
            lags[lsn] = seen(relay, f"c{i}")["lag"]
    each = lags[0x1000]["bytes"] / 399
    assert each == pytest.approx(4216, abs=10)
    assert [round(lags[lsn]["bytes"] / each) for lsn in (0x1500, 0x2000, lsns[-1])] == [319, 143, 0]
    assert [lags[lsn]["changes"] for lsn in (0, 0x1000, 0x2000, lsns[-1])] == [820, 798, 286, 0]
    assert lags[0x1000]["seconds"] == pytest.approx(time.time() - BASE_TIME / 1e6, abs=60)
    assert (lags[0x1000]["leaves_in_hours"], lags[lsns[-1]]["leaves_in_hours"]) == (0.0, None)  # the commits are old


def put(relay: ServingRelay, name: str, expected: int = 200, **members: object) -> dict:
    status, document = relay.json("PUT", f"/v1/consumers/{name}", json.dumps(REPORT | members).encode())
    assert status == expected, document
    return document


def test_a_name_is_removed_and_unknown_then(relay):
    put(relay, "old")
    assert relay.json("DELETE", "/v1/consumers/old") == (200, {"forgotten": "old"})
    for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/wait?lsn=0/1")):
        status, document = relay.json(method, f"/v1/consumers/old{path}")
        assert status == 404
        assert "old" in document["error"]


def test_a_report_that_is_late_is_refused_with_what_counts(relay):
    put(relay, "cache", last_done="1:0/50:1")
    put(relay, "cache", last_done="1:0/60:1", begins=False)
    answer = put(relay, "cache", 409, last_done="1:0/55:1", begins=False)
    assert answer["last_done"] == "1:0/60:1"
    put(relay, "cache", 409, last_done="1:0/90:1", begins=False, session="2")
    put(relay, "cache", last_done="1:0/10:1", session="2")
    assert seen(relay, "cache")["last_done"] == "1:0/10:1"


# --- read your writes -------------------------------------------------------------------------------------------


def waiting(relay: ServingRelay, name: str, timeout: float = 60.0, **goal: object) -> concurrent.futures.Future:
    """`bus.wait_for` in a thread."""

    def work() -> Position | None:
        with walbus.connect(relay.url) as bus:
            return bus.wait_for(name, timeout=timeout, **goal).last_done

    pool = concurrent.futures.ThreadPoolExecutor(1)
    try:
        return pool.submit(work)
    finally:
        pool.shutdown(wait=False)


def no_report_of_its_own_accord(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on a consumer reports its place only where somebody waits for it."""
    monkeypatch.setattr("walbus.consumers.report_schedule.REPORT_SECONDS", 600.0)
    monkeypatch.setattr("walbus.consumers.subscription.IDLE_COMMIT_SECONDS", 600.0)


def test_whoever_waits_gets_his_answer_when_the_consumer_has_done_it(relay, writer, tmp_path, monkeypatch):
    with closing(Reader(relay, "cache", tmp_path)) as reader:
        wait_for(lambda: online_at(relay, "cache", at(0xA0)), what="its place")
        no_report_of_its_own_accord(monkeypatch)
        reader.may_commit.clear()
        commit(writer, 0x100)
        answer = waiting(relay, "cache", lsn=0x108)
        wait_for(lambda: seen(relay, "cache")["sent"] == str(at(0x100)), what="it to be sent")
        assert not answer.done()
        reader.may_commit.set()
        assert answer.result(60) == at(0x100)


def test_a_consumer_of_another_table_gets_there_without_a_window_and_at_once(relay, writer, tmp_path, monkeypatch):
    for module in ("feed", "streams"):
        monkeypatch.setattr(f"walbus.relay.{module}.HEARTBEAT_SECONDS", 8.0)
    with closing(Reader(relay, "cache", tmp_path, "public.orders")):
        wait_for(lambda: online_at(relay, "cache", at(0xA0)), what="its place")
        no_report_of_its_own_accord(monkeypatch)
        took = []
        for lsn in (0x100, 0x110, 0x120):
            commit(writer, lsn, table=2)
            begun = time.monotonic()
            assert waiting(relay, "cache", lsn=lsn + 8).result(60) == at(lsn)
            took.append(time.monotonic() - begun)
        assert sorted(took)[1] < 4  # heartbeats are eight seconds apart


def test_progress_of_an_idle_source_is_enough(relay, writer, tmp_path):
    with closing(Reader(relay, "cache", tmp_path)):
        wait_for(lambda: seen(relay, "cache")["last_done"] == str(at(0xA0)), what="its place")
        answer = waiting(relay, "cache", lsn="0/2000")
        with pytest.raises(concurrent.futures.TimeoutError):
            answer.result(0.3)
        writer.append(progress(0x2000))
        writer.sync()
        assert answer.result(60) == at(0x2000, 0)


def test_a_change_is_waited_for_by_its_position(relay, writer, tmp_path):
    with closing(Reader(relay, "cache", tmp_path)):
        wait_for(lambda: relay.json("GET", "/v1/consumers/cache")[0] == 200, what="it to be known")
        assert waiting(relay, "cache", position="1:0/A0:1").result(60) == at(0xA0)


def test_an_asyncio_client_waits_without_blocking_its_loop(relay, writer, tmp_path):
    async def scene() -> tuple[Position | None, int]:
        turns = 0
        async with walbus.aconnect(relay.url) as bus:
            asked = asyncio.ensure_future(bus.wait_for("cache", lsn=0x108))
            while not asked.done():
                await asyncio.sleep(0.01)
                turns += 1
                if turns == 10:
                    await asyncio.to_thread(commit, writer, 0x100)
            return (await asked).last_done, turns

    with closing(Reader(relay, "cache", tmp_path)):
        wait_for(lambda: seen(relay, "cache")["last_done"] == str(at(0xA0)), what="its place")
        last_done, turns = asyncio.run(scene())
        assert (last_done, turns >= 10) == (at(0x100), True)


def test_a_dead_consumer_that_had_done_it_is_enough_and_one_that_had_not_times_out(relay, writer, tmp_path):
    with closing(Reader(relay, "cache", tmp_path)):
        wait_for(lambda: seen(relay, "cache")["last_done"] == str(at(0xA0)), what="its place")
    assert waiting(relay, "cache", lsn=0xA8).result(60) == at(0xA0)
    commit(writer, 0x100)
    begun = time.monotonic()
    with pytest.raises(ConsumerBehind) as caught:
        waiting(relay, "cache", lsn=0x108, timeout=0.3).result(60)
    assert 0.3 <= time.monotonic() - begun < 30  # which the relay has whoever names no time wait for
    assert caught.value.place.last_done == at(0xA0)
    status, document = relay.json("GET", "/v1/consumers/cache/wait?lsn=0/108&timeout=0")
    assert (status, document["consumer"]["last_done"]) == (504, str(at(0xA0)))


def test_a_consumer_that_is_still_reading_its_snapshot_has_done_nothing_yet(relay, writer):
    log_id = writer.bounds().log_id
    put(relay, "cache", log_id=log_id, last_done=str(at(0xA0)), phase="snapshot", whole=False)
    assert relay.json("GET", "/v1/consumers/cache/wait?lsn=0/20&timeout=0.05")[0] == 504
    put(relay, "cache", log_id="ab" * 16, last_done=str(at(0xA0)))
    assert relay.json("GET", "/v1/consumers/cache/wait?lsn=0/20&timeout=0.05")[0] == 504
    put(relay, "cache", log_id=log_id, last_done=str(at(0xA0)))
    assert relay.json("GET", "/v1/consumers/cache/wait?lsn=0/20&timeout=0.05")[0] == 200


def test_waiting_for_a_name_that_nobody_has_is_refused(relay):
    with walbus.connect(relay.url) as bus, pytest.raises(RequestRefused) as caught:
        bus.wait_for("nobody", lsn="0/1")
    assert caught.value.status == 404


def test_a_consumer_that_is_removed_while_somebody_waits_is_unknown_to_him_at_once(relay):
    put(relay, "cache")
    answer = waiting(relay, "cache", lsn="7/0")
    wait_for(lambda: relay.server_waits() == 1, what="somebody to wait")
    relay.json("DELETE", "/v1/consumers/cache")
    with pytest.raises(RequestRefused):
        answer.result(30)


def test_whoever_hangs_up_waits_no_longer(relay):
    put(relay, "cache")
    connection = http.client.HTTPConnection("127.0.0.1", relay.port, timeout=10)
    connection.request("GET", "/v1/consumers/cache/wait?lsn=7/0&timeout=300")
    wait_for(lambda: relay.server_waits() == 1, what="somebody to wait")
    connection.close()
    wait_for(lambda: relay.server_waits() == 0, what="the server to see that he left")


def test_a_relay_that_stops_tells_whoever_waits(engine, writer):
    with ServingRelay(engine.folder) as relay:
        put(relay, "cache")
        answers = [waiting(relay, "cache", lsn="7/0", timeout=3.0)]

        def somebody_waits() -> bool:
            if answers[-1].done():  # its time was up before the test saw that it waited
                answers.append(waiting(relay, "cache", lsn="7/0", timeout=3.0))
            return relay.server_waits() == 1

        wait_for(somebody_waits, what="somebody to wait")
    for answer in answers:
        with pytest.raises((RelayUnavailable, ConsumerBehind)):
            answer.result(30)


def test_too_many_who_wait_are_turned_away(relay, monkeypatch):
    monkeypatch.setattr("walbus.relay.consumer_waits.MAX_WAITERS_OF_ONE", 2)
    put(relay, "cache")
    answers = [waiting(relay, "cache", lsn="7/0") for _ in range(2)]
    wait_for(lambda: relay.server_waits() == 2, what="two to wait")
    status, document = relay.json("GET", "/v1/consumers/cache/wait?lsn=7/0")
    assert (status, document["error"]) == (429, "too many wait")
    assert relay.server_waits() == 2
    relay.json("DELETE", "/v1/consumers/cache")
    for answer in answers:
        with pytest.raises(RequestRefused):
            answer.result(30)


@pytest.mark.parametrize(
    ("query", "where"),
    [
        ("", "lsn"),
        ("lsn=0/1&position=1:0/1:1", "lsn"),
        ("lsn=1", "lsn"),
        ("position=0/1", "position"),
        ("lsn=0/1&timeout=-1", "timeout"),
        ("lsn=0/1&timeout=301", "timeout"),
        ("lsn=0/1&timeout=nan", "timeout"),
        ("lsn=0/1&colour=blue", "colour"),
        ("lsn=0/1&lsn=0/2", "lsn"),
    ],
)
def test_a_question_that_makes_no_sense_is_refused_by_parameter(relay, query, where):
    put(relay, "cache")
    status, document = relay.json("GET", f"/v1/consumers/cache/wait?{query}")
    assert (status, document["where"]) == (400, where)


def test_the_helper_refuses_a_name_or_a_goal_that_is_none(relay):
    with walbus.connect(relay.url) as bus:
        for arguments in ({"name": "a/b", "lsn": "0/1"}, {"name": "cache"}, {"name": "cache", "lsn": "x"}):
            with pytest.raises(UsageError):
                bus.wait_for(**arguments)


# --- restarts, and relays that do not take reports ----------------------------------------------------------------


def test_a_relay_that_is_started_again_knows_its_consumers_and_waits_for_their_word(engine, writer, tmp_path):
    log_id = writer.bounds().log_id
    with ServingRelay(engine.folder) as relay:
        put(relay, "cache", log_id=log_id, last_done=str(at(0xA0)))
    with ServingRelay(engine.folder) as relay:
        document = seen(relay, "cache")
        assert (document["last_done"], document["confirmed"]) == (str(at(0xA0)), False)
        assert document["lag"]["bytes"] == 0
        assert relay.json("GET", "/v1/consumers/cache/wait?lsn=0/20&timeout=0.05")[0] == 504
        put(relay, "cache", log_id=log_id, last_done=str(at(0x90)))  # it was reset meanwhile
        assert seen(relay, "cache")["last_done"] == str(at(0x90))
        assert relay.json("GET", "/v1/consumers/cache/wait?lsn=0/20&timeout=0.05")[0] == 200


def test_a_connected_consumer_tells_a_relay_that_was_started_again_as_soon_as_somebody_waits(engine, writer, tmp_path):
    with ServingRelay(engine.folder) as relay:
        port = relay.port
        reader = Reader(relay, "cache", tmp_path)
        wait_for(lambda: seen(relay, "cache")["last_done"] == str(at(0xA0)), what="its place")
    with closing(reader), ServingRelay(engine.folder, port=port) as relay:
        wait_for(lambda: seen(relay, "cache")["streams"] == 1, what="it to come back")
        assert waiting(relay, "cache", lsn=0xA8).result(60) == at(0xA0)


def test_a_consumer_goes_on_where_the_relay_takes_no_reports(relay, writer, tmp_path, monkeypatch):
    put(relay, "other")
    monkeypatch.setattr(relay.desk().known, "_limit", 1)
    with closing(Reader(relay, "cache", tmp_path)) as reader:
        wait_for(lambda: reader.subscription._committed == 10, what="all windows")
        commit(writer, 0x100)
        wait_for(lambda: reader.subscription._committed == 11, what="the next one")
    assert [one["name"] for one in relay.json("GET", "/v1/consumers")[1]["consumers"]] == ["other"]


# --- bad clients --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["..%2f..%2fetc", "a%00b", ".hidden", "-x", "a" * 64, "%F0%9F%92%A9", "a%20b", "<b>"])
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_a_name_that_is_none_is_refused(relay, method, name):
    status, document = relay.json(method, f"/v1/consumers/{name}", json.dumps(REPORT).encode())
    assert status in (400, 404)
    assert "error" in document
    assert relay.json("GET", "/v1/consumers")[1]["consumers"] == []


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b"\xff" * 100, json.dumps(REPORT | {"phase": "<b>"}).encode()])
def test_a_report_that_is_none_is_refused(relay, body):
    status, document = relay.json("PUT", "/v1/consumers/cache", body)
    assert status == 400
    assert document["mend"]


def test_a_report_that_is_too_large_is_refused_without_reading_it(relay):
    status, document = relay.json("PUT", "/v1/consumers/cache", b"x" * (20 << 10))
    assert (status, document["where"]) == (413, "body")


def test_a_body_that_trickles_is_given_up(relay, monkeypatch):
    monkeypatch.setattr("walbus.relay.request_body._SECONDS", 0.2)
    connection = http.client.HTTPConnection("127.0.0.1", relay.port, timeout=10)
    connection.putrequest("PUT", "/v1/consumers/cache")
    connection.putheader("Content-Length", "100")
    connection.endheaders(b"{")
    assert connection.getresponse().status == 408
    connection.close()


def test_thousands_of_names_are_listed_and_neither_crowd_out_each_other_nor_the_streams(relay, writer):
    log_id = writer.bounds().log_id
    for n in range(0, 3000, 500):
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            wanted = (f"n{i:04}" for i in range(n, n + 500))
            list(pool.map(lambda name: put(relay, name, log_id=log_id, last_done=str(at(0x50))), wanted))
    begun = time.process_time()  # of all threads, the server's too
    listed = relay.json("GET", "/v1/consumers")[1]["consumers"]
    assert time.process_time() - begun < 5
    assert len(listed) == 3000
    assert all(one["lag"]["changes"] == 10 for one in listed)
    metrics = relay.get("/metrics").decode()
    assert metrics.count("walbus_relay_consumer_lag_bytes{") == 500
    assert "walbus_relay_consumers 3000" in metrics


def test_the_metrics_of_a_consumer(relay, writer):
    put(relay, "cache", log_id=writer.bounds().log_id, last_done=str(at(0x50)), seq=0)
    metrics = dict(line.rsplit(" ", 1) for line in relay.get("/metrics").decode().splitlines() if line[0] != "#")
    label = '{consumer="cache"}'
    assert float(metrics[f"walbus_relay_consumer_lag_changes{label}"]) == 10
    assert float(metrics[f"walbus_relay_consumer_lag_bytes{label}"]) > 0
    assert 0 <= float(metrics[f"walbus_relay_consumer_lag_seconds{label}"]) < 60
    assert float(metrics[f"walbus_relay_consumer_leaves_log_seconds{label}"]) > 167 * 3600
    assert float(metrics[f"walbus_relay_consumer_seen_timestamp_seconds{label}"]) == pytest.approx(time.time(), abs=60)
