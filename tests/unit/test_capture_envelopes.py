"""Frames, timelines and transaction ids: the small pure parts of capture."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from walbus.capture.frames import Keepalive, parse_keepalive, server_state, status_update
from walbus.capture.messages import POSTGRES_EPOCH
from walbus.capture.pauses import FIRST_PAUSE, LONGEST_PAUSE, Backoff
from walbus.capture.timelines import Timelines, parse_history
from walbus.capture.xids import widen_xid
from walbus.errors import ProtocolError


def test_a_keepalive_is_read():
    assert parse_keepalive(b"k" + struct.pack(">QqB", 5, 7, 1)) == Keepalive(5, 7 + POSTGRES_EPOCH, True)


@pytest.mark.parametrize("length", [1, 17, 19])
def test_a_keepalive_of_another_length_is_refused(length):
    with pytest.raises(ProtocolError):
        parse_keepalive(b"k" * length)


def test_frames_of_both_kinds_tell_how_far_the_server_is():
    assert server_state(b"k" + struct.pack(">QqB", 5, 7, 0)) == (5, 7 + POSTGRES_EPOCH)
    assert server_state(b"w" + struct.pack(">QQq", 3, 5, 7) + b"message") == (5, 7 + POSTGRES_EPOCH)
    with pytest.raises(ProtocolError):
        server_state(b"w" + b"x" * 23)


def test_a_status_update_never_claims_to_have_received_less_than_it_confirms():
    kind, received, flushed, applied, at, reply = struct.unpack(
        ">cQQQqB", status_update(3, 9, 946_684_801.5, reply=True)
    )
    assert (kind, received, flushed, applied, at, reply) == (b"r", 9, 9, 9, 1_500_000, 1)


def test_a_history_gives_each_lsn_its_timeline():
    history = parse_history(3, b"# made by hand\n1\t0/5000\tno recovery target\n\n2\t0/9000\tbefore 2026-01-01\n")
    assert history == Timelines(3, ((1, 0x5000), (2, 0x9000)))
    assert [history.epoch_of(lsn) for lsn in (0x4FFF, 0x5000, 0x8FFF, 0x9000)] == [1, 2, 2, 3]
    assert (history.left_at(2), history.left_at(3)) == (0x9000, None)


@pytest.mark.parametrize("content", [b"x\t0/5000\n", b"1\n", b"1\t5000\n"])
def test_a_history_that_cannot_be_read_is_refused(content):
    with pytest.raises(ProtocolError, match="line 1"):
        parse_history(2, content)


@given(st.integers(3, 2**60), st.integers(-(2**31) + 1, 2**31 - 1))
def test_an_xid_is_widened_to_the_nearest_one(near, distance):
    xid = near + distance
    if xid >= 3:
        assert widen_xid(xid % 2**32, near) == xid


def test_pauses_grow_with_jitter_up_to_a_bound_and_begin_anew():
    backoff = Backoff(lambda: 0.0)
    pauses = [backoff.next_pause() for _ in range(12)]
    assert pauses[:3] == [FIRST_PAUSE / 2, FIRST_PAUSE, FIRST_PAUSE * 2]
    assert pauses[-1] == LONGEST_PAUSE / 2
    backoff.reset()
    assert backoff.next_pause() == FIRST_PAUSE / 2
