"""The intake: whatever is streamed, aborted, prepared and interleaved, the log is the one of whole transactions."""

from __future__ import annotations

import pytest

from support import pgoutput_bytes as made
from support.intake_rig import COLUMNS, LAYOUT, OTHER, Rig, T, U, block, changes, keys, row, whole
from walbus.capture import intake as intake_module
from walbus.capture import spool as spool_module
from walbus.capture.prepared import PREPARED_SUFFIX, PreparedStore
from walbus.capture.spool import OPEN_SUFFIX
from walbus.capture.spool_files import SpoolFiles
from walbus.errors import DamagedRecord, LogFull, ProtocolError, SourceGap, SourceReplaced, SourceUnavailable
from walbus.records import Kind, Op, origin_of, read_header


@pytest.fixture
def rig(tmp_path):
    return Rig(tmp_path)


def test_a_streamed_transaction_becomes_the_record_of_a_whole_one(rig, tmp_path):
    streamed = rig.records(
        *block(700, (700, LAYOUT), (700, row(1)), (701, row(2))),
        *block(700, (700, row(3)), first=False),
        made.stream_commit(700, 1000),
    )
    plain = Rig(tmp_path / "plain").records(*whole(1000, LAYOUT, row(1), row(2), row(3)))
    assert streamed == plain


def test_what_an_aborted_subtransaction_changed_is_left_out_and_nothing_else(rig):
    rig.records(
        *block(700, (701, LAYOUT), (701, row(1)), (702, row(2)), (700, row(3))),
        made.stream_abort(700, 702),
        *block(700, (703, row(4)), (700, row(5)), first=False),
        made.stream_abort(700, 703, (900, made.POSTGRES_EPOCH)),
        made.stream_commit(700, 1000),
    )
    assert keys(rig) == ["1", "3", "5"]


def test_a_layout_told_in_an_aborted_subtransaction_serves_the_rows_behind_it(rig):
    rig.records(
        *block(700, (701, LAYOUT), (701, row(1))),
        made.stream_abort(700, 701),
        *block(700, (700, row(2)), first=False),
        made.stream_commit(700, 1000),
    )
    assert keys(rig) == ["2"]


def test_an_aborted_transaction_leaves_nothing_in_log_or_spool(rig):
    rig.records(*block(700, (700, LAYOUT), (700, row(1))), made.stream_abort(700, 700))
    assert (rig.log.durable, rig.intake.spooled_bytes) == ([], 0)


def test_an_abort_of_what_was_never_streamed_is_none_of_our_business(rig):
    rig.feed(made.stream_abort(700, 700), made.stream_abort(700, 701), *whole(1000, LAYOUT, row(1)))
    rig.sync()
    assert keys(rig) == ["1"]


@pytest.mark.parametrize("messages", [[], [(700, LAYOUT)], [(701, LAYOUT), (701, row(1))]])
def test_a_transaction_that_turns_out_empty_only_moves_the_bound(rig, messages):
    rig.records(*block(700, *messages), made.stream_abort(700, 701), made.stream_commit(700, 1000, 1048))
    assert rig.log.durable == []
    assert rig.assembler.bound == 1048
    assert rig.assembler.progress(1).commit_lsn == 1048


def test_transactions_between_the_blocks_come_first_and_blocks_of_many_may_alternate(rig):
    rig.records(
        *block(700, (700, LAYOUT), (700, row(1))),
        *whole(800, LAYOUT, row(2), xid=702),
        *block(701, (701, LAYOUT), (701, row(3))),
        *block(700, (700, row(4)), first=False),
        made.stream_commit(701, 900),
        *whole(950, row(5), xid=703),
        made.stream_commit(700, 1000),
    )
    assert keys(rig) == ["2", "3", "5", "1", "4"]


def test_the_origin_of_a_streamed_transaction_is_kept(rig):
    rig.records(*block(700, made.origin("far"), (700, LAYOUT), (700, row(1))), made.stream_commit(700, 1000))
    (record,) = [r for r in rig.log.durable if read_header(r).kind == Kind.TRANSACTION]
    assert origin_of(record, read_header(record)) == b"far"


