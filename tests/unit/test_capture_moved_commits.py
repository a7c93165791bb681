"""A transaction whose commit record begins where a net difference stands: moved behind it, and known again there."""

from __future__ import annotations

import pytest

from support import cores
from support import pgoutput_bytes as made
from support.captured_pgoutput import BUILTIN_TYPES
from support.memory_log import MemoryLog
from support.net_differences import OID, change, difference
from walbus.capture.assembly import Assembler
from walbus.capture.difference_file import About, write_difference
from walbus.capture.handover import Handover
from walbus.capture.places import GAP
from walbus.capture.repeats import Repeats
from walbus.capture.timelines import Timelines
from walbus.errors import SourceReplaced
from walbus.native.interface import PIECE_CHANGES
from walbus.position import Position
from walbus.records import Flag, Kind, Op, read_header

T = OID
B = 0x2000  #: the log is complete up to here
LAYOUT = made.relation(T, "public.t", [("id", 23, 1), ("plain", 23, 0), ("big", 25, 0)])

chosen = [cores.implementation("pure")]


@pytest.fixture(params=cores.NAMES, scope="module", autouse=True)
def implementation(request):
    chosen[0] = cores.implementation(request.param)


class Rig:
    """Capture up to B, and the folder of the differences."""

    def __init__(self, folder, log=None, timelines=None):
        self.folder = folder
        self.log = log or MemoryLog()
        bounds = self.log.bounds()
        self.assembler = Assembler(
            core=chosen[0].new_core(),
            schemas=self.log.schemas,
            repeats=Repeats(self.log.find, end=bounds.end, trimmed=bounds.trimmed),
            builtin_types=BUILTIN_TYPES,
            primary_key=lambda oid, columns: frozenset({"id"}),
            timelines=timelines or Timelines(1),
            near_xid=700,
            bound=bounds.end_lsn,
            last_commit_time=bounds.commit_time,
        )
        self.handover = Handover(folder, self.log)

    def feed(self, *messages):
        for message in messages:
            self.assembler.feed(message)
        self.log.write(self.assembler.take())
        self.log.sync()

    def commit(self, lsn, xid, *rows):
        self.feed(made.begin(lsn, xid), LAYOUT, *rows, made.commit(lsn, lsn + 48))

    def idle(self, lsn):
        """A keepalive, and the progress that it gives."""
        self.assembler.keepalive(lsn)
        while (piece := self.assembler.progress(1)) is not None:
            self.log.append(piece)
        self.log.sync()

    def give(self, number, changes):
        about = About(
            number=number, log_id="memory", table="public.t", oid=T, schemas=(1,),
            after=str(self.log.bounds().end), reason="rewritten",
        )  # fmt: skip
        write_difference(self.folder, about, changes)

    def take(self):
        self.handover.look()
        while not self.handover.prepare():
            pass
        place = self.assembler.difference_place()
        assert place is not None
        self.handover.begin(place, 1)
        while (end := self.handover.write(1)) is None:
            pass
        self.assembler.difference_taken(end)
        self.log.sync()
        self.handover.finish()
        return end

    def transactions(self):
        """(commit LSN, xid, changes, whether it is a difference) of each."""
        found, count = [], 0
        for record in self.log.durable:
            header = read_header(record)
            if header.kind == Kind.TRANSACTION:
                count += header.count
                if header.flags & Flag.END:
                    found.append((header.commit_lsn, header.xid, count, bool(header.flags & Flag.NET)))
                    count = 0
        return found


@pytest.fixture
def rig(tmp_path):
    rig = Rig(tmp_path)
    rig.commit(0x1000, 700, made.insert(T, "1", "0", None))
    rig.idle(B)
    return rig


DIFFERENCE = difference({1: (0, None)}, {1: (1, None), 2: (0, None)})


def test_the_next_commit_may_begin_where_the_difference_stands(rig):
    rig.give(1, DIFFERENCE)
    assert rig.take() == Position(1, B + 1, 2)
    rig.commit(B, 701, made.insert(T, "3", "0", None))
    rig.commit(B + 48, 702, made.insert(T, "4", "0", None))
    assert rig.transactions() == [
        (0x1000, 700, 1, False),
        (B + 1, 0, 2, True),
        (B + GAP, 701, 1, False),
        (B + 48, 702, 1, False),
    ]
    assert rig.log.bounds().end_lsn == B + 96


