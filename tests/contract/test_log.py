"""What every engine of the relay log promises (`walbus.log`); one suite, run on each engine."""

from __future__ import annotations

import dataclasses
import itertools
import threading
import time

import pytest

from support.relay_log import (
    BASE_TIME,
    SOURCE,
    commits,
    epoch_piece,
    fill,
    piece,
    progress,
    read_all,
    read_records,
    run_of,
    schema_piece,
    table_schema,
    transaction,
)
from support.waiting import wait_for
from walbus.compressed_records import plain
from walbus.errors import LogBusy, LogMissing, PositionTrimmed, SourceReplaced, UsageError
from walbus.log import Held, SourceIdentity
from walbus.position import ORIGIN, Position
from walbus.records import Flag, Kind, check_record
from walbus.relay.lease import Clock


def test_a_reader_sees_what_was_synced_and_nothing_else(engine):
    writer = engine.open_writer()
    reader = engine.open_reader()
    writer.append(transaction(16))
    assert read_all(reader) == []
    writer.sync()
    writer.append(transaction(32))
    assert commits(read_all(reader)) == [16]


def test_records_come_in_the_order_of_append_with_positions_and_seqs_that_rise(engine):
    writer = engine.open_writer()
    fill(writer, 100)
    headers = read_all(engine.open_reader())
    assert commits(headers) == [i * 16 for i in range(1, 101)]
    assert all(a.last < b.first and b.first_seq == a.last_seq + 1 for a, b in itertools.pairwise(headers))


def test_a_record_is_what_was_appended_and_its_checksum_holds(engine):
    writer = engine.open_writer()
    given = transaction(16, 3)
    writer.append(given)
    bounds = writer.sync()
    (record,) = read_records(engine.open_reader())
    header = check_record(record)
    assert record.endswith(given.body)
    assert (header.xid, header.end_lsn, header.count, header.tables) == (given.xid, 24, 3, given.tables)
    assert (header.first_seq, header.last_seq) == (bounds.last_seq - 2, bounds.last_seq)


def test_a_transaction_is_seen_whole_or_not_at_all(engine):
    writer = engine.open_writer()
    reader = engine.open_reader()
    writer.append(piece(16, 1, 2, Flag.BEGIN))
    assert writer.sync().end == ORIGIN
    writer.append(piece(16, 3, 2, 0))
    writer.sync()
    assert read_all(reader) == []
    writer.append(piece(16, 5, 2, Flag.END))
    assert writer.sync().end == Position(1, 16, 6)
    assert commits(read_all(reader)) == [16]


def test_a_run_is_as_if_its_transactions_had_been_appended_one_by_one(engine):
    given = [transaction(i * 16, changes=i % 3 + 1, time=BASE_TIME - i) for i in range(1, 40)]
    single, together = engine.another(), engine
    single.clock = together.clock = Clock(now=lambda: BASE_TIME / 1e6)  # one clock, or seqs would differ
    writers = [single.open_writer(), together.open_writer()]
    for writer in writers:
        writer.append(progress(8))
    for one in given:
        writers[0].append(one)
    writers[1].append_run(run_of(given[:20]))
    writers[1].append(given[20])
    writers[1].append_run(run_of(given[21:]))
    assert dataclasses.replace(writers[0].sync(), log_id="") == dataclasses.replace(writers[1].sync(), log_id="")
    assert read_records(single.open_reader()) == read_records(together.open_reader())
    single.close()


def test_a_compressed_log_holds_the_same_in_fewer_bytes_and_goes_on_without(engine):
    given = [transaction(i * 16, changes=60 if i % 3 else 1, size=60) for i in range(1, 300)]
    loose, packed = engine.another(), engine
    loose.clock = packed.clock = Clock(now=lambda: BASE_TIME / 1e6)
    packed.compression_level = 3
    writers = [loose.open_writer(), packed.open_writer()]
    for writer in writers:
        writer.append(piece(8, 1, 60, Flag.BEGIN))
        writer.append(piece(8, 61, 60, Flag.END))
        writer.append_run(run_of(given[:200]))
        writer.sync()
    assert writers[1].bounds().bytes < writers[0].bounds().bytes / 2
    assert writers[1].find(1, 3200) == writers[0].find(1, 3200) is not None
    writers[1].close()
    packed.compression_level = None
    writers[1] = packed.open_writer()
    for writer in writers:
        for one in given[200:]:
            writer.append(one)
        writer.sync()
    reader = packed.open_reader()
    records = read_records(reader)
    assert {bool(check_record(record).flags & Flag.ZSTD) for record in records} == {True, False}
    assert [plain(record) for record in records] == read_records(loose.open_reader())
    assert commits(read_all(reader, Position(1, 1600, 60))) == [i * 16 for i in range(101, 300)]
    assert reader.position_at((BASE_TIME + 1600) / 1e6) == Position(1, 1584, 1)
    loose.close()