def test_truncate_and_messages_in_blocks_keep_flags_and_contents(rig):
    truncate = made.truncate(T, cascade=True, restart=True)
    note = made.message(500, "outbox", b"hello", transactional=True)
    rig.records(*block(700, (700, LAYOUT), (701, truncate), (700, note)), made.stream_commit(700, 1000))
    emptied, told = changes(rig.log.durable)
    assert (emptied.op, emptied.flags) == (Op.TRUNCATE, 48)
    assert (told.op, told.key, told.after) == (Op.MESSAGE, b"outbox", b"hello")


def test_a_lone_message_stands_by_itself_before_the_block_that_surrounds_it(rig):
    lone = made.message(500, "p", b"lone", transactional=False)
    second = made.message(600, "p", b"2", transactional=False)
    rig.records(*block(700, (700, LAYOUT), (700, row(1)), (700, lone)), second)
    assert [c.after for c in changes(rig.log.durable)] == [b"lone", b"2"]
    rig.records(made.stream_commit(700, 1000))
    assert [c.op for c in changes(rig.log.durable)] == [Op.MESSAGE, Op.MESSAGE, Op.INSERT]


def test_a_message_that_a_rolled_back_savepoint_may_have_written_is_asked_for_again_unstreamed(rig):
    note = made.message(500, "outbox", b"hello", transactional=True)
    rig.feed(*block(700, (700, LAYOUT), (700, note), (701, row(1))), made.stream_abort(700, 701))
    with pytest.raises(SourceUnavailable, match="sent again unstreamed"):
        rig.feed(made.stream_commit(700, 1000))
    assert (rig.intake.whole_until, rig.intake.whole_next) == (1000, True)
    rig.reconnect()
    rig.records(*whole(1000, LAYOUT, note))
    assert [c.op for c in changes(rig.log.durable)] == [Op.MESSAGE]
    rig.reconnect()  # before that was confirmed: it comes once more, streamed, and the log has it
    rig.records(*block(700, (700, LAYOUT), (700, note), (701, row(1))), made.stream_abort(700, 701))
    rig.records(made.stream_commit(700, 1000), *whole(2000, LAYOUT, row(9), xid=702))
    assert keys(rig) == ["9"]


def test_more_rolled_back_savepoints_than_memory_should_hold_are_left_to_the_server(rig, monkeypatch):
    monkeypatch.setattr(intake_module, "MOST_ABORTED", 3)
    rig.feed(*block(700, (700, LAYOUT), (700, row(1))), *[made.stream_abort(700, 701 + n) for n in range(2)])
    rig.feed(*block(900, (900, LAYOUT), (900, row(2))), *[made.stream_abort(900, 901 + n) for n in range(9)])
    with pytest.raises(SourceUnavailable, match="900 rolled back more savepoints than are kept"):
        rig.feed(made.stream_commit(900, 800))
    rig.records(made.stream_commit(700, 1000))
    assert keys(rig) == ["1"]
    rig.reconnect()
    rig.records(*block(902, (902, LAYOUT), (902, row(3))), made.stream_abort(902, 903), made.stream_commit(902, 2000))
    assert keys(rig) == ["1", "3"]


def test_as_many_rolled_back_savepoints_as_are_kept_are_kept_and_those_of_whoever_ended_do_not_count(rig, monkeypatch):
    monkeypatch.setattr(intake_module, "MOST_ABORTED", 3)
    for xid in (700, 710, 720):
        rig.feed(*block(xid, (xid, LAYOUT), (xid, row(xid)), *((xid + n, row(xid + n)) for n in (1, 2, 3))))
        rig.feed(*(made.stream_abort(xid, xid + n) for n in (1, 2, 3)))
        rig.records(made.stream_commit(xid, 10 * xid))
    assert keys(rig) == ["700", "710", "720"]