def test_a_moved_transaction_is_known_when_it_comes_again(rig, tmp_path):
    rig.give(1, DIFFERENCE)
    rig.take()
    rig.commit(B, 701, made.insert(T, "3", "0", None))
    before = rig.transactions()
    again = Rig(tmp_path, rig.log.crashed())
    again.assembler.owe(again.log.find(1, B + GAP))
    again.commit(0x1000, 700, made.insert(T, "1", "0", None))
    again.commit(B, 701, made.insert(T, "3", "0", None))
    again.commit(B + 48, 702, made.insert(T, "4", "0", None))
    assert again.transactions() == [*before, (B + 48, 702, 1, False)]


def test_another_transaction_at_a_moved_ones_place_is_another_history(rig, tmp_path):
    rig.give(1, DIFFERENCE)
    rig.take()
    rig.commit(B, 701, made.insert(T, "3", "0", None))
    again = Rig(tmp_path, rig.log.crashed())
    with pytest.raises(SourceReplaced, match="another transaction"):
        again.commit(B, 799, made.insert(T, "3", "0", None))


def test_a_restart_between_the_difference_and_the_commit_makes_no_difference(rig, tmp_path):
    rig.give(1, DIFFERENCE)
    rig.take()
    again = Rig(tmp_path, rig.log.crashed())
    again.commit(0x1000, 700, made.insert(T, "1", "0", None))
    again.commit(B, 701, made.insert(T, "3", "0", None))
    assert again.transactions()[1:] == [(B + 1, 0, 2, True), (B + GAP, 701, 1, False)]


def test_a_large_transaction_is_moved_with_all_its_pieces(rig):
    rig.give(1, DIFFERENCE)
    rig.take()
    rows = [made.insert(T, str(n), "0", None) for n in range(10, PIECE_CHANGES + 20)]
    rig.commit(B, 701, *rows)
    assert rig.transactions()[-1] == (B + GAP, 701, len(rows), False)


def test_several_differences_at_one_place_stand_in_order_and_the_commit_behind_them(rig):
    for number in range(1, 4):
        rig.give(number, [change(Op.INSERT, 10 + number, (0, None))])
    ends = [rig.take() for _ in range(3)]
    assert ends == [Position(1, B + n, 1) for n in (1, 2, 3)]
    rig.commit(B, 701, made.insert(T, "3", "0", None))
    assert rig.transactions()[-1][0] == B + GAP
    rig.give(9, [change(Op.INSERT, 30, (0, None))])
    assert rig.take() == Position(1, B + 49, 1)


def test_progress_behind_a_difference_at_the_same_place_is_not_told_again(rig):
    rig.give(1, DIFFERENCE)
    rig.take()
    told = len(rig.log.durable)
    rig.idle(B)
    assert len(rig.log.durable) == told
    rig.idle(B + 0x100)
    assert read_header(rig.log.durable[-1]).last == Position(1, B + 0x100, 0)


def test_an_event_between_transactions_stands_behind_a_difference_that_stands_there_already(rig):
    rig.give(1, DIFFERENCE)
    end = rig.take()
    schema = rig.log.schemas.all()[-1]
    for reason in ("rewritten", "partitions"):
        rig.assembler.announce(schema, {"reason": reason}, 2)
    rig.feed()
    events = [read_header(record) for record in rig.log.durable[-2:]]
    assert [(event.kind, event.last) for event in events] == [(Kind.SCHEMA, end)] * 2
    rig.give(2, difference({2: (0, None)}, {}))
    later = rig.take()
    assert later > end
    rig.assembler.announce(schema, {"reason": "rewritten"}, 2)
    rig.commit(B, 701, made.insert(T, "3", "0", None))
    assert rig.transactions()[1:] == [(B + 1, 0, 2, True), (later.commit_lsn, 0, 1, True), (B + GAP, 701, 1, False)]


def test_a_message_outside_transactions_that_comes_again_is_not_taken_for_a_moved_one(rig, tmp_path):
    rig.feed(made.message(B + 0x40, "p", b"x", transactional=False))
    rig.idle(B + 0x40)
    rig.give(1, DIFFERENCE)
    assert rig.take() == Position(1, B + 0x41, 2)
    before = rig.transactions()
    again = Rig(tmp_path, rig.log.crashed())
    again.feed(made.message(B + 0x40, "p", b"x", transactional=False))
    assert again.transactions() == before


def test_no_difference_is_taken_inside_a_transaction_or_while_one_is_owed(rig, tmp_path):
    rig.assembler.feed(made.begin(B, 701))
    assert rig.assembler.difference_place() is None
    again = Rig(tmp_path, rig.log.crashed())
    again.assembler.owe(again.log.find(1, 0x1000))
    assert again.assembler.difference_place() is None
