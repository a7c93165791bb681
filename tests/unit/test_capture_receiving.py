"""A round of reading: which frames are believed, and what a full disk makes of them. No server."""

from __future__ import annotations

import struct
from collections.abc import Callable
from types import SimpleNamespace
from typing import TypeVar

import pytest
from structlog.testing import capture_logs

from walbus.capture.frames import WAL_DATA_HEADER
from walbus.capture.messages import POSTGRES_EPOCH
from walbus.capture.peek import moves_safely
from walbus.capture.receiving import TOLD_SECONDS, Receiving
from walbus.errors import LogFull, ProtocolError

T = TypeVar("T")


def keepalive(lsn: int, *, asks: bool = False) -> bytes:
    return b"k" + struct.pack(">QqB", lsn, 7, asks)


def wal_data(lsn: int) -> bytes:
    return b"w" + struct.pack(">QQq", lsn, lsn, 7) + b"M"


class Rig:
    """A connection that is sent what a test says, and an intake that notes what it is given."""

    def __init__(self) -> None:
        self.now = 0.0
        self.frames: list[bytes] = []
        self.believed: list[int] = []
        self.fed: list[bytes] = []
        self.refusals = 0
        self.walsender = SimpleNamespace(decodes=False, searches=False, receive=self._receive)
        intake = SimpleNamespace(
            plain=False, replaying=False, sink=lambda: None, keepalive=self.believed.append, feed=self._feed
        )
        assembler = SimpleNamespace(sees_begins=False, waiting_bytes=0)
        self.receiving = Receiving(
            self.walsender,  # type: ignore[arg-type]
            intake,  # type: ignore[arg-type]
            assembler,  # type: ignore[arg-type]
            append=lambda: None,
            patiently=self._patiently,
            received=0,
            monotonic=lambda: self.now,
        )

    def _receive(self) -> bytes | None:
        return self.frames.pop(0) if self.frames else None

    def _feed(self, frame: bytes, offset: int) -> None:
        assert offset == WAL_DATA_HEADER
        if self.refusals:
            self.refusals -= 1
            raise LogFull("no room")
        self.fed.append(frame)

    def _patiently(self, action: Callable[[], T]) -> T:
        while True:
            try:
                return action()
            except LogFull:
                continue

    def round(self, *frames: bytes) -> None:
        self.frames += frames
        assert self.receiving.read_round()


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_a_keepalives_place_is_believed_once_the_server_has_told_from_where_on_it_decodes(rig: Rig) -> None:
    rig.round(keepalive(500, asks=True))
    assert (rig.believed, rig.receiving.received, rig.receiving.asked) == ([], 500, True)
    assert rig.receiving.server_time == 7 + POSTGRES_EPOCH
    rig.walsender.decodes = True
    rig.round(keepalive(600), keepalive(700))
    assert rig.believed == [600, 700]


def test_a_server_that_tells_nothing_is_believed_after_a_while_which_is_said_once(rig: Rig) -> None:
    with capture_logs() as said:
        rig.now = TOLD_SECONDS
        rig.round(keepalive(500))
        rig.now = TOLD_SECONDS + 1
        rig.round(keepalive(600), keepalive(700))
    assert rig.believed == [600, 700]
    assert [line["event"] for line in said] == ["source.beginning_not_told"]


def test_a_server_that_looks_for_its_beginning_is_never_believed_before_it_has_found_it(rig: Rig) -> None:
    rig.walsender.searches = True
    rig.now = 100 * TOLD_SECONDS
    rig.round(keepalive(500))
    assert rig.believed == []
    rig.walsender.decodes = True
    rig.round(keepalive(600))
    assert rig.believed == [600]


def test_a_message_that_a_full_disk_refuses_is_fed_again_and_once(rig: Rig) -> None:
    rig.refusals = 3
    rig.round(wal_data(500), wal_data(600))
    assert rig.fed == [wal_data(500), wal_data(600)]


def test_only_a_round_of_nothing_but_keepalives_is_one(rig: Rig) -> None:
    for frames, alone in (([], False), ([keepalive(1)] * 2, True), ([keepalive(1), wal_data(2)], False)):
        rig.round(*frames)
        assert rig.receiving.keepalives_only is alone


def test_how_far_the_server_is_never_goes_back_and_every_frame_is_a_sign_of_life(rig: Rig) -> None:
    rig.round(wal_data(900))
    rig.now = 5.0
    rig.round(keepalive(800))
    assert (rig.receiving.received, rig.receiving.heard) == (900, 5.0)
    rig.now = 6.0
    rig.round()
    assert rig.receiving.heard == 5.0
    rig.receiving.excuse_silence()
    assert rig.receiving.heard == 6.0


def test_a_frame_of_another_kind_is_refused(rig: Rig) -> None:
    rig.frames = [b"z"]
    with pytest.raises(ProtocolError, match="unknown kind"):
        rig.receiving.read_round()


@pytest.mark.parametrize(
    ("version", "safe"),
    [(140_017, False), (140_018, True), (150_012, False), (150_013, True), (160_008, False), (160_009, True),
     (170_004, False), (170_005, True), (180_000, True)],
)  # fmt: skip
def test_a_slot_is_moved_by_minor_versions_alone_that_do_so_safely(version: int, safe: bool) -> None:
    session = SimpleNamespace(info=SimpleNamespace(server_version=version))
    assert moves_safely(session) is safe  # type: ignore[arg-type]
