"""Whole transactions in C as in the twin in Python: the same windows, ends, layouts asked for, and refusals."""

from __future__ import annotations

import gc
import itertools
from typing import Any

import pytest
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st

from support.cores import NAMES, implementation
from walbus.errors import RelayUnavailable
from walbus.events import Change, Window, window_of
from walbus.position import ORIGIN, Position
from walbus.record_parser import RecordParser
from walbus.records import HEADER_SIZE, Flag, Kind, Op, pack_change, pack_record, read_header
from walbus.schema import Column, ReplicaIdentity, TableSchema

WHOLE = Flag.BEGIN | Flag.END
LAYOUTS = {
    number: TableSchema(
        number, 16_400 + number, "public", "t", ReplicaIdentity.DEFAULT, (Column("a", 20, "int8", -1, in_key=True),)
    )
    for number in range(1, 3)
}
AWAY = 7  # a layout that cannot be had now
MICROSECONDS = st.sampled_from([0, 1_800_000_000_123_456, -1, -62_135_596_800_000_000, 253_402_300_799_999_999])
STEPS = st.integers(0, 3)


def body_of(count: int, layouts: list[int]) -> bytes:
    return b"".join(
        pack_change(
            Op.INSERT, table=16_400 + layouts[i % len(layouts)], schema_id=layouts[i % len(layouts)], seq_delta=i,
            ordinal_delta=i, key=b"k%d" % i, after=b"row",
        )
        for i in range(count)
    )  # fmt: skip


@st.composite
def logs(draw: st.DrawFn) -> bytes:
    """Records, most of which are whole transactions that follow each other."""
    epoch, lsn, seq, log = 1, 100, 10, b""
    for _ in range(draw(st.integers(0, 6))):
        count = draw(st.sampled_from([1, 1, 2, 3, 0]))
        body = body_of(count, draw(st.sampled_from([[1], [1, 2], [2], [1, AWAY]] if count else [[1]])))
        odd = draw(st.integers(0, 5))
        flags = draw(st.sampled_from([Flag.BEGIN, Flag.END, WHOLE | Flag.ASKED])) if odd == 0 else WHOLE
        flags |= draw(st.sampled_from([Flag(0), Flag.NET, Flag.FILTERED]))
        if draw(st.booleans()):
            body, flags = zstandard.compress(body), flags | Flag.ZSTD
        epoch, lsn, seq = epoch + draw(st.sampled_from([0, 0, 0, 1])), lsn + draw(STEPS) - 1, seq + draw(STEPS)
        log += pack_record(
            draw(st.sampled_from([Kind.TRANSACTION] * 9 + [Kind.PROGRESS])), flags=flags, epoch=epoch, commit_lsn=lsn,
            end_lsn=lsn + 8, first_ordinal=1, last_ordinal=max(1, count), first_seq=seq, last_seq=seq + count, xid=700,
            commit_time=draw(MICROSECONDS | st.just(1 << 60)), count=count + (draw(st.integers(0, 9)) == 0),
            origin=draw(st.sampled_from([b"", b"", b"an origin", b"\xff"])), body=body,
        )  # fmt: skip
        seq += count
    return log


def read(name: str, data: bytes, at: int = 0, received: tuple[Position, int] = (ORIGIN, 0)) -> Any:
    asked: list[int] = []

    def layout_of(number: int) -> TableSchema:
        asked.append(number)
        if number == AWAY:
            raise RelayUnavailable("the relay is away")
        return LAYOUTS[number]

    windows, end = implementation(name).read_transactions(Change, Window, data, at, layout_of, received)
    return windows, end, asked


def one(commit_lsn: int, **changed: Any) -> bytes:
    known = {"flags": WHOLE, "epoch": 1, "end_lsn": commit_lsn + 8, "first_seq": commit_lsn, "last_seq": commit_lsn}
    known |= {"first_ordinal": 1, "last_ordinal": 1, "commit_time": 0, "body": body_of(1, [1]), "count": 1}
    return pack_record(Kind.TRANSACTION, commit_lsn=commit_lsn, **known | changed)


