"""A relay that copies another one: the same records, whatever happens between the two."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from support.chained_relay import ChainedRelay, records_of
from support.relay_log import epoch_piece, piece, progress, schema_piece, table_schema, transaction
from support.relay_server import Relay, fill
from support.seed import announced_seed
from support.tcp_proxy import TcpProxy
from support.waiting import wait_for
from walbus.errors import ConfigError, LogDiverged, PositionTrimmed
from walbus.position import Position
from walbus.records import Flag
from walbus.relay import open_reader
from walbus.relay.lineage import read_lineage
from walbus.relay.promotion import check_not_a_copy, promote
from walbus.relay.writer import FileLogWriter


@pytest.fixture
def relay(tmp_path: Path) -> Iterator[Relay]:
    (tmp_path / "a").mkdir()
    running = Relay(tmp_path / "a")
    yield fill(running)
    running.close()


def serving(folder: Path, log: Path) -> Relay:
    """A server over a log that is there already."""
    served = Relay(folder, log)
    wait_for(lambda: served.get("/readyz")[0] == 200, what="the server finds the log")
    return served


def end_of(relay: Relay) -> Position:
    return relay.writer.bounds().end


def of_every_kind(writer: FileLogWriter, lsn: int) -> None:
    """Records of each kind, layouts before, between and inside transactions."""
    extra, _ = writer.schemas.register(table_schema("extra", 3, ("id", f"c{lsn}")))
    writer.append(schema_piece(lsn, 0, extra))
    writer.append(piece(lsn, 1, 2, Flag.BEGIN, table=3, schema_id=extra.id, size=40))
    later, _ = writer.schemas.register(table_schema("extra", 3, ("id", f"d{lsn}")))
    writer.append(schema_piece(lsn, 2, later))
    writer.append(piece(lsn, 3, 2, Flag.END, table=3, schema_id=later.id, size=40))
    writer.append(progress(lsn + 64))
    writer.sync()


def test_a_copy_has_the_same_bytes_positions_layouts_and_identity(relay: Relay, tmp_path: Path) -> None:
    of_every_kind(relay.writer, 0x10000)
    copy = ChainedRelay(tmp_path / "b", [relay.port])
    copy.has(end_of(relay))
    of_every_kind(relay.writer, 0x20000)  # and what comes while it follows
    relay.writer.append(epoch_piece(0x30000, 2))
    relay.writer.append(transaction(0x30100, 3, epoch=2))
    relay.writer.sync()
    copy.has(end_of(relay))
    with closing(open_reader(copy.log)) as ours, closing(open_reader(relay.engine.folder)) as theirs:
        assert ours.bounds().log_id == theirs.bounds().log_id
        assert (ours.tip(), ours.base(), ours.source) == (theirs.tip(), theirs.base(), theirs.source)
        assert ours.schemas.all() == theirs.schemas.all()
    assert copy.records() == records_of(relay.engine.folder)
    copy.stop()


def test_a_copy_that_is_stopped_and_started_goes_on_without_a_gap_or_a_repeat(relay: Relay, tmp_path: Path) -> None:
    lsn = 0x10000
    for _ in range(4):
        copy = ChainedRelay(tmp_path / "b", [relay.port])
        of_every_kind(relay.writer, lsn)
        copy.has(end_of(relay))
        copy.stop()
        lsn += 0x1000
        of_every_kind(relay.writer, lsn)  # while nobody copies
        extra, _ = relay.writer.schemas.register(table_schema("late", 9, (f"c{lsn}",)))
        relay.writer.append(schema_piece(lsn + 64, 0, extra))  # at the very position of the record before it
        relay.writer.sync()
        lsn += 0x1000
    copy = ChainedRelay(tmp_path / "b", [relay.port])
    copy.has(end_of(relay))
    wait_for(lambda: copy.records() == records_of(relay.engine.folder), what="the same records")
    copy.stop()


def test_a_connection_cut_at_any_byte_costs_no_record_and_repeats_none(relay: Relay, tmp_path: Path) -> None:
    chance = random.Random(announced_seed("the cuts"))
    with TcpProxy(relay.port) as proxy:
        proxy.starts = b"GET /v1/chain/stream"
        copy = ChainedRelay(tmp_path / "b", [proxy.port])
        lsn = 0x10000
        for _ in range(12):
            before = proxy.cuts
            proxy.reset(chance.randrange(1, 60_000))
            for _ in range(20):
                relay.writer.append(piece(lsn, 1, 2, Flag.BEGIN, size=2000))
                relay.writer.append(piece(lsn, 3, 2, 0, size=2000))
                relay.writer.append(piece(lsn, 5, 1, Flag.END, size=2000))
                lsn += 16
            of_every_kind(relay.writer, lsn)
            lsn += 0x100
            wait_for(lambda before=before: proxy.cuts > before or proxy.stream_bytes is None, what="a cut")
        copy.has(end_of(relay))
        assert copy.records() == records_of(relay.engine.folder)
        copy.stop()


def test_a_transaction_larger_than_what_any_connection_brings_is_copied_piece_by_piece(
    relay: Relay, tmp_path: Path
) -> None:
    with TcpProxy(relay.port) as proxy:
        proxy.starts = b"GET /v1/chain/stream"
        copy = ChainedRelay(tmp_path / "b", [proxy.port])
        copy.has(end_of(relay))
        proxy.again = 7
        proxy.reset(150_000)
        relay.writer.append(piece(0x10000, 1, 10, Flag.BEGIN, size=4000))
        for i in range(1, 30):
            relay.writer.append(piece(0x10000, 1 + 10 * i, 10, 0, size=4000))
        relay.writer.append(piece(0x10000, 301, 10, Flag.END, size=4000))
        relay.writer.sync()  # 1.2 MB
        copy.has(end_of(relay))
        assert proxy.cuts >= 4
        assert copy.records() == records_of(relay.engine.folder)
        copy.stop()


def test_a_half_open_connection_is_given_up_and_made_anew(relay: Relay, tmp_path: Path) -> None:
    with TcpProxy(relay.port) as proxy:
        copy = ChainedRelay(tmp_path / "b", [proxy.port])
        copy.has(end_of(relay))
        proxy.swallow = True
        relay.writer.append(transaction(0x10000))
        relay.writer.sync()
        wait_for(lambda: copy.status()["state"] == "waiting", 60, what="it notices")
        proxy.swallow = False
        proxy.reset()
        copy.has(end_of(relay))
        copy.stop()


def test_a_copy_that_begins_late_says_from_where_it_has_the_log(relay: Relay, tmp_path: Path) -> None:
    for i in range(300):
        relay.writer.append(transaction(0x10000 + 16 * i, 2, size=1000))
        relay.writer.sync()
    relay.engine.retention_bytes = None
    trimmed = trim_to(relay, 200_000)
    copy = ChainedRelay(tmp_path / "b", [relay.port])
    copy.has(end_of(relay))
    with closing(open_reader(copy.log)) as reader:
        assert reader.bounds().trimmed == trimmed
        assert reader.bounds().last_seq == relay.writer.bounds().last_seq
    assert copy.records() == records_of(relay.engine.folder)
    copy.stop()


def trim_to(relay: Relay, size: int) -> Position:
    """Drops old segments."""
    from dataclasses import replace

    writer = relay.writer
    retention = replace(writer._settings.retention, bytes=size)
    writer._settings = replace(writer._settings, retention=retention)
    trimmed = writer.trim(0.0)
    assert trimmed > Position(0, 0, 0)
    return trimmed


def test_a_copy_that_the_upstream_has_trimmed_past_ends_and_says_what_to_do(relay: Relay, tmp_path: Path) -> None:
    copy = ChainedRelay(tmp_path / "b", [relay.port])
    copy.has(end_of(relay))
    copy.stop()
    for i in range(300):
        relay.writer.append(transaction(0x10000 + 16 * i, 2, size=1000))
        relay.writer.sync()
    trim_to(relay, 100_000)
    error = ChainedRelay(tmp_path / "b", [relay.port]).ended()
    assert isinstance(error, PositionTrimmed)
    assert "move this relay's folder away" in str(error)


def test_another_log_is_never_copied_over_ours(relay: Relay, tmp_path: Path) -> None:
    copy = ChainedRelay(tmp_path / "b", [relay.port])
    copy.has(end_of(relay))
    copy.stop()
    (tmp_path / "c").mkdir()
    other = fill(Relay(tmp_path / "c"))
    before = copy.records()
    error = ChainedRelay(tmp_path / "b", [other.port]).ended()
    assert isinstance(error, LogDiverged)
    assert "is a copy of log" in str(error)
    assert copy.records() == before
    other.close()


def test_a_log_that_capture_writes_is_not_made_a_copy(relay: Relay, tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    own = Relay(tmp_path / "c")
    fill(own)
    own.close()
    (tmp_path / "d").mkdir()
    (tmp_path / "c" / "log").rename(tmp_path / "d" / "log")
    error = ChainedRelay(tmp_path / "d", [relay.port]).ended()
    assert isinstance(error, (ConfigError, LogDiverged))


def test_a_history_that_went_another_way_behind_the_same_id_is_noticed(relay: Relay, tmp_path: Path) -> None:
    copy = ChainedRelay(tmp_path / "b", [relay.port])
    relay.writer.append(transaction(0x10000, 2, size=10))
    relay.writer.sync()
    copy.has(end_of(relay))
    copy.stop()
    writer = open_copy_for_writing(copy)
    writer.append(transaction(0x10010, 2, size=10))  # what is here, and not there
    writer.sync()
    writer.close()
    relay.writer.append(transaction(0x10010, 2, size=11))
    relay.writer.sync()
    error = ChainedRelay(tmp_path / "b", [relay.port]).ended()
    assert isinstance(error, LogDiverged)
    assert "is not the one that is here" in str(error)


def open_copy_for_writing(copy: ChainedRelay) -> FileLogWriter:
    from support.relay_log import SOURCE
    from walbus.relay.engine import open_writer

    return open_writer(copy.log, SOURCE, segment_bytes=64 << 10, retention_hours=1, retention_bytes=None)


def test_a_layout_that_no_record_tells_comes_to_the_copy(
    relay: Relay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("walbus.relay.chain._CATALOG_SECONDS", 0.1)
    copy = ChainedRelay(tmp_path / "b", [relay.port])
    copy.has(end_of(relay))
    quiet, _ = relay.writer.schemas.register(table_schema("quiet", 12))
    with closing(open_reader(copy.log)) as reader:
        wait_for(lambda: quiet in reader.schemas.all(), what="the copy has the layout")
    copy.stop()


def test_a_chain_of_three_has_one_log(relay: Relay, tmp_path: Path) -> None:
    second = ChainedRelay(tmp_path / "b", [relay.port])
    third = ChainedRelay(tmp_path / "c", [second.port])
    for i in range(10):
        of_every_kind(relay.writer, 0x10000 + i * 0x1000)
    third.has(end_of(relay))
    assert third.records() == second.records() == records_of(relay.engine.folder)
    third.stop()
    second.stop()


def test_a_promoted_copy_is_the_log_in_a_new_term_and_its_predecessor_is_not_followed(
    relay: Relay, tmp_path: Path
) -> None:
    copy = ChainedRelay(tmp_path / "b", [relay.port])
    third = ChainedRelay(tmp_path / "c", [copy.port, relay.port])
    copy.has(end_of(relay))
    third.has(end_of(relay))
    with pytest.raises(ConfigError, match="is a copy of"):
        check_not_a_copy(copy.log)
    copy.stop()
    lineage = promote(copy.log)
    assert (lineage.term, lineage.began, lineage.copy_of) == (2, end_of(relay), None)
    check_not_a_copy(copy.log)
    with closing(open_copy_for_writing(copy)) as writer:
        writer.append(transaction(0x10000, 2))
        writer.sync()
        served = serving(tmp_path / "b2", copy.log)
        third.stop()
        third = ChainedRelay(tmp_path / "c", [relay.port, served.port])
        third.has(writer.bounds().end)
        assert read_lineage(third.log).term == 2
        third.stop()
        third = ChainedRelay(tmp_path / "c", [relay.port])  # the old one is passed over, for ever
        wait_for(lambda: "has taken over" in str(third.status().get("error")), what="it says why it waits")
        third.stop()
        served.close()
    assert third.records() == records_of(copy.log)


def test_what_was_copied_behind_the_place_where_another_took_over_is_refused(relay: Relay, tmp_path: Path) -> None:
    copy = ChainedRelay(tmp_path / "b", [relay.port])
    copy.has(end_of(relay))
    copy.stop()
    promote(copy.log)
    third = ChainedRelay(tmp_path / "c", [relay.port])
    relay.writer.append(transaction(0x10000, 2))
    relay.writer.sync()
    third.has(end_of(relay))
    third.stop()
    served = serving(tmp_path / "b2", copy.log)
    error = ChainedRelay(tmp_path / "c", [served.port]).ended()
    assert isinstance(error, LogDiverged)
    assert "term 2 of the log began at" in str(error)
    served.close()