def test_a_run_is_seen_when_it_is_synced_and_its_transactions_are_known_again(engine):
    writer = engine.open_writer()
    reader = engine.open_reader()
    writer.append_run(run_of([transaction(16), transaction(32)]))
    assert read_all(reader) == []
    bounds = writer.sync()
    assert (bounds.end, bounds.end_lsn) == (Position(1, 32, 1), 40)
    assert commits(read_all(reader)) == [16, 32]
    assert commits(read_all(reader, Position(1, 16, 1))) == [32]
    assert writer.find(1, 32) == Held(32, 40, 2, BASE_TIME + 32)


def test_a_run_that_goes_back_is_refused(engine):
    writer = engine.open_writer()
    writer.append(transaction(32))
    for lsn in (16, 32):
        with pytest.raises(ValueError, match="behind"):
            writer.append_run(run_of([transaction(lsn)]))
    writer.append_run(run_of([transaction(48)]))
    writer.sync()
    assert commits(read_all(engine.open_reader())) == [32, 48]


def test_a_run_replaces_an_unfinished_transaction(engine):
    writer = engine.open_writer()
    writer.append(transaction(16))
    writer.append(piece(32, 1, 5, Flag.BEGIN))
    writer.append_run(run_of([transaction(32, 2), transaction(48)]))
    bounds = writer.sync()
    headers = read_all(engine.open_reader())
    assert commits(headers) == [16, 32, 48]
    assert bounds.last_seq == headers[0].last_seq + 3


def test_runs_fill_segments_and_their_index(engine):
    writer = engine.open_writer()
    for first in range(1, 4001, 200):
        writer.append_run(run_of([transaction(i * 16, size=100) for i in range(first, first + 200)]))
    writer.sync()
    reader = engine.open_reader()
    assert engine.units() > 5
    assert commits(read_all(reader)) == [i * 16 for i in range(1, 4001)]
    assert commits(read_all(reader, Position(1, 2000 * 16, 1))) == [i * 16 for i in range(2001, 4001)]
    assert reader.position_at((BASE_TIME + 3000 * 16) / 1e6) == Position(1, 2999 * 16, 1)


def test_bounds_agree_in_writer_and_reader(engine):
    writer = engine.open_writer()
    reader = engine.open_reader()
    assert writer.bounds() == reader.bounds()
    fill(writer, 50)
    bounds = writer.bounds()
    assert bounds == reader.bounds()
    assert (bounds.end, bounds.end_lsn, bounds.commit_time) == (Position(1, 800, 2), 808, BASE_TIME + 800)
    assert bounds.trimmed == ORIGIN
    assert bounds.bytes > 0


def test_an_empty_log_ends_at_the_origin(engine):
    bounds = engine.open_writer().bounds()
    assert (bounds.end, bounds.end_lsn, bounds.commit_time) == (ORIGIN, 0, 0)
    assert read_all(engine.open_reader()) == []


def test_what_stands_beside_an_empty_log_is_newer_than_all_of_the_log_before_it(engine):
    now = int(time.time() * 1e6)
    writer = engine.open_writer()
    beginning = writer.bounds().last_seq
    assert now <= beginning < 1 << 53
    writer.append(progress(64))
    assert writer.sync().last_seq == beginning
    assert [header.last_seq for header in read_all(engine.open_reader())] == [beginning]


def test_progress_moves_the_end_and_takes_no_seq(engine):
    writer = engine.open_writer()
    fill(writer, 1)
    before = writer.bounds()
    writer.append(progress(64))
    bounds = writer.sync()
    assert (bounds.end, bounds.end_lsn, bounds.last_seq) == (Position(1, 64, 0), 64, before.last_seq)


def test_a_piece_that_goes_back_is_refused(engine):
    writer = engine.open_writer()
    fill(writer, 3)
    for wrong in (transaction(48), transaction(16), progress(32), piece(64, 2, 1, Flag.END)):
        with pytest.raises(ValueError, match="piece"):
            writer.append(wrong)
    fill(writer, 1, first=4)
    assert commits(read_all(engine.open_reader())) == [16, 32, 48, 64]