def test_what_is_left_to_the_server_makes_room_for_the_savepoints_of_others(rig, monkeypatch):
    monkeypatch.setattr(intake_module, "MOST_ABORTED", 2)
    rig.feed(*block(700, (700, LAYOUT), (700, row(1))), *(made.stream_abort(700, 700 + n) for n in (1, 2, 3)))
    rig.feed(*block(800, (800, LAYOUT), (800, row(2)), (801, row(3))), made.stream_abort(800, 801))
    rig.records(made.stream_commit(800, 1000))
    assert keys(rig) == ["2"]


def test_a_streamed_transaction_in_doubt_is_not_prepared_but_asked_for_again(rig):
    note = made.message(400, "outbox", b"hello", transactional=True)
    rig.feed(*block(700, (700, LAYOUT), (700, note), (701, row(1))), made.stream_abort(700, 701))
    with pytest.raises(SourceUnavailable, match="sent again unstreamed"):
        rig.feed(made.stream_prepare(700, "g", 500))
    assert (rig.intake.whole_until, rig.intake.whole_next) == (500, True)
    assert rig.names(PREPARED_SUFFIX) == []


def test_a_layout_told_inside_a_transaction_that_the_log_has_serves_the_rows_behind_it(rig, monkeypatch):
    """The server tells it no more once that transaction has committed, and of a repeat only the beginning is read."""
    monkeypatch.setattr(spool_module, "READ_BYTES", 64)
    streamed = [
        *block(700, (700, LAYOUT), (700, row(1, "x" * 500)), (700, OTHER), (700, made.insert(U, "2", "x"))),
        made.stream_commit(700, 1000),
    ]
    rig.records(*streamed)
    rig.reconnect()
    rig.records(*streamed, *whole(2000, row(3), made.insert(U, "4", "x"), xid=701))
    assert keys(rig) == ["1", "2", "3", "4"]


def test_messages_behind_the_rolled_back_savepoint_are_clear(rig):
    note = made.message(500, "outbox", b"hello", transactional=True)
    rig.records(
        *block(700, (700, LAYOUT), (701, row(1))),
        made.stream_abort(700, 701),
        *block(700, (700, note), first=False),
        made.stream_commit(700, 1000),
    )
    assert [c.op for c in changes(rig.log.durable)] == [Op.MESSAGE]


def test_a_replay_does_not_set_a_newer_layout_back(rig):
    """Its own layout is older than the one that was told since; the server does not tell that one again."""
    narrow = made.relation(T, "public.t", COLUMNS[:1])
    rig.records(
        *block(700, (700, LAYOUT), (700, row(1))),
        *whole(800, narrow, made.insert(T, "2"), xid=701),
        made.stream_commit(700, 900),
        *whole(1000, made.insert(T, "3"), xid=702),
    )
    assert keys(rig) == ["2", "1", "3"]


def test_what_a_streamed_transaction_told_counts_for_those_behind_its_commit(rig):
    rig.records(*block(700, (700, LAYOUT), (700, row(1))), made.stream_commit(700, 900), *whole(1000, row(2), xid=701))
    assert keys(rig) == ["1", "2"]


@pytest.mark.parametrize("budget", [1, 50, 1 << 20])
def test_a_replay_in_parts_gives_the_same_log(rig, tmp_path, budget):
    rows = [(700, row(n)) for n in range(300)]
    feed = [*block(700, (700, LAYOUT), *rows), made.stream_commit(700, 1000)]
    assert rig.records(*feed, budget=budget) == Rig(tmp_path / "2").records(*feed)


def test_nothing_is_fed_and_no_keepalive_heeded_during_a_replay_or_a_block(rig):
    rig.feed(made.stream_start(700, first=True))
    rig.intake.keepalive(5000)
    rig.feed(made.in_block(700, LAYOUT), made.in_block(700, row(1)), made.stream_stop())
    rig.intake.feed(made.stream_commit(700, 1000))
    rig.intake.keepalive(5000)
    with pytest.raises(ValueError, match="into a replay"):
        rig.intake.feed(made.begin(2000, 701))
    assert rig.assembler.bound == 0
    assert not rig.intake.plain
    rig.intake.replay(1 << 20)
    assert rig.intake.plain
    rig.intake.keepalive(5000)
    assert rig.assembler.bound == 5000


