"""The intake: whatever is streamed, aborted, prepared and interleaved, the log is the one of whole transactions."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support import pgoutput_bytes as made
from support.memory_log import MemoryLog
from walbus.capture import spool as spool_module
from walbus.capture.assembly import Assembler
from walbus.capture.intake import Intake
from walbus.capture.prepared import PREPARED_SUFFIX, PreparedStore
from walbus.capture.repeats import Repeats
from walbus.capture.spool import OPEN_SUFFIX, Spool
from walbus.capture.spool_files import SpoolFiles
from walbus.capture.timelines import Timelines
from walbus.errors import DamagedRecord, LogFull, ProtocolError, SourceGap, SourceReplaced, SourceUnavailable
from walbus.log import append_to
from walbus.native import new_core, replay_rows
from walbus.records import Kind, Op, body_of, iter_changes, origin_of, read_header
from walbus.values import row_texts

T, U = 5000, 5001
TYPES = {23: "int4", 25: "text"}
COLUMNS = [("id", 23, 1), ("a", 25, 0)]
LAYOUT = made.relation(T, "public.t", COLUMNS)
OTHER = made.relation(U, "public.u", COLUMNS)


class Files(SpoolFiles):
    """Files on a disk that may be full."""

    full = False

    def _pwrite(self, fd, data, offset):
        if self.full:
            super()._pwrite(fd, data[: len(data) // 2], offset)
            raise OSError(28, "No space left on device")
        return super()._pwrite(fd, data, offset)


class Rig:
    """An intake on a log in memory and a spool in a folder."""

    def __init__(self, folder, log=None, *, memory_bytes=1 << 20):
        self.log = log or MemoryLog()
        self.files = Files(Path(folder))
        bounds = self.log.bounds()
        self.assembler = Assembler(
            core=new_core(),
            schemas=self.log.schemas,
            repeats=Repeats(self.log.find, end=bounds.end),
            builtin_types=TYPES,
            primary_key=lambda oid, columns: frozenset({"id"}),
            timelines=Timelines(1),
            near_xid=700,
            bound=bounds.end_lsn,
        )
        spool = Spool(self.files, durable=True, memory_bytes=memory_bytes)
        self.intake = Intake(self.assembler, spool, PreparedStore(self.files, "log"), replay_rows=replay_rows)

    def feed(self, *messages, budget=1 << 30):
        for message in messages:
            self.intake.feed(b"frame" + message, 5)
            while self.intake.replaying:
                self.intake.replay(budget)
                self.append()
        self.append()

    def append(self):
        for complete in self.assembler.take():
            append_to(self.log, complete)

    def sync(self):
        self.append()
        bounds = self.log.sync()
        self.intake.durable(bounds.end_lsn)
        return bounds

    def reconnect(self):
        bounds = self.sync()
        self.assembler.reconnected(Timelines(1), 700, end=bounds.end, bound=bounds.end_lsn)
        self.intake.reconnected()

    def records(self, *messages, budget=1 << 30):
        self.feed(*messages, budget=budget)
        self.sync()
        return self.log.durable

    def names(self, suffix):
        return self.files.names(suffix)


@pytest.fixture
def rig(tmp_path):
    return Rig(tmp_path)


def block(xid, *messages, first=True):
    """A block; messages are of protocol 1 with their own xid, or bytes as they are."""
    inside = [made.in_block(*m) if isinstance(m, tuple) else m for m in messages]
    return [made.stream_start(xid, first=first), *inside, made.stream_stop()]


def whole(lsn, *messages, xid=700):
    return [made.begin(lsn, xid), *messages, made.commit(lsn)]


def row(key, text="x"):
    return made.insert(T, str(key), text)


def changes(records):
    pairs = [(read_header(record), record) for record in records]
    return [c for h, r in pairs if h.kind == Kind.TRANSACTION for c in iter_changes(body_of(r, h))]


def keys(rig):
    found = changes(rig.log.durable)
    return [row_texts(rig.log.schemas.get(c.schema_id), c.after)[0] for c in found if c.op == Op.INSERT]


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
    assert rig.intake.whole_until == 1000
    rig.reconnect()
    rig.records(*whole(1000, LAYOUT, note))
    assert [c.op for c in changes(rig.log.durable)] == [Op.MESSAGE]


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


def test_a_prepared_transaction_without_changes_may_be_sent_again_too(rig):
    rig.feed(made.begin_prepare(700, "g", 500), made.prepare(700, "g", 500), made.commit_prepared(700, "g", 1000))
    assert len(rig.names(PREPARED_SUFFIX)) == 1  # the log is not past it
    rig.log.append(rig.assembler.progress(1))
    rig.sync()
    assert rig.names(PREPARED_SUFFIX) == []
    rig.reconnect()
    rig.feed(made.commit_prepared(700, "g", 1000))


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


# Random interleavings against a model.


@dataclass
class Run:
    """One transaction of a random workload: what is still to be sent, and what should come out."""

    xid: int
    steps: list
    end: str
    streamed: bool
    first: bool = True
    told: bool = False
    kept: list = field(default_factory=list)
    stack: list = field(default_factory=list)
    changes: list = field(default_factory=list)


def subtransactions():
    """Steps: a row by the path of savepoints that surround it, or the rollback of the innermost."""
    step = st.sampled_from(["row", "row", "row", "truncate", "savepoint", "release", "rollback"])
    return st.lists(step, max_size=12)


def workload():
    transaction = st.tuples(
        subtransactions(), st.sampled_from(["commit", "commit", "abort", "prepare", "forget"]), st.booleans()
    )
    return st.tuples(st.lists(transaction, min_size=1, max_size=6), st.randoms(use_true_random=False))


class Simulation:
    """A server: sends transactions in blocks of random length in a random order; and the model of what commits."""

    def __init__(self, transactions, dice):
        self.dice = dice
        self.sent, self.plain = [], []
        self.lsn, self.next_xid, self.counter = 1000, 700, 0
        self.told = False
        self.plain_told = False
        self.waiting = [Run(self._xid(), list(steps), end, streamed) for steps, end, streamed in transactions]
        self.prepared = []
        while self.waiting or self.prepared:
            self._turn()

    def _xid(self):
        self.next_xid += 1
        return self.next_xid

    def _place(self):
        self.lsn += 100
        return self.lsn

    def _turn(self):
        if self.prepared and (not self.waiting or self.dice.random() < 0.4):
            self._end_prepared(self.prepared.pop(self.dice.randrange(len(self.prepared))))
            return
        run = self.dice.choice(self.waiting)
        if run.streamed:
            self._stream(run)
        else:
            self._send_whole(run)

    def _change(self, step):
        self.counter += 1
        return row(self.counter) if step == "row" else made.truncate(T)

    # Streamed.

    def _stream(self, run):
        """One block, and the aborts behind it; or the end."""
        if not run.steps:
            self._end(run)
            return
        inside, behind = [], []
        for _ in range(self.dice.randrange(1, 5)):
            if not run.steps:
                break
            step = run.steps.pop(0)
            if step in ("row", "truncate"):
                xid = run.stack[-1][0] if run.stack else run.xid
                if not run.told:
                    inside.append((xid, LAYOUT))
                    run.told = True
                change = self._change(step)
                inside.append((xid, change))
                run.changes.append((xid, change))
            elif step == "savepoint":
                run.stack.append((self._xid(), []))
            elif step == "release" and run.stack:
                xid, children = run.stack.pop()
                if run.stack:
                    run.stack[-1][1].extend([xid, *children])
            elif step == "rollback" and run.stack:
                xid, children = run.stack.pop()
                behind = [*children, xid]
                gone = set(behind)
                run.changes = [(x, c) for x, c in run.changes if x not in gone]
                break
        self.sent += block(run.xid, *inside, first=run.first)
        run.first = False
        self.sent += [made.stream_abort(run.xid, xid) for xid in behind]
        run.told = run.told and not behind  # the server tells layouts again behind an abort

    def _end(self, run):
        self.waiting.remove(run)
        if run.first:
            return
        run.kept = [change for _, change in run.changes]
        if run.end == "abort":
            self.sent.append(made.stream_abort(run.xid, run.xid))
        elif run.end == "commit":
            lsn = self._place()
            self.sent.append(made.stream_commit(run.xid, lsn))
            self._committed(run, lsn)
        else:
            self.sent.append(made.stream_prepare(run.xid, f"g{run.xid}", self._place()))
            self.prepared.append(run)

    # Whole.

    def _send_whole(self, run):
        self.waiting.remove(run)
        run.kept = [self._change(step) for step in run.steps if step in ("row", "truncate")]
        layout = [] if self.told or not run.kept else [LAYOUT]
        if run.end in ("prepare", "forget"):
            lsn = self._place()
            gid = f"g{run.xid}"
            self.sent += [made.begin_prepare(run.xid, gid, lsn), *layout, *run.kept, made.prepare(run.xid, gid, lsn)]
            self.prepared.append(run)
        elif run.end == "commit":
            lsn = self._place()
            self.sent += whole(lsn, *layout, *run.kept, xid=run.xid)
            self._committed(run, lsn)
        else:
            return
        self.told = self.told or bool(layout)

    def _end_prepared(self, run):
        lsn, gid = self._place(), f"g{run.xid}"
        if run.end == "prepare":
            self.sent.append(made.commit_prepared(run.xid, gid, lsn))
            self._committed(run, lsn)
        else:
            self.sent.append(made.rollback_prepared(run.xid, gid, lsn))

    def _committed(self, run, lsn):
        layout = [] if self.plain_told or not run.kept else [LAYOUT]
        self.plain_told = self.plain_told or bool(layout)
        self.plain += whole(lsn, *layout, *run.kept, xid=run.xid)


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(workload(), st.sampled_from([40, 200, 1 << 20]), st.sampled_from([1, 60, 1 << 20]))
def test_any_interleaving_gives_the_log_of_whole_transactions(drawn, memory_bytes, budget):
    simulation = Simulation(*drawn)
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
        streamed = Rig(one, memory_bytes=memory_bytes)
        plain = Rig(two)
        assert streamed.records(*simulation.sent, budget=budget) == plain.records(*simulation.plain)
        assert streamed.names(OPEN_SUFFIX) == []