def test_a_transaction_that_begins_again_replaces_its_unfinished_self(engine):
    writer = engine.open_writer()
    fill(writer, 1)
    writer.append(piece(32, 1, 2, Flag.BEGIN, size=3000))
    writer.append(piece(32, 3, 500, 0, size=3000))
    writer.sync()
    writer.append(piece(32, 1, 2, Flag.BEGIN))
    writer.append(piece(32, 3, 1, Flag.END))
    bounds = writer.sync()
    headers = read_all(engine.open_reader())
    assert commits(headers) == [16, 32]
    assert [h.last_seq for h in headers] == [bounds.last_seq - 3, bounds.last_seq - 1, bounds.last_seq]


def test_schemas_of_a_transaction_that_begins_again_are_announced_again(engine):
    writer = engine.open_writer()
    schema, new = writer.schemas.register(table_schema())
    assert new
    writer.append(piece(16, 1, 1, Flag.BEGIN))
    writer.append(schema_piece(16, 1, schema))
    writer.append(schema_piece(16, 0, schema))  # goes back: the transaction begins again
    writer.append(piece(16, 1, 1, Flag.BEGIN | Flag.END))
    writer.sync()
    kinds = [header.kind for header in read_all(engine.open_reader())]
    assert kinds == [Kind.SCHEMA, Kind.TRANSACTION]


def test_a_cursor_goes_on_when_more_becomes_durable(engine):
    writer = engine.open_writer()
    cursor = engine.open_reader().cursor(ORIGIN)
    seen = []
    for first in range(1, 1000, 100):
        fill(writer, 100, first=first, size=300)
        seen += [r for block in iter(lambda: cursor.read(10_000), []) for r in block]
    cursor.close()
    assert len(seen) == 1000


def test_a_read_gives_about_what_was_asked_for_and_at_least_one_record(engine):
    writer = engine.open_writer()
    writer.append(transaction(16, 1, size=200_000))
    fill(writer, 1000, first=2)
    cursor = engine.open_reader().cursor(ORIGIN)
    assert [len(cursor.read(1)), len(cursor.read(1))] == [1, 1]
    assert sum(map(len, cursor.read(10_000))) <= 10_000
    cursor.close()