def test_a_transaction_that_the_log_has_is_dropped_without_reading_its_spool_to_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(spool_module, "READ_BYTES", 1000)
    rig = Rig(tmp_path)
    feed = [*block(700, (700, LAYOUT), *[(700, row(n)) for n in range(2000)]), made.stream_commit(700, 1000)]
    before = list(rig.records(*feed))
    rig.reconnect()
    rig.feed(*feed[:-1])
    rig.intake.feed(feed[-1])
    rig.intake.replay(2000)
    assert not rig.intake.replaying
    rig.sync()
    assert (rig.log.durable, rig.assembler.repeated) == (before, 1)
    rig.records(*whole(2000, row(1), xid=701))  # the layout that it told counts all the same


def test_another_transaction_at_a_place_that_the_log_has_is_a_divergence(rig):
    rig.records(*block(700, (700, LAYOUT), (700, row(1))), made.stream_commit(700, 1000))
    rig.reconnect()
    rig.feed(*block(701, (701, LAYOUT), (701, row(1))))
    with pytest.raises(SourceReplaced):
        rig.feed(made.stream_commit(701, 1000))


def test_a_new_connection_begins_with_an_empty_spool(rig):
    rig.feed(*block(700, (700, LAYOUT), *[(700, row(n, "x" * 1000)) for n in range(600)]))
    assert rig.names(OPEN_SUFFIX)
    rig.reconnect()
    assert (rig.names(OPEN_SUFFIX), rig.intake.spooled_bytes) == ([], 0)
    rig.records(*block(700, (700, LAYOUT), (700, row(1))), made.stream_commit(700, 1000))
    assert keys(rig) == ["1"]


STARTED = made.stream_start(700, first=True)
PREPARING = made.begin_prepare(700, "g", 900)


@pytest.mark.parametrize(
    ("before", "message"),
    [
        ([], made.stream_stop()),
        ([], made.stream_start(700, first=False)),
        (block(700), made.stream_start(700, first=True)),
        ([STARTED], made.stream_start(701, first=True)),
        ([STARTED], made.stream_commit(700, 1000)),
        ([STARTED], made.begin(1000, 701)),
        ([STARTED], b""),
        ([STARTED], b"I\0\0"),
        ([STARTED], b"R\0\0"),
        ([STARTED], b"Eyes"),
        ([STARTED], b"z"),
        ([], made.stream_commit(700, 1000)),
        ([], made.stream_prepare(700, "g", 1000)),
        ([], made.prepare(700, "g", 1000)),
        ([PREPARING], made.prepare(701, "g", 1000)),
        ([PREPARING], made.begin(1000, 701)),
        ([PREPARING], made.stream_start(701, first=True)),
        ([PREPARING], row(1)),
        ([PREPARING], b"I\0"),
        ([PREPARING], b"T\0\0"),
        ([PREPARING], b""),
        ([made.begin(1000, 701)], made.stream_start(700, first=True)),
        ([made.begin(1000, 701)], made.stream_commit(700, 1000)),
        ([], b""),
        ([], b"z"),
    ],
)
def test_a_message_that_makes_no_sense_at_its_place_is_refused(rig, before, message):
    rig.feed(*before)
    with pytest.raises(ProtocolError) as caught:
        rig.feed(message)
    assert caught.value.where


# A full disk.


def test_a_full_disk_takes_nothing_of_a_message_and_the_same_one_goes_on_later(tmp_path):
    rig = Rig(tmp_path, memory_bytes=1000)
    messages = [*block(700, (700, LAYOUT), *[(700, row(n, "x" * 900)) for n in range(700)])]
    refused = 0
    for number, message in enumerate(messages):
        rig.files.full = number % 3 == 0
        try:
            rig.feed(message)
        except LogFull as full:
            assert str(tmp_path) in str(full)
            refused += 1
            rig.files.full = False
            rig.feed(message)
    rig.files.full = False
    rig.records(made.stream_commit(700, 1000))
    assert refused
    assert keys(rig) == [str(n) for n in range(700)]