@settings(max_examples=400, deadline=None)
@given(logs(), st.integers(0, 300), st.sampled_from([(ORIGIN, 0), (Position(1, 100, 1), 11), (Position(2, 0, 0), 9)]))
def test_windows_are_those_of_python_at_any_cut(log, cut, received):
    log = log[: max(0, len(log) - cut)]
    found, expected = (read(name, log, 0, received) for name in NAMES)
    assert found[:2] == expected[:2]
    assert set(found[2]) == set(expected[2])
    for window in found[0]:
        assert type(window) is Window
        assert type(window.last) is Position
        assert type(window.kind) is Kind


@settings(max_examples=200, deadline=None)
@given(logs(), st.data())
def test_damage_ends_a_run_where_it_does_in_python(log, data):
    if log:
        damaged = bytearray(log)
        damaged[data.draw(st.integers(0, len(log) - 1))] ^= data.draw(st.integers(1, 255))
        log = bytes(damaged)
    assert read("native", log)[:2] == read("pure", log)[:2]


@pytest.mark.parametrize("name", NAMES)
def test_a_window_is_what_window_of_makes_of_the_record(name):
    records = [
        one(100),
        one(200, flags=WHOLE | Flag.NET, origin=b"far", xid=(1 << 40) + 1, commit_time=1_800_000_000_000_001),
        one(
            300,
            body=zstandard.compress(body_of(3, [1, 2])),
            count=3,
            flags=WHOLE | Flag.ZSTD,
            last_ordinal=3,
            last_seq=302,
        ),
    ]
    log = b"".join(records)
    windows, end, _ = read(name, b"behind" + log, len(b"behind"))
    assert end == len(b"behind") + len(log)
    assert windows == [window_of(read_header(record), record, LAYOUTS.__getitem__) for record in records]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "odd",
    [
        one(100),  # as the one before
        one(200, epoch=0),
        one(200, first_seq=100, last_seq=100),
        one(200, flags=Flag.BEGIN, end_lsn=0),
        one(200, flags=WHOLE | Flag.ASKED),
        one(200, body=b"", count=0),
        one(200, count=2),
        one(200, body=b"no change", count=1),
        one(200, flags=WHOLE | Flag.ZSTD),
        one(200, commit_time=1 << 60),
        one(200, origin=b"\xff"),
        one(200, body=body_of(1, [AWAY])),
        one(200)[:-1],
        one(200)[:50],
        one(200)[:-1] + b"?",
    ],
)
def test_what_is_no_later_whole_transaction_is_left_to_who_can_say_why(name, odd):
    log = one(100) + odd + one(300)
    windows, end, _ = read(name, log)
    assert (len(windows), end) == (1, len(one(100)))
    assert read(name, log, end, (Position(1, 100, 1), 100))[:2] == ([], end)


@pytest.mark.parametrize("name", NAMES)
def test_what_the_log_does_not_have_is_told_by_who_was_asked(name):
    with pytest.raises(KeyError, match="9"):
        read(name, one(100, body=body_of(1, [9])))


def test_the_collector_has_nothing_to_look_at():
    (window,), _, _ = read("native", one(100))
    assert not gc.is_tracked(window)
    assert not gc.is_tracked(window.changes)
    assert not gc.is_tracked(window.changes[0])
    assert not gc.is_tracked(window.changes[0].raw)


@given(st.lists(st.booleans(), max_size=8), st.lists(st.integers(0, 2_000), max_size=6), st.data())
@example([True, False, True], [HEADER_SIZE, 170, 171], None)
def test_a_parser_gives_runs_and_records_at_any_cut_once_and_in_order(whole, cuts, data):
    records = [one(100 * i, flags=WHOLE if is_whole else Flag.BEGIN) for i, is_whole in enumerate(whole, 1)]
    log, parser, got = b"".join(records), RecordParser(), []
    cuts = sorted(min(cut, len(log)) for cut in cuts)
    for start, stop in itertools.pairwise([0, *cuts, len(log)]):
        parser.feed(log[start:stop])
        while True:
            if data is None or data.draw(st.booleans()):
                run = parser.take(lambda held, at: read("native", held, at)[:2]) or []
                got += [window.commit_lsn for window in run]
            if (found := parser.next()) is None:
                break
            got.append(found[0].commit_lsn)
    assert got == [100 * i for i in range(1, len(whole) + 1)]
    assert parser.pending == 0
