"""What a required standby's word does: which of it counts, and what is confirmed and served by it."""

from __future__ import annotations

import dataclasses
import http.client
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from support.chained_relay import ChainedRelay
from support.guarded_relay import GuardedRelay
from support.relay_log import SOURCE, schema_piece, table_schema, transaction
from support.relay_server import Relay, fill
from support.tcp_proxy import TcpProxy
from support.waiting import wait_for
from walbus.capture.confirming import Confirming
from walbus.errors import LogDiverged
from walbus.position import Position, parse_position
from walbus.records import Kind, Op, pack_change, read_header
from walbus.relay.engine import open_writer
from walbus.relay.promotion import promote
from walbus.relay.retention import holds_folder, lowest_hold
from walbus.relay.standbys import Standbys, confirmable, hold_for, read_report, tip_document
from walbus.relay.tip import Tip
from walbus.relay.writer import FileLogWriter


@pytest.fixture
def relay(tmp_path: Path) -> Iterator[Relay]:
    (tmp_path / "a").mkdir()
    running = Relay(tmp_path / "a", required_standbys=("b",))
    yield fill(running)
    running.close()


def tip_at(position: Position, end_lsn: int) -> Tip:
    return Tip(position, end_lsn, 1, 1, 0)


def held_at(folder: Path, name: str = "b") -> Position:
    report = read_report(folder, name)
    return Position(0, 0, 0) if report is None else report.tip.position


def open_copy_for_writing(copy: ChainedRelay) -> FileLogWriter:
    return open_writer(copy.log, SOURCE, segment_bytes=64 << 10, retention_hours=1, retention_bytes=None)


class Moments:
    """Seconds that pass only when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_where_a_standby_begins_its_copy_anew_the_slot_is_not_moved_back(tmp_path: Path) -> None:
    moments = Moments()
    standbys = Standbys(tmp_path, ("b",), moments)
    confirming = Confirming(partial(confirmable, tmp_path, ("b",), 1000.0, 1), moments)
    confirming.begin(40)
    standbys.report("b", tip_at(Position(1, 92, 1), 100))
    assert confirming.bound(200) == 100
    moments.now += 1
    standbys.report("b", tip_at(Position(1, 42, 1), 50))  # its folder was moved away
    assert confirming.bound(200) == 0
    moments.now += 1
    standbys.report("b", tip_at(Position(1, 142, 1), 150))
    assert confirming.bound(200) == 150


def test_nothing_of_a_new_epoch_is_confirmed_before_the_standby_has_come_to_it(tmp_path: Path) -> None:
    """The failover lost what lies behind LSN 100; the standby's end, in the epoch before, is a larger LSN."""
    moments, epoch = Moments(), [1]
    standbys = Standbys(tmp_path, ("b",), moments)
    confirming = Confirming(lambda: confirmable(tmp_path, ("b",), 1000.0, epoch[0]), moments)
    confirming.begin(40)
    standbys.report("b", tip_at(Position(1, 292, 1), 300))
    assert confirming.bound(300) == 300
    epoch[0] = 2  # the log has its EPOCH record, and a commit behind it, at once
    confirming.begin(100)
    assert confirming.bound(120) == 0
    moments.now += 1
    standbys.report("b", tip_at(Position(2, 112, 1), 120))
    assert confirming.bound(140) == 120


def test_a_copy_of_another_history_lets_nothing_be_confirmed_or_served(relay: Relay, tmp_path: Path) -> None:
    folder = relay.engine.folder
    copy = ChainedRelay(tmp_path / "b", [relay.port], name="b")
    common = relay.writer.bounds().end
    copy.has(common)
    wait_for(lambda: held_at(folder) == common, what="its report")
    copy.stop()
    with closing(open_copy_for_writing(copy)) as writer:
        writer.append(transaction(0x10010, 2, size=10))  # as a volume has it that was restored
        writer.sync()
    relay.writer.append(transaction(0x10010, 2, size=11))
    relay.writer.sync()
    error = ChainedRelay(tmp_path / "b", [relay.port], name="b").ended()
    assert isinstance(error, LogDiverged)
    assert held_at(folder) == common
    assert relay.json("/v1/info")[1]["end"] == str(common)


@pytest.mark.parametrize("beyond", ["position", "end_lsn"])
def test_a_report_beyond_the_logs_own_end_is_refused(relay: Relay, tmp_path: Path, beyond: str) -> None:
    tip = relay.writer.durable
    ahead = tip._replace(position=tip.position._replace(commit_lsn=1 << 40)) if beyond == "position" else tip
    ahead = ahead._replace(end_lsn=1 << 40) if beyond == "end_lsn" else ahead
    log_id = relay.writer.bounds().log_id
    assert reported(relay, log_id, ahead) == 409
    assert held_at(relay.engine.folder) == Position(0, 0, 0)
    assert reported(relay, log_id, tip) == 200
    assert held_at(relay.engine.folder) == tip.position