def test_thousands_of_open_transactions_stay_in_the_bound_of_memory(tmp_path):
    rig = Rig(tmp_path, memory_bytes=50_000)
    for xid in range(700, 1700):
        rig.feed(*block(xid, (xid, LAYOUT), (xid, row(xid, "y" * 200))))
        assert rig.intake._spool.memory <= 50_000
    rig.records(*[made.stream_commit(xid, xid * 10) for xid in range(700, 1700)])
    assert keys(rig) == [str(xid) for xid in range(700, 1700)]
    assert rig.names(OPEN_SUFFIX) == []


# Prepared transactions.

PREPARED = [made.begin_prepare(700, "g", 500), LAYOUT, row(1), row(2), made.prepare(700, "g", 500)]


def test_what_was_prepared_enters_the_log_at_its_commit_with_that_commits_place_and_time(rig, tmp_path):
    rig.records(*PREPARED, *whole(800, LAYOUT, row(9), xid=701))
    assert keys(rig) == ["9"]
    rig.records(made.commit_prepared(700, "g", 1000, made.POSTGRES_EPOCH + 7))
    assert keys(rig) == ["9", "1", "2"]
    last = read_header(rig.log.durable[-1])
    assert (last.commit_lsn, last.end_lsn, last.commit_time, last.xid) == (1000, 1048, made.POSTGRES_EPOCH + 7, 700)


def test_what_was_prepared_is_found_by_the_next_process_with_its_layouts(rig, tmp_path):
    rig.records(*whole(400, LAYOUT, row(0), xid=699), *[m for m in PREPARED if m != LAYOUT])
    again = Rig(tmp_path, rig.log.crashed())
    again.records(made.commit_prepared(700, "g", 1000))
    assert keys(again) == ["0", "1", "2"]


def test_a_streamed_transaction_is_prepared_without_what_it_rolled_back(rig, tmp_path):
    rig.feed(
        *block(700, made.origin("far"), (700, LAYOUT), (701, row(1)), (700, row(2))),
        made.stream_abort(700, 701),
        *block(700, (700, row(3)), first=False),
        made.stream_prepare(700, "g", 500),
    )
    assert rig.names(OPEN_SUFFIX) == []
    again = Rig(tmp_path, rig.log.crashed())
    again.records(made.commit_prepared(700, "g", 1000))
    assert keys(again) == ["2", "3"]
    assert origin_of(again.log.durable[-1], read_header(again.log.durable[-1])) == b"far"


def test_a_prepared_transaction_goes_once_the_log_is_durable_past_its_end(rig):
    rig.feed(*PREPARED, made.commit_prepared(700, "g", 1000))
    assert len(rig.names(PREPARED_SUFFIX)) == 1
    rig.sync()
    assert (rig.names(PREPARED_SUFFIX), rig.intake.spooled_bytes) == ([], 0)


def test_a_rollback_of_what_was_prepared_leaves_nothing(rig):
    rig.records(*PREPARED, made.rollback_prepared(700, "g", 900), *whole(1000, LAYOUT, row(9), xid=701))
    assert (keys(rig), rig.names(PREPARED_SUFFIX)) == (["9"], [])
    rig.feed(made.rollback_prepared(700, "g", 900), made.rollback_prepared(5, "never sent", 950))


def test_a_commit_of_what_is_not_in_the_spool_is_a_gap(rig):
    rig.records(*whole(800, LAYOUT, row(1), xid=701))
    with pytest.raises(SourceGap, match="not in the spool"):
        rig.feed(made.commit_prepared(700, "g", 1000))


