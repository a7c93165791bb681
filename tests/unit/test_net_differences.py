"""Net differences: carried to the log's end, handed over in files, appended by capture; then the follower is right."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.memory_log import MemoryLog
from support.net_differences import (
    LAYOUT,
    OID,
    TRUNCATE,
    History,
    change,
    difference,
    followed,
    histories,
    key_of,
    merge,
    piece,
)
from walbus.capture import handover as handing
from walbus.capture.carrying import Touched
from walbus.capture.difference_file import (
    About,
    DifferenceFile,
    difference_path,
    refusals,
    waiting,
    write_difference,
)
from walbus.capture.handover import Handover
from walbus.capture.pieces import progress_piece
from walbus.capture.places import GAP, difference_place, is_of_difference, moved_lsn
from walbus.errors import DamagedRecord, LogFull, ProtocolError
from walbus.position import Position, parse_position
from walbus.records import Flag, Kind, Op, RawChange, body_of, iter_changes, origin_of, read_header

A = 0x1000  #: where the histories begin


def carried(history: History, stretches: int) -> list[RawChange]:
    """The difference as of the beginning, carried over the events in some stretches."""
    found: list[RawChange] = difference(history.told, history.true)
    events = history.events()
    size = max(1, -(-len(events) // stretches))
    for start in range(0, len(events), size):
        touched = Touched(OID, merge)
        for event in events[start : start + size]:
            touched.fold(event)
        found = list(touched.carried(found))
    return found


@given(histories(), st.integers(1, 6))
@settings(max_examples=500, deadline=None)
def test_a_carried_difference_makes_a_follower_what_the_source_is(history: History, stretches: int) -> None:
    at_end = followed(history.told, history.events())
    assert followed(at_end, carried(history, stretches)) == history.end


@given(histories(), st.integers(1, 6))
@settings(max_examples=200, deadline=None)
def test_a_carried_difference_names_no_key_twice_and_none_that_is_right(history: History, stretches: int) -> None:
    found = carried(history, stretches)
    keys = [one.key for one in found]
    assert len(keys) == len(set(keys))
    at_end = followed(history.told, history.events())
    wrong = {key_of(n) for n in at_end.keys() | history.end.keys() if at_end.get(n) != history.end.get(n)}
    assert wrong <= set(keys)
    assert {one.key for one in found if one.op != Op.UPDATE} <= wrong


def test_an_event_without_a_key_cannot_be_carried_over() -> None:
    touched = Touched(OID, merge)
    with pytest.raises(ProtocolError, match="without a key"):
        touched.fold(change(Op.INSERT, 1, (1, "a"))._replace(key=None))


def test_memory_is_counted_and_given_back() -> None:
    touched = Touched(OID, merge)
    for _ in range(10):
        touched.fold(change(Op.UPDATE, 1, (1, "a" * 1000), without_big=True))
    once = touched.size
    touched.fold(change(Op.DELETE, 1))
    assert 0 < touched.size < once < 1000


# Files.


def about(number: int = 1, after: int = A, **more: object) -> About:
    fields = {
        "number": number, "log_id": "memory", "table": "public.t", "oid": OID, "schemas": (1,),
        "after": str(Position(1, after, 0)), "reason": "rewritten", "since": "1:0/10:0", "folds_from": "1:0/20:0",
    }  # fmt: skip
    return About(**{**fields, **more})


CHANGES = difference({1: (1, "a"), 2: (2, "b")}, {2: (3, "c"), 3: (3, None)})


def test_a_file_gives_back_what_was_written(tmp_path: Path) -> None:
    assert write_difference(tmp_path / "new", about(7), CHANGES) == 3
    (path,) = waiting(tmp_path / "new")
    file = DifferenceFile(path)
    assert file.about == about(7)
    found = [one._replace(seq_delta=0, ordinal_delta=0, key_hash=0, flags=0) for one in file.changes()]
    assert found == CHANGES


def test_a_large_file_is_read_record_by_record(tmp_path: Path) -> None:
    count = write_difference(tmp_path, about(), (change(Op.INSERT, n, (1, "x" * 100)) for n in range(20_000)))
    file = DifferenceFile(waiting(tmp_path)[0])
    headers = [header for header, _ in file.records()]
    assert len(headers) > 3
    assert sum(header.count for header in headers) == count == 20_000
    assert [bool(header.flags & Flag.END) for header in headers] == [False] * (len(headers) - 1) + [True]


def test_an_empty_difference_is_a_file_too(tmp_path: Path) -> None:
    assert write_difference(tmp_path, about(), []) == 0
    assert list(DifferenceFile(waiting(tmp_path)[0]).changes()) == []


def test_files_are_taken_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for number in (30, 4, 1_764_000_000_000_000):
        write_difference(tmp_path, about(number), CHANGES)
    assert [DifferenceFile(path).about.number for path in waiting(tmp_path)] == [4, 30, 1_764_000_000_000_000]
    assert waiting(tmp_path / "nowhere") == []


def test_a_file_that_could_not_be_written_leaves_nothing(tmp_path: Path) -> None:
    def broken() -> Iterator[RawChange]:
        yield CHANGES[0]
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_difference(tmp_path, about(), broken())
    assert list(tmp_path.iterdir()) == []


def test_every_damaged_byte_of_a_file_is_found(tmp_path: Path) -> None:
    write_difference(tmp_path, about(), CHANGES)
    path = waiting(tmp_path)[0]
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        with pytest.raises(DamagedRecord):
            list(DifferenceFile(path).records())
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        with pytest.raises(DamagedRecord):
            list(DifferenceFile(path).records())
    path.write_bytes(whole + b"\0")
    with pytest.raises(DamagedRecord, match="behind the last record"):
        list(DifferenceFile(path).records())


# Into the log.


class Rig:
    """A log that has told `history.told` up to A, and the files."""

    def __init__(self, folder: Path, log: MemoryLog | None = None) -> None:
        self.folder = folder
        self.log = log or self._begun()
        self.handover = Handover(folder, self.log)

    @staticmethod
    def _begun() -> MemoryLog:
        log = MemoryLog()
        log.schemas.register(LAYOUT)
        log.append(progress_piece(1, A, 1))
        log.sync()
        return log

    def happen(self, history: History) -> None:
        for number, changes in enumerate(history.transactions, 1):
            self.log.append(piece(A + 0x100 * number, changes))
        self.log.sync()

    @property
    def bound(self) -> int:
        return self.log.bounds().end_lsn

    def take(self, budget: int = 1 << 20) -> Position | None:
        """One file, as the loop does it."""
        self.handover.look()
        if not self.handover.at_hand:
            return None
        while not self.handover.prepare():
            if not self.handover.at_hand:
                return None
        place = difference_place(self.log.bounds().end, 1, self.bound)
        assert place is not None
        self.handover.begin(place, 5)
        while (end := self.handover.write(budget)) is None:
            assert self.handover.writing
        self.log.sync()
        self.handover.finish()
        return end

    def crash(self) -> Rig:
        return Rig(self.folder, self.log.crashed())

    def changes(self, after: int = A) -> list[RawChange]:
        found = []
        for record in self.log.records_after(Position(1, after, 0)):
            header = read_header(record)
            if header.kind == Kind.TRANSACTION:
                found += iter_changes(body_of(record, header))
        return found

    def told(self) -> list[dict[str, object]]:
        """The events that say that a difference is in the log."""
        events = []
        for record in self.log.durable:
            header = read_header(record)
            if header.kind == Kind.SCHEMA:
                for one in iter_changes(body_of(record, header)):
                    document = json.loads(one.after or b"{}")
                    if "difference" in document:
                        events.append(document["difference"])
        return events


@given(history=histories())
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_behind_a_difference_the_log_tells_what_the_source_has(
    history: History, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("differences")
    rig = Rig(folder)
    write_difference(folder, about(), difference(history.told, history.true))
    rig.happen(history)
    rig.take()
    assert followed(history.told, rig.changes()) == history.end
    assert waiting(folder) == []
    assert len(rig.told()) == 1


def test_a_difference_is_one_transaction_that_can_be_told_from_others(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    write_difference(tmp_path, about(7), (change(Op.INSERT, n, (1, "x" * 100)) for n in range(10_000)))
    end = rig.take(budget=1)
    assert end == Position(1, A + 1, 10_000)
    headers = [read_header(record) for record in rig.log.durable]
    pieces = [header for header in headers if header.kind == Kind.TRANSACTION]
    assert all(header.flags & Flag.NET and header.xid == 0 for header in pieces)
    assert [bool(header.flags & Flag.BEGIN) for header in pieces] == [True] + [False] * (len(pieces) - 1)
    assert [bool(header.flags & Flag.END) for header in pieces] == [False] * (len(pieces) - 1) + [True]
    assert [origin_of(record, read_header(record)) for record in rig.log.durable][-1] == b"walbus:7"
    assert pieces[-1].last_seq - pieces[0].last_seq == 10_000
    assert rig.bound == A  # the slot is confirmed by commits alone
    assert rig.told() == [{"number": 7, "reason": "rewritten", "since": "1:0/10:0", "folds_from": "1:0/20:0"}]


def test_of_a_difference_of_which_nothing_is_left_only_the_event_is_told(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    write_difference(tmp_path, about(), CHANGES)
    rig.log.append(piece(A + 0x100, [TRUNCATE]))
    rig.log.sync()
    assert rig.take() == Position(1, A + 0x129, 0)
    assert [read_header(record).kind for record in rig.log.durable[2:]] == [Kind.SCHEMA]
    assert len(rig.told()) == 1


@pytest.mark.parametrize("budget", [1, 1 << 20])
def test_a_crash_between_the_append_and_the_end_of_the_file_is_harmless(tmp_path: Path, budget: int) -> None:
    rig = Rig(tmp_path)
    write_difference(tmp_path, about(), CHANGES)
    kept = waiting(tmp_path)[0].read_bytes()
    rig.take(budget)
    difference_path(tmp_path, 1, OID).write_bytes(kept)
    again = rig.crash()
    again.take(budget)
    assert waiting(tmp_path) == []
    assert len(again.changes()) == len(CHANGES)
    assert len(again.told()) == 2  # told twice, done once


def test_a_crash_before_the_end_of_the_transaction_leaves_nothing_of_it(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    write_difference(tmp_path, about(), (change(Op.INSERT, n, (1, "x" * 100)) for n in range(10_000)))
    rig.handover.look()
    assert rig.handover.prepare()
    rig.handover.begin(Position(1, A + 1, 0), 5)
    for _ in range(4):
        assert rig.handover.write(1) is None
    rig.log.sync()
    again = rig.crash()
    assert again.changes() == []
    again.take()
    assert len(again.changes()) == 10_000


@pytest.mark.parametrize("steps", range(9))
def test_a_kill_at_any_step_of_the_hand_over_leaves_the_log_right(tmp_path: Path, steps: int) -> None:
    """Steps are pieces; whatever was appended is synced, as a full segment does it. Two differences are queued."""
    first, second = {1: (1, "a"), 2: (0, None)}, {1: (2, "b"), 3: (0, None)}
    third = {1: (3, "c"), 4: (9, "d")}
    write_difference(tmp_path, about(1), difference(first, second))
    write_difference(tmp_path, about(2), difference(second, third))
    rig = Rig(tmp_path)
    left = steps
    while waiting(tmp_path) and left >= 0:
        rig.handover.look()
        assert rig.handover.prepare()
        place = difference_place(rig.log.bounds().end, 1, rig.bound)
        assert place is not None
        rig.handover.begin(place, 5)
        end = None
        while end is None and left > 0:
            end, left = rig.handover.write(1), left - 1
        rig.log.sync()
        if end is None:
            break
        if left > 0:
            rig.handover.finish()
        left -= 1
    again = rig.crash()
    while waiting(tmp_path):
        again.take(1)
    assert followed(first, again.changes()) == third
    assert {event["number"] for event in again.told()} == {1, 2}


def test_another_connection_forgets_what_was_appended_of_a_difference(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    write_difference(tmp_path, about(), CHANGES)
    rig.handover.look()
    assert rig.handover.prepare()
    rig.handover.begin(Position(1, A + 1, 0), 5)
    assert rig.handover.write(1) is None
    rig.handover.reset()
    assert not rig.handover.writing
    rig.log.append(piece(A, [change(Op.INSERT, 9, (1, None))]))
    rig.log.sync()
    rig.take()
    assert 9 in followed({}, rig.changes(A - 1))


def test_two_differences_of_one_table_are_taken_one_after_the_other(tmp_path: Path) -> None:
    """The second was made before the first was in the log: what the first touches is older than the second."""
    first, second, third = {1: (1, "a")}, {1: (2, "b"), 2: (2, None)}, {1: (3, "c")}
    rig = Rig(tmp_path)
    write_difference(tmp_path, about(1), difference(first, second))
    write_difference(tmp_path, about(2), difference(second, third))
    assert rig.take() == Position(1, A + 1, 2)
    assert rig.take() == Position(1, A + 2, 2)
    assert rig.take() is None
    assert followed(first, rig.changes()) == third


def test_a_full_disk_is_waited_for(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    write_difference(tmp_path, about(), CHANGES)
    rig.handover.look()
    assert rig.handover.prepare()
    rig.handover.begin(Position(1, A + 1, 0), 5)
    rig.log.full = True
    for _ in range(3):
        with pytest.raises(LogFull):
            rig.handover.write(1 << 20)
    rig.log.full = False
    assert rig.handover.write(1 << 20) == Position(1, A + 1, 3)
    rig.log.sync()
    rig.handover.finish()
    assert len(rig.changes()) == 3


def test_where_much_was_touched_the_file_is_replaced_by_a_later_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handing, "TOUCHED_BYTES", 500)
    monkeypatch.setattr(handing, "SCAN_BYTES", 1)
    was = dict.fromkeys(range(1, 40), (0, "old"))
    now = dict.fromkeys(range(1, 40), (0, "new"))
    rig = Rig(tmp_path)
    write_difference(tmp_path, about(), difference(was, now))
    expected = dict(now)
    for n in range(1, 30):
        expected[n] = (n, "new")
        event = change(Op.UPDATE, n, (n, None), without_big=True)
        rig.log.append(piece(A + 0x100 * n, [event]))
    rig.log.sync()
    rig.handover.look()
    while not rig.handover.prepare():
        pass
    moved = DifferenceFile(difference_path(tmp_path, 1, OID)).about
    assert A < parse_position(moved.after).commit_lsn < A + 0x100 * 30
    rig.take()
    assert followed(was, rig.changes()) == expected


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "cut short"),
        (lambda path: path.write_bytes(b"WALBUSDX" + path.read_bytes()[8:]), "no file of a difference"),
        (lambda path: write_difference(path.parent, about(log_id="other"), CHANGES), "another log"),
        (lambda path: write_difference(path.parent, about(after=A + 0x1000), CHANGES), "another log"),
        (lambda path: write_difference(path.parent, about(schemas=(9,)), CHANGES), "layout 9"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_by_name_and_the_next_one_taken(
    tmp_path: Path, fault: object, why: str
) -> None:
    rig = Rig(tmp_path)
    write_difference(tmp_path, about(), CHANGES)
    fault(difference_path(tmp_path, 1, OID))
    write_difference(tmp_path, about(2), CHANGES)
    while waiting(tmp_path):
        rig.take()
    ((path, refused),) = refusals(tmp_path)
    assert refused.number == 1
    assert why in refused.why
    assert not any(read_header(record).xid for record in rig.log.durable)
    assert [event["number"] for event in rig.told()] == [2]
    path.unlink()
    assert refusals(tmp_path) == []


def test_without_a_folder_there_are_no_differences() -> None:
    handover = Handover(None, Rig._begun())
    handover.look()
    assert not handover.at_hand


# Places.


def test_differences_stand_in_front_of_the_next_commit_and_never_where_anything_else_can() -> None:
    end, places = Position(1, A, 0), []
    while (place := difference_place(end, 1, A)) is not None:
        places.append(place.commit_lsn - A)
        end = place._replace(ordinal=3)
    assert places == [n for n in range(1, GAP) if 0 < n % 8 < 7]
    assert all(is_of_difference(A + n) for n in places)
    assert moved_lsn(end, 1, A) == A + GAP
    assert moved_lsn(end, 2, A) == A  # of another epoch
    assert moved_lsn(end, 1, A + 24) == A + 24
    assert moved_lsn(end, 1, A - 1) == A - 1  # a message that ended there comes again
    assert difference_place(Position(1, A + GAP, 2), 1, A + 48) == Position(1, A + 49, 0)


def test_a_difference_of_which_nothing_was_left_leaves_its_place_to_the_next() -> None:
    assert difference_place(Position(1, A + 3, 0), 1, A) == Position(1, A + 3, 0)
    assert difference_place(Position(1, A - 40, 7), 1, A - 3) == Position(1, A + 1, 0)