def test_a_report_that_trickles_is_too_large_or_makes_no_sense_is_refused(
    relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("walbus.relay.request_body._SECONDS", 0.2)
    nested = b'{"end":' * 2000  # more than a parser goes into
    reports = [(b"{", 100, 408), (b"{}", 1 << 20, 413), (nested, len(nested), 400), (b"\xff", 1, 400)]
    for sent, length, status in reports:
        with closing(http.client.HTTPConnection("127.0.0.1", relay.port, timeout=10)) as connection:
            connection.putrequest("PUT", "/v1/chain/standbys/b")
            connection.putheader("Content-Length", str(length))
            connection.endheaders(sent)
            answer = connection.getresponse()
            assert (answer.status, bool(json.loads(answer.read())["error"])) == (status, True), sent[:10]
    assert held_at(relay.engine.folder) == Position(0, 0, 0)


def reported(relay: Relay, log_id: str, tip: Tip) -> int:
    with closing(http.client.HTTPConnection("127.0.0.1", relay.port, timeout=10)) as connection:
        body = json.dumps({"log_id": log_id, "term": 1, **tip_document(tip)})
        connection.request("PUT", "/v1/chain/standbys/b", body, {"Content-Type": "application/json"})
        return connection.getresponse().status


def test_a_layout_whose_announcement_was_cut_off_is_announced_by_the_copy_that_takes_over(
    relay: Relay, tmp_path: Path
) -> None:
    """Announcement and transaction stand at one position: who has the one may not have the other."""
    layout, _ = relay.writer.schemas.register(table_schema("late", 9))
    large = pack_change(
        Op.SCHEMA, table=9, schema_id=layout.id, seq_delta=0, ordinal_delta=0, after=b"{" + b" " * 40_000 + b"}"
    )
    last = relay.writer.bounds().end
    relay.writer.append(dataclasses.replace(schema_piece(last.commit_lsn, last.ordinal, layout), body=large))
    relay.writer.sync()
    with TcpProxy(relay.port) as proxy:
        proxy.starts = b"GET /v1/chain/stream"
        proxy.stalls = True
        proxy.stream_bytes = len(b"".join(relay_records(relay))) - 20_000  # in the announcement
        copy = ChainedRelay(tmp_path / "b", [proxy.port], name="b")
        copy.has(last)
        proxy.target = 1  # the first machine is gone
        copy.stop()
    headers = [read_header(record) for record in copy.records()]
    assert headers[-1].last == last
    assert all(header.kind != Kind.SCHEMA for header in headers)
    promote(copy.log)
    with closing(open_copy_for_writing(copy)) as writer:
        assert writer.schemas.register(layout) == (layout, True)


def relay_records(relay: Relay) -> list[bytes]:
    return list(relay.writer.records_after(relay.writer.bounds().trimmed))


def test_a_late_copy_of_a_quiet_log_holds_all_of_it(relay: Relay, tmp_path: Path) -> None:
    """Layouts that were announced before the place where the copy begins count as announced there too."""
    layout, _ = relay.writer.schemas.register(table_schema("early", 9))
    relay.writer.append(schema_piece(0x10000, 0, layout))
    for i in range(1, 300):
        relay.writer.append(transaction(0x10000 + 16 * i, 2, size=1000))
        relay.writer.sync()
    settings = relay.writer._settings
    relay.writer._settings = dataclasses.replace(settings, retention=dataclasses.replace(settings.retention, bytes=1))
    (holds_folder(relay.engine.folder) / "standby-b.json").unlink()  # as where the disk was nearly full
    assert relay.writer.trim(0.0) > Position(1, 0x10000, 0)
    copy = ChainedRelay(tmp_path / "b", [relay.port], name="b")
    end = relay.writer.bounds().end
    wait_for(lambda: relay.json("/v1/info")[1]["end"] == str(end), what="everything is served")
    copy.stop()


def test_a_report_of_what_the_log_has_lost_is_dropped_when_it_is_opened(relay: Relay, tmp_path: Path) -> None:
    """A volume that was restored: the same log, and fewer bytes than the standby holds."""
    folder, restored = relay.engine.folder, tmp_path / "restored"
    shutil.copytree(folder, restored, ignore=shutil.ignore_patterns("*.sock"))
    relay.writer.append(transaction(0x10000, 2))
    relay.writer.sync()
    copy = ChainedRelay(tmp_path / "b", [relay.port], name="b")
    copy.has(relay.writer.bounds().end)
    wait_for(lambda: held_at(folder) == relay.writer.bounds().end, what="its report")
    copy.stop()
    shutil.copytree(folder / "standbys", restored / "standbys")
    with closing(writer_in(restored)) as writer:  # capture: the source sends the commits again, and others
        assert read_report(restored, "b") is None
        assert confirmable(restored, ("b",), 0.0, 1).lsn == 0
        common = writer.bounds().end
        for lsn in (0x10000, 0x10100):
            writer.append(transaction(lsn, 2, size=30))
        writer.sync()
        served = Relay(tmp_path / "c", restored, required_standbys=("b",))
        try:
            wait_for(lambda: served.get("/readyz")[0] == 200, what="the server finds the log")
            assert parse_position(served.json("/v1/info")[1]["end"]) <= common
        finally:
            served.close()


def test_a_relay_that_runs_drops_the_report_too_where_the_log_lost_what_was_durable(relay: Relay) -> None:
    """The file is shorter than the end that was published, and capture finds that out when it opens the log."""
    relay.engine.kill(relay.writer)
    writer = relay.writer = relay.engine.open_writer()  # a new segment, which is cut below
    common = writer.bounds().end
    writer.append(transaction(0x10000, 2))
    writer.sync()
    assert reported(relay, writer.bounds().log_id, writer.durable) == 200
    wait_for(lambda: relay.json("/v1/info")[1]["end"] == str(writer.bounds().end), what="it is served")
    relay.engine.kill(writer)
    active = relay.engine.segments()[-1]
    os.truncate(active, active.stat().st_size - 10)
    writer = relay.writer = relay.engine.open_writer()
    assert writer.bounds().end == common
    for lsn in (0x10000, 0x10100):
        writer.append(transaction(lsn, 2, size=30))
    writer.sync()
    wait_for(lambda: relay.json("/v1/info")[1]["required_standbys"] == {"b": None}, what="its word counts no more")
    assert parse_position(relay.json("/v1/info")[1]["end"]) <= common
    assert reported(relay, writer.bounds().log_id, writer.durable) == 200
    wait_for(lambda: relay.json("/v1/info")[1]["end"] == str(writer.bounds().end), what="its next word counts")


def writer_in(folder: Path) -> FileLogWriter:
    return open_writer(folder, SOURCE, segment_bytes=64 << 10, retention_hours=1, retention_bytes=None)


def test_retention_waits_for_a_required_standby_that_never_reported(relay: Relay, tmp_path: Path) -> None:
    relay.engine.retention_bytes = 100_000
    relay.engine.kill(relay.writer)
    writer = relay.writer = relay.engine.open_writer()
    for i in range(300):
        writer.append(transaction(0x10000 + 16 * i, 2, size=1000))
        writer.sync()
    assert writer.trim(0.0) == Position(0, 0, 0)
    copy = ChainedRelay(tmp_path / "b", [relay.port], name="b")
    copy.has(writer.bounds().end)
    wait_for(lambda: held_at(relay.engine.folder) == writer.bounds().end, what="its report")
    wait_for(lambda: writer.trim(0.0) > Position(0, 0, 0), what="its hold, written behind the report")
    copy.stop()


def test_capture_alone_has_retention_wait_for_a_standby_that_never_reported(tmp_path: Path) -> None:
    hold_for(tmp_path, ("b", "c"))
    assert lowest_hold(tmp_path) == Position(0, 0, 0)
    hold_for(tmp_path, ())
    assert lowest_hold(tmp_path) is None


def test_only_an_admin_reads_under_the_name_of_a_required_standby(tmp_path: Path) -> None:
    tokens = {"all": ["*.*"], "narrow": ["public.orders"], "admin": ()}
    with GuardedRelay(tmp_path, tokens, required_standbys=("b",)) as relay:
        for path in ("/v1/chain", "/v1/chain/stream", "/v1/chain/catalog"):
            status, said = relay.json(f"{path}?name=b", token=relay.tokens["all"])
            assert (status, said["where"]) == (403, "name"), path
            assert relay.json(f"{path}?name=b", token=relay.tokens["narrow"])[0] == 403
        assert relay.json("/v1/chain?name=b", token=relay.tokens["admin"])[1]["required"] is True
        origin = relay.json("/v1/chain?name=other", token=relay.tokens["all"])[1]
        assert origin["required"] is False
        assert origin["tip"]["end"] == str(relay.writer.bounds().trimmed)  # nothing is held by b, so nothing is shown


def test_a_second_relay_on_a_log_lets_go_no_hold_of_the_first_until_it_has_ended(relay: Relay, tmp_path: Path) -> None:
    """Each says for whom retention waits, and the second knows of no standby."""
    log, hold = relay.engine.folder, holds_folder(relay.engine.folder) / "standby-b.json"
    assert hold.exists()
    (tmp_path / "second").mkdir()
    second = Relay(tmp_path / "second", log=log)
    try:
        wait_for(lambda: second.get("/readyz")[0] == 200, what="the second relay serves")
        assert hold.exists()
        relay.stop.set()
        relay.thread.join(60)
        wait_for(lambda: not hold.exists(), what="the second relay to be the one that says")
    finally:
        second.close()