def test_a_prepared_commit_that_is_sent_again_is_dropped_with_and_without_its_spool(rig, tmp_path):
    rig.records(*PREPARED, made.commit_prepared(700, "g", 1000))
    rig.reconnect()
    rig.records(made.commit_prepared(700, "g", 1000))  # the slot went back behind its PREPARE alone
    rig.reconnect()
    rig.records(*PREPARED, made.commit_prepared(700, "g", 1000))  # and before it
    assert keys(rig) == ["1", "2"]
    assert rig.names(PREPARED_SUFFIX) == []


def test_the_commit_of_the_logs_last_transaction_is_known_again_without_its_changes(rig):
    rig.records(*PREPARED, made.commit_prepared(700, "g", 1000))
    rig.reconnect()
    rig.assembler.owe(rig.log.find(1, 1000))
    with pytest.raises(SourceReplaced):
        rig.records(*whole(2000, LAYOUT, row(9), xid=701))
    rig.reconnect()
    rig.assembler.owe(rig.log.find(1, 1000))
    rig.records(made.commit_prepared(700, "g", 1000), *whole(2000, LAYOUT, row(9), xid=701))
    assert keys(rig) == ["1", "2", "9"]


def test_a_prepared_transaction_without_changes_may_be_sent_again_too(rig):
    rig.feed(made.begin_prepare(700, "g", 500), made.prepare(700, "g", 500), made.commit_prepared(700, "g", 1000))
    assert len(rig.names(PREPARED_SUFFIX)) == 1  # the log is not past it
    rig.log.append(rig.assembler.progress(1))
    rig.sync()
    assert rig.names(PREPARED_SUFFIX) == []
    rig.reconnect()
    rig.feed(made.commit_prepared(700, "g", 1000))


def test_an_end_that_a_failover_lost_does_not_take_what_is_still_prepared(rig):
    """The new history passes the LSN where the old one rolled it back, and commits it later."""
    rig.feed(*PREPARED, made.rollback_prepared(700, "g", 1500))
    rig.reconnect()
    rig.records(*whole(2000, LAYOUT, row(9), xid=701))
    rig.records(made.commit_prepared(700, "g", 3000))
    assert keys(rig) == ["9", "1", "2"]
    assert rig.names(PREPARED_SUFFIX) == []


def test_the_spools_folder_is_found_again_after_a_power_loss(tmp_path):
    synced = []

    class Watched(SpoolFiles):
        def _sync_folder(self, folder):
            synced.append(folder)
            super()._sync_folder(folder)

    Watched(tmp_path / "data" / "spool")
    assert {tmp_path, tmp_path / "data"} <= set(synced)


def test_a_full_disk_at_a_prepare_takes_nothing_and_it_goes_on_later(rig):
    rig.feed(*PREPARED[:-1])
    rig.files.full = True
    with pytest.raises(LogFull):
        rig.feed(PREPARED[-1])
    assert rig.names(PREPARED_SUFFIX) == []
    rig.files.full = False
    rig.records(PREPARED[-1], made.commit_prepared(700, "g", 1000))
    assert keys(rig) == ["1", "2"]


@pytest.mark.parametrize("cut", [1, 20, 100])
def test_a_prepared_file_that_was_cut_is_refused_by_name(rig, tmp_path, cut):
    rig.feed(*PREPARED)
    (path,) = tmp_path.glob(f"*{PREPARED_SUFFIX}")
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(DamagedRecord, match=path.name):
        Rig(tmp_path)


def test_every_flipped_byte_of_a_prepared_file_is_noticed_before_its_commit(rig, tmp_path):
    rig.feed(*PREPARED)
    (path,) = tmp_path.glob(f"*{PREPARED_SUFFIX}")
    good = path.read_bytes()
    for at in range(len(good)):
        path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        with pytest.raises((DamagedRecord, ProtocolError)):
            broken = Rig(tmp_path)
            broken.feed(made.commit_prepared(700, "g", 1000))
        path.write_bytes(good)


def test_prepared_transactions_of_another_log_are_removed(rig, tmp_path):
    rig.feed(*PREPARED)
    assert PreparedStore(rig.files, "another")._held == {}
    assert rig.names(PREPARED_SUFFIX) == []
