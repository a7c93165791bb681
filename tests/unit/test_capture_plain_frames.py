"""Frames of WAL data are taken in one go as far as they are plain, whichever core is in use; all else is left."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

import pytest

from support import pgoutput_bytes as made
from support.memory_log import MemoryLog
from walbus.capture.assembly import Assembler
from walbus.capture.frames import WAL_DATA_HEADER
from walbus.capture.plain_frames import PlainFrames
from walbus.capture.repeats import Repeats
from walbus.capture.timelines import Timelines
from walbus.errors import LogFull, ProtocolError
from walbus.log import Run
from walbus.native import Implementation, native_implementation, pure_implementation
from walbus.position import ORIGIN, Position

T = 5000
LAYOUT = made.relation(T, "public.t", [("id", 23, 1)])


@pytest.fixture(params=["native", "pure"])
def implementation(request: pytest.FixtureRequest) -> Implementation:
    return native_implementation() if request.param == "native" else pure_implementation("asked")


@pytest.fixture
def log() -> MemoryLog:
    return MemoryLog()


@pytest.fixture
def assembler(implementation: Implementation, log: MemoryLog) -> Assembler:
    """Knows the table."""
    assembler = Assembler(
        core=implementation.new_core(),
        schemas=log.schemas,
        repeats=Repeats(log.find, end=ORIGIN),
        builtin_types={23: "int4", 25: "text"},
        primary_key=lambda _, columns: frozenset(columns),
        timelines=Timelines(1),
        near_xid=700,
    )
    for message in (made.begin(1000, 700), LAYOUT, made.insert(T, "1"), made.commit(1000)):
        assembler.feed(message)
    log.write(assembler.take())
    return assembler


def wal_data(message: bytes, lsn: int = 77) -> bytes:
    return b"w" + struct.pack(">QQq", lsn, lsn, lsn) + message


def transaction(lsn: int, *rows: str) -> list[bytes]:
    messages = [made.begin(lsn, 700), *(made.insert(T, row) for row in rows), made.commit(lsn)]
    return [wal_data(message, lsn + number) for number, message in enumerate(messages)]


def given(*frames: bytes) -> Callable[[int], tuple[int, memoryview]]:
    """As libpq gives them; none is there behind the last."""

    def each() -> Iterator[tuple[int, memoryview]]:
        yield from ((len(frame), memoryview(frame)) for frame in frames)
        while True:
            yield 0, memoryview(b"")

    source = each()
    return lambda _: next(source)


def test_whole_transactions_are_taken_in_one_go(assembler: Assembler) -> None:
    frames = PlainFrames(assembler)
    sent = [*transaction(2000, "2", "3"), *transaction(3000, "4")]
    assert frames.drain(given(*sent), [], 1 << 20) == (0, b"", sum(map(len, sent)))
    (run,) = assembler.take()
    assert isinstance(run, Run)
    assert (run.changes, run.last, assembler.transactions) == (3, Position(1, 3000, 1), 3)
    assert frames.server_state == (3002, 3002 + made.POSTGRES_EPOCH)


def test_how_far_the_server_is_goes_by_the_last_frame_whoever_took_it(assembler: Assembler) -> None:
    frames = PlainFrames(assembler)
    begin, row, commit = transaction(2000, "2")
    truncate = wal_data(made.truncate(T), 2001)  # which no core takes
    source = given(begin, truncate, row, commit)
    assert frames.drain(source, [], len(begin) + 1).taken == len(begin) + len(truncate)
    assert frames.server_state[0] == 2001
    assert frames.drain(source, [], 1 << 20).size == 0
    assert frames.server_state[0] == 2002
    source = given(*transaction(3000, "3")[:1], truncate, *transaction(3000, "3")[1:])
    assert frames.drain(source, [], 1 << 20).size == 0
    assert frames.server_state[0] == 3002


@pytest.mark.parametrize(
    "strange",
    [
        b"k" + bytes(17),
        b"w",
        b"w" + bytes(24),
        b"x" + bytes(24) + made.insert(T, "2"),
        wal_data(LAYOUT),
        wal_data(made.type_(9, "public", "mood")),
        wal_data(made.stream_start(9, first=True)),
        wal_data(made.begin_prepare(9, "gid", 2000)),
    ],
)
def test_what_is_not_plain_comes_back_whole_and_what_stood_before_it_is_taken(
    assembler: Assembler, strange: bytes
) -> None:
    frames, (begin, row, commit) = PlainFrames(assembler), transaction(2000, "2")
    source = given(begin, strange, row, commit)
    assert frames.drain(source, [], 1 << 20) == (len(strange), strange, len(begin))
    assert assembler.in_transaction
    assert frames.server_state[0] == 2000
    assert frames.drain(source, [], 1 << 20).size == 0
    assert assembler.changes == 2


def test_the_frame_at_hand_when_an_alarm_rings_is_left(assembler: Assembler) -> None:
    alarm: list[object] = []
    begin, row, commit = transaction(2000, "2")
    source = given(begin, row, commit)

    def rings_at_the_row(blocking: int) -> tuple[int, memoryview]:
        size, frame = source(blocking)
        if frame[WAL_DATA_HEADER:][:1] == b"I":
            alarm.append("rows were skipped")
        return size, frame

    assert PlainFrames(assembler).drain(rings_at_the_row, alarm, 1 << 20).left == row
    assert assembler.core.waiting == 0


def test_it_stops_at_its_bound_and_at_the_end_of_the_stream(assembler: Assembler) -> None:
    frames, (begin, row, commit) = PlainFrames(assembler), transaction(2000, "2")
    source = given(begin, row, commit)
    assert frames.drain(source, [], 1).taken == len(begin)
    assert frames.drain(source, [], len(row) + 1).taken == len(row) + len(commit)
    assert frames.drain(lambda _: (-1, memoryview(b"")), [], 1) == (-1, b"", 0)


def test_a_row_that_finds_no_room_for_its_layout_is_left_and_can_be_fed_again(
    assembler: Assembler, log: MemoryLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: object) -> int:
        raise LogFull("no room")

    assembler.feed(made.relation(T, "public.t", [("id", 23, 1), ("name", 25, 0)]))
    begin, _, commit = transaction(2000, "2")
    row = wal_data(made.insert(T, "2", "b"))
    frames, source = PlainFrames(assembler), given(begin, row, commit)
    with monkeypatch.context() as full:
        full.setattr(log.schemas, "register", refuse)
        assert frames.drain(source, [], 1 << 20) == (len(row), row, len(begin))
        with pytest.raises(LogFull):
            assembler.feed(row, WAL_DATA_HEADER)
    assembler.feed(row, WAL_DATA_HEADER)
    assert frames.drain(source, [], 1 << 20) == (0, b"", len(commit))
    log.write(assembler.take())
    log.sync()
    assert assembler.changes == 2


def test_a_message_that_makes_no_sense_is_an_error_and_what_stood_before_it_is_good(
    assembler: Assembler, log: MemoryLog
) -> None:
    good = transaction(2000, "2")
    with pytest.raises(ProtocolError, match=r"outside of any transaction .*message 'C'"):
        PlainFrames(assembler).drain(given(*good, wal_data(made.commit(2500))), [], 1 << 20)
    log.write(assembler.take())
    log.sync()
    assert assembler.transactions == 2
