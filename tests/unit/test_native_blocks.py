"""Rows of streamed transactions into the spool and out of it, in C: what Python does, or nothing at all."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support import pgoutput_bytes as made
from support.intake_rig import LAYOUT, Rig, T, block, keys, row
from walbus.capture.frames import WAL_DATA_HEADER
from walbus.capture.spool import Spool
from walbus.capture.spool_files import SpoolFiles
from walbus.native import native_implementation, pure_implementation

PURE = pure_implementation("for the test")


def implementations():
    try:
        return [native_implementation(), PURE]
    except ImportError:
        return [PURE]


IMPLEMENTATIONS = pytest.mark.parametrize("core", implementations(), ids=lambda i: i.name.split()[0])


def frame(message):
    return b"w" + bytes(WAL_DATA_HEADER - 1) + message


class Arrived:
    """libpq, with frames that have arrived."""

    def __init__(self, frames):
        self._frames = list(frames)

    def __call__(self, block):
        assert block == 1
        if not self._frames:
            return 0, memoryview(b"")
        data = self._frames.pop(0)
        return len(data), memoryview(data)


def spooled_by_python(folder, messages):
    transaction = Spool(SpoolFiles(folder)).open(700)
    for message in messages:
        transaction.add_prefixed(message, 0)
    return bytes(transaction.sink())


def pumped(core, frames):
    """All frames, those that are left put away by Python, as the loop does."""
    arrived, sink, left = Arrived(frames), bytearray(), []
    while True:
        drained = core.spool_rows(arrived, [], 1 << 20, sink)
        if drained.left:
            left.append(drained.left)
        if drained.size == 0:
            return bytes(sink), left


ROWS = [
    made.in_block(701, row(1)),
    made.in_block(700, row(2, "y" * 500)),
    made.in_block(702, made.delete(T, key=["1", None])),
]


@IMPLEMENTATIONS
def test_rows_become_the_entries_that_python_makes_and_all_else_is_left(core, tmp_path):
    others = [made.in_block(700, LAYOUT), made.stream_stop(), made.in_block(700, made.truncate(T)), b"I\0\0\0", b""]
    sink, left = pumped(core, [frame(message) for message in [*ROWS, *others]] + [b"k" + bytes(17)])
    if core is PURE:
        assert len(left) == 9
    else:
        assert sink == spooled_by_python(tmp_path, ROWS)
        assert left == [frame(message) for message in others] + [b"k" + bytes(17)]


@IMPLEMENTATIONS
def test_an_alarm_and_a_limit_end_it_before_the_next_frame(core):
    frames, sink = [frame(message) for message in ROWS], bytearray()
    assert core.spool_rows(Arrived(frames), ["alarm"], 1 << 20, sink).left == frames[0]
    arrived = Arrived(frames)
    drained = core.spool_rows(arrived, [], 1, sink)
    assert drained.taken + len(drained.left) == len(frames[0])
    assert core.spool_rows(Arrived([]), [], 1, sink) == (0, b"", 0)


@given(st.lists(st.binary(max_size=80), max_size=8))
def test_no_frame_makes_an_entry_that_cannot_be_read_back(frames):
    core = implementations()[0]
    sink, _ = pumped(core, frames)
    at = 0
    while at < len(sink):
        (length,) = struct.unpack_from("<I", sink, at)
        assert 0 < length <= len(sink) - at - 8
        at += 8 + length


def entries(*messages):
    return b"".join(struct.pack("<I", len(m)) + xid.to_bytes(4, "big") + m for xid, m in messages)


@IMPLEMENTATIONS
def test_any_bytes_are_replayed_or_left_and_never_read_beyond_their_end(core):
    @given(st.binary(max_size=60), st.integers(0, 70), st.sampled_from([frozenset(), frozenset([b"\0\0\0\0"])]))
    def replayed(data, at, aborted):
        end = core.replay_rows(core.new_core(), data, at, aborted)
        assert at <= end <= max(at, len(data))

    replayed()


def test_entries_have_no_place_before_their_beginning():
    core = implementations()[0]
    if core is not PURE:
        with pytest.raises(ValueError, match="before their beginning"):
            core.replay_rows(core.new_core(), entries((700, row(1))), -1, frozenset())


def test_rows_of_aborted_subtransactions_are_passed_over_in_either_way(tmp_path):
    rig = Rig(tmp_path)
    rows = [(700 + n % 3, row(n)) for n in range(200)]
    rig.records(
        *block(700, (700, LAYOUT), *rows),
        made.stream_abort(700, 701),
        made.stream_abort(700, 702),
        made.stream_commit(700, 1000),
    )
    assert keys(rig) == [str(n) for n in range(0, 200, 3)]