def test_a_transaction_is_known_again(engine):
    writer = engine.open_writer()
    fill(writer, 500, size=300)
    for lsn in (16, 32, 48, 4000, 7984, 8000, 32):
        assert writer.find(1, lsn) == Held(lsn, lsn + 8, lsn // 16, BASE_TIME + lsn)
    assert writer.find(1, 33) is None
    assert writer.find(1, 8001) is None
    writer.append(transaction(8016))
    assert writer.find(1, 8016) is None  # not durable yet
    writer.sync()
    assert writer.find(1, 8016) is not None


def test_a_transaction_of_an_earlier_epoch_is_known_again(engine):
    writer = engine.open_writer()
    fill(writer, 10)
    writer.append(transaction(176, epoch=2))
    writer.sync()
    places = ((1, 160), (2, 176), (1, 16), (2, 175), (2, 160))
    assert [writer.find(*place) is not None for place in places] == [True, True, True, False, False]


def test_two_epochs_transactions_at_one_lsn_are_not_confused(engine):
    writer = engine.open_writer()
    fill(writer, 10)
    writer.append(epoch_piece(96, 2))
    writer.append(transaction(128, epoch=2, time=BASE_TIME))
    writer.sync()
    assert writer.find(1, 128) == Held(128, 136, 8, BASE_TIME + 128)
    assert writer.find(2, 128) == Held(128, 136, 8, BASE_TIME)
    assert writer.find(2, 112) is None


def test_an_epoch_record_sets_what_may_be_confirmed_back_to_the_switch_point(engine):
    writer = engine.open_writer()
    fill(writer, 10)
    before = writer.bounds()
    assert before.end_lsn == 168
    writer.append(epoch_piece(96, 2))
    bounds = writer.sync()
    assert (bounds.end, bounds.end_lsn, bounds.last_seq) == (Position(2, 96, 0), 96, before.last_seq)
    assert engine.open_reader().bounds() == bounds
    engine.kill(writer)
    again = engine.open_writer()
    assert again.bounds().end_lsn == 96
    again.append(transaction(112, epoch=2))
    assert again.sync().end_lsn == 120


def test_what_may_be_confirmed_is_known_behind_an_epoch_record_that_was_never_published(engine):
    writer = engine.open_writer()
    fill(writer, 10)
    writer.append(epoch_piece(96, 2))
    writer.append(transaction(112, epoch=2))
    writer.append(piece(128, 1, 1, Flag.BEGIN, epoch=2, size=2 << 20))  # makes the writer write before the sync
    engine.kill(writer)
    assert engine.open_writer().bounds().end_lsn in (120, 168)


@pytest.mark.parametrize("between", [epoch_piece(96, 2), progress(640)], ids=["epoch", "progress"])
def test_what_stands_between_transactions_drops_an_unfinished_one(engine, between):
    writer = engine.open_writer()
    fill(writer, 2)
    writer.append(piece(48, 1, 1, Flag.BEGIN))
    writer.append(between)
    bounds = writer.sync()
    assert bounds.end == Position(between.epoch, between.commit_lsn, 0)
    assert commits(read_all(engine.open_reader())) == [16, 32]


def test_a_writer_reads_its_own_records(engine):
    writer = engine.open_writer()
    fill(writer, 1000, size=300)
    found = [check_record(record).commit_lsn for record in writer.records_after(Position(1, 8000, 2))]
    assert found == [i * 16 for i in range(501, 1001)]
    assert list(writer.records_after(Position(1, 16000, 2))) == []


def test_a_closed_log_goes_on_where_it_was(engine):
    writer = engine.open_writer()
    fill(writer, 20)
    before = writer.bounds()
    writer.append(transaction(336))  # closing syncs it
    writer.append(piece(352, 1, 1, Flag.BEGIN))  # closing drops it
    writer.close()
    writer.close()
    again = engine.open_writer()
    assert again.bounds().end == Position(1, 336, 1)
    assert again.bounds().log_id == before.log_id
    fill(again, 5, first=22)
    headers = read_all(engine.open_reader())
    assert commits(headers) == [i * 16 for i in range(1, 27)]
    assert all(a.last_seq < b.first_seq for a, b in itertools.pairwise(headers))


def test_a_killed_log_holds_what_was_synced_and_goes_on(engine):
    writer = engine.open_writer()
    fill(writer, 20)
    synced = writer.bounds()
    writer.append(piece(336, 1, 1, Flag.BEGIN))
    engine.kill(writer)
    again = engine.open_writer()
    assert again.bounds().end == synced.end
    assert again.bounds().end_lsn == synced.end_lsn
    fill(again, 5, first=21)
    headers = read_all(engine.open_reader())
    assert commits(headers) == [i * 16 for i in range(1, 26)]
    assert all(a.last_seq < b.first_seq for a, b in itertools.pairwise(headers))


def test_a_reader_and_its_cursor_live_through_the_writers_death_and_return(engine):
    writer = engine.open_writer()
    reader = engine.open_reader()
    cursor = reader.cursor(ORIGIN)
    seen = []
    for round_ in range(6):
        fill(writer, 30, first=1 + 30 * round_, size=500)
        seen += [r for block in iter(lambda: cursor.read(5000), []) for r in block]
        engine.kill(writer) if round_ % 2 else writer.close()
        writer = engine.open_writer()
        assert reader.bounds() == writer.bounds()
    cursor.close()
    assert len(seen) == 180


def test_seqs_begin_at_the_clock_and_never_fall_behind_the_last_one(engine):
    now = int(time.time() * 1e6)
    writer = engine.open_writer()
    fill(writer, 1)
    first = read_all(engine.open_reader())[0].first_seq
    assert now <= first < now + 60_000_000
    assert first < 1 << 53


def test_schemas_are_numbered_deduplicated_and_durable(engine):
    writer = engine.open_writer()
    one, new = writer.schemas.register(table_schema())
    assert (one.id, new) == (1, True)
    two, new = writer.schemas.register(table_schema(columns=("id", "note")))
    assert (two.id, new) == (2, True)
    assert writer.schemas.register(table_schema(columns=("id", "note")))[0] == two
    reader = engine.open_reader()
    assert reader.schemas.get(2) == two
    assert [schema.id for schema in reader.schemas.all()] == [1, 2]
    with pytest.raises(KeyError):
        reader.schemas.get(3)
    with pytest.raises(UsageError):
        reader.schemas.register(table_schema())
    engine.kill(writer)
    assert engine.open_writer().schemas.register(table_schema(columns=("id", "note")))[0].id == 2


def test_a_layout_that_a_table_comes_back_to_has_the_highest_number(engine):
    writer = engine.open_writer()
    wide, narrow = table_schema(columns=("id", "note")), table_schema()
    given = [writer.schemas.register(layout)[0].id for layout in (wide, narrow, wide, wide, narrow)]
    assert given == [1, 2, 3, 3, 4]
    assert writer.schemas.register(table_schema("items", 2))[0].id == 5  # of another table
    assert writer.schemas.register(narrow)[0].id == 4
    reader = engine.open_reader()
    assert reader.schemas.get(1).same_layout(reader.schemas.get(3))
    engine.kill(writer)
    assert engine.open_writer().schemas.register(narrow)[0].id == 4


def test_a_schema_whose_record_was_lost_counts_as_new_again(engine):
    writer = engine.open_writer()
    written, _ = writer.schemas.register(table_schema())
    writer.append(schema_piece(16, 0, written))
    writer.sync()
    writer.schemas.register(table_schema("items", 2))
    engine.kill(writer)
    again = engine.open_writer()
    assert again.schemas.register(table_schema()) == (written, False)
    assert again.schemas.register(table_schema("items", 2))[1]
    assert not again.schemas.register(table_schema("items", 2))[1]


def test_trimming_drops_what_is_too_old_and_says_so(engine):
    writer = engine.open_writer()
    fill(writer, 2000, size=300)
    reader = engine.open_reader()
    before = reader.bounds()
    trimmed = writer.trim((BASE_TIME + 16000) / 1e6 + 3600)
    bounds = reader.bounds()
    assert ORIGIN < trimmed == bounds.trimmed < Position(1, 16000, 0)
    assert bounds.bytes < before.bytes
    with pytest.raises(PositionTrimmed):
        reader.cursor(ORIGIN)
    headers = read_all(reader, trimmed)
    assert headers[0].first > trimmed
    assert commits(headers)[-1] == 32000


def test_trimming_by_bytes_leaves_about_that_many(engine):
    engine.retention_bytes = 200_000
    writer = engine.open_writer()
    fill(writer, 2000, size=300)
    writer.trim(0)
    assert writer.bounds().bytes <= 200_000


def test_a_cursor_that_retention_overtakes_is_told(engine):
    writer = engine.open_writer()
    fill(writer, 2000, size=300)
    cursor = engine.open_reader().cursor(ORIGIN)
    cursor.read(1000)
    writer.trim((BASE_TIME + 31000) / 1e6 + 3600)
    with pytest.raises(PositionTrimmed):
        for _ in range(1000):
            assert cursor.read(10_000)
    cursor.close()


def test_a_sync_wakes_a_waiting_reader(engine):
    writer = engine.open_writer()
    reader = engine.open_reader()
    assert not reader.wait(ORIGIN, 0.0)
    woken = []
    thread = threading.Thread(target=lambda: woken.append(reader.wait(ORIGIN, 60)))
    thread.start()
    writer.append(transaction(16))
    writer.sync()
    wait_for(lambda: woken, what="the reader to wake")
    thread.join()
    assert woken == [True]


def test_waiting_survives_a_change_of_writers(engine):
    writer = engine.open_writer()
    reader = engine.open_reader()
    woken = []
    thread = threading.Thread(target=lambda: woken.append(reader.wait(ORIGIN, 60)))
    thread.start()
    engine.kill(writer)
    again = engine.open_writer()
    again.append(transaction(16))
    again.sync()
    wait_for(lambda: woken, what="the reader to wake")
    thread.join()
    assert woken == [True]


def test_one_writer_at_a_time(engine):
    engine.lease_seconds = 10.0
    writer = engine.open_writer()
    with pytest.raises(LogBusy):
        engine.open_writer()
    fill(writer, 1)
    writer.close()
    engine.open_writer()


def test_a_log_belongs_to_one_source(engine):
    engine.open_writer().close()
    with pytest.raises(SourceReplaced, match="belongs"):
        engine.open_writer(SourceIdentity("9999", SOURCE.database, SOURCE.slot))
    assert engine.open_writer().bounds().end == ORIGIN
    assert engine.open_reader().source == SOURCE


def test_a_place_without_a_log_says_so(engine):
    with pytest.raises(LogMissing):
        engine.open_reader()
