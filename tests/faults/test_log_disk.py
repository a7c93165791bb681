"""Faults 5, 6 and 7: the disk fails to sync, or is full."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TypeVar

import pytest

from support.relay_log import FileEngine, commits, piece, read_all, table_schema, transaction
from support.small_disk import small_disk
from support.waiting import wait_for
from walbus.errors import LogError, LogFull
from walbus.position import ORIGIN, Position
from walbus.records import Flag
from walbus.relay.fs import Files
from walbus.relay.log_check import LogCheck

pytestmark = pytest.mark.one_version
T = TypeVar("T")


class FailingFiles(Files):
    """A disk whose next operation of one kind fails, for as long as it is told to."""

    def __init__(self) -> None:
        self.failing: dict[str, int] = {}
        self.failed = 0

    def _fail(self, operation: str) -> None:
        code = self.failing.get(operation)
        if code is not None:
            self.failed += 1
            raise OSError(code, errno.errorcode[code])

    def pwrite(self, fd: int, data: bytes, offset: int) -> int:
        if "pwrite" in self.failing and len(data) > 1:
            super().pwrite(fd, data[: len(data) // 2], offset)  # half of it arrives
        self._fail("pwrite")
        return super().pwrite(fd, data, offset)

    def fdatasync(self, fd: int) -> None:
        self._fail("fdatasync")
        super().fdatasync(fd)

    def fsync(self, fd: int) -> None:
        self._fail("fsync")
        super().fsync(fd)

    def create(self, path: Path) -> int:
        self._fail("create")
        return super().create(path)

    def replace(self, source: Path, target: Path) -> None:
        self._fail("replace")
        super().replace(source, target)


@pytest.fixture
def files() -> FailingFiles:
    return FailingFiles()


@pytest.fixture
def engine(tmp_path: Path, files: FailingFiles) -> Iterator[FileEngine]:
    made = FileEngine(tmp_path / "log", files=files)
    yield made
    files.failing.clear()
    made.close()


def test_a_failed_sync_ends_the_writer_and_is_never_tried_again(engine, files):
    writer = engine.open_writer()
    writer.append(transaction(16))
    writer.sync()
    writer.append(transaction(32))
    files.failing["fdatasync"] = errno.EIO
    with pytest.raises(OSError, match="EIO"):
        writer.sync()
    files.failing.clear()
    for call in (writer.sync, lambda: writer.append(transaction(48)), lambda: writer.trim(0)):
        with pytest.raises(LogError, match="a sync failed"):
            call()
    assert writer.bounds().end == Position(1, 16, 1)
    assert commits(read_all(engine.open_reader())) == [16]
    writer.close()


def test_what_a_failed_sync_left_is_written_again_into_another_file(engine, files):
    writer = engine.open_writer()
    writer.append(transaction(16))
    files.failing["fdatasync"] = errno.EIO
    with pytest.raises(OSError, match="EIO"):
        writer.sync()
    files.failing.clear()
    writer.close()
    before = set(engine.segments())
    again = engine.open_writer()
    assert again.bounds().end == Position(1, 16, 1)
    assert not before & set(engine.segments())


def test_a_full_disk_changes_nothing_and_the_log_goes_on_when_there_is_room(engine, files):
    writer = engine.open_writer()
    reader = engine.open_reader()
    writer.append(transaction(16))
    writer.sync()
    writer.append(piece(32, 1, 2, Flag.BEGIN))
    writer.append(piece(32, 3, 2, Flag.END))
    files.failing["pwrite"] = errno.ENOSPC
    for _ in range(3):
        with pytest.raises(LogFull):
            writer.sync()
        assert commits(read_all(reader)) == [16]
        assert writer.bounds().end == Position(1, 16, 1)
    files.failing.clear()
    assert writer.sync().end == Position(1, 32, 4)
    assert commits(read_all(reader)) == [16, 32]


def test_a_piece_that_met_a_full_disk_can_be_appended_again(engine, files):
    writer = engine.open_writer()
    files.failing["pwrite"] = errno.ENOSPC
    appended, lsn = [], 16
    with pytest.raises(LogFull):
        while True:
            writer.append(transaction(lsn, size=100_000))
            appended.append(lsn)
            lsn += 16
    files.failing.clear()
    writer.append(transaction(lsn, size=100_000))
    writer.sync()
    assert commits(read_all(engine.open_reader())) == [*appended, lsn]


@pytest.mark.parametrize("operation", ["create", "pwrite"])
def test_a_roll_without_room_is_done_later(engine, files, operation):
    writer = engine.open_writer()
    reader = engine.open_reader()
    lsn = 16
    while len(engine.segments()) == 1 and writer._file.size < engine.segment_bytes:
        writer.append(transaction(lsn, size=1000))
        lsn += 16
    writer.sync()
    files.failing[operation] = errno.ENOSPC
    for _ in range(3):
        with pytest.raises(LogFull):
            writer.append(transaction(lsn))
    assert len(commits(read_all(reader))) == lsn // 16 - 1
    files.failing.clear()
    writer.append(transaction(lsn))
    writer.sync()
    assert len(engine.segments()) == 2
    assert len(commits(read_all(reader))) == lsn // 16


@pytest.mark.parametrize("operation", ["fsync", "replace"])
def test_a_roll_that_meets_a_broken_disk_ends_the_writer_and_loses_nothing(engine, files, operation):
    writer = engine.open_writer()
    lsn = 16
    while writer._file.size < engine.segment_bytes:
        writer.append(transaction(lsn, size=1000))
        lsn += 16
    writer.sync()
    files.failing[operation] = errno.EIO
    with pytest.raises(OSError, match="EIO"):
        writer.append(transaction(lsn))
    files.failing.clear()
    for call in (writer.sync, lambda: writer.append(transaction(lsn)), lambda: writer.trim(0)):
        with pytest.raises(LogError, match="end the process"):
            call()
    writer.close()
    again = engine.open_writer()
    assert again.bounds().end == Position(1, lsn - 16, 1)
    again.append(transaction(lsn))
    again.sync()
    assert commits(read_all(engine.open_reader())) == list(range(16, lsn + 1, 16))


def test_a_rename_without_room_is_done_later(engine, files):
    writer = engine.open_writer()
    lsn = 16
    while writer._file.size < engine.segment_bytes:
        writer.append(transaction(lsn, size=1000))
        lsn += 16
    files.failing["replace"] = errno.ENOSPC
    with pytest.raises(LogFull):
        writer.append(transaction(lsn))
    files.failing.clear()
    writer.append(transaction(lsn))
    writer.sync()
    assert commits(read_all(engine.open_reader())) == list(range(16, lsn + 1, 16))
    assert not list(engine.folder.glob(".manifest*"))


def test_a_schema_that_met_a_full_disk_is_not_known(engine, files):
    writer = engine.open_writer()
    for operation in ("create", "pwrite"):
        files.failing[operation] = errno.ENOSPC
        with pytest.raises(LogFull):
            writer.schemas.register(table_schema())
        files.failing.clear()
    assert writer.schemas.all() == []
    schema, new = writer.schemas.register(table_schema())
    assert (schema.id, new) == (1, True)


def test_an_unopened_log_on_a_full_disk_can_be_opened_later(engine, files):
    files.failing["pwrite"] = errno.ENOSPC
    with pytest.raises(LogFull):
        engine.open_writer()
    files.failing.clear()
    assert engine.open_writer().bounds().end == ORIGIN


def test_a_writer_whose_sign_of_life_finds_no_room_gives_signs_again_when_there_is_some(engine, files):
    engine.lease_seconds = 0.1
    control = engine.open_writer()._lease.control
    files.failing["pwrite"] = errno.ENOSPC
    there = control.state().heartbeat
    wait_for(lambda: files.failed > 2)
    files.failing.clear()
    wait_for(lambda: control.state().heartbeat > there + 1)


class NthFails(Files):
    """A disk without room for so many writes from the n-th one on."""

    def __init__(self, first: int, count: int) -> None:
        self.writes = 0
        self._full = range(first, first + count)

    def pwrite(self, fd: int, data: bytes, offset: int) -> int:
        self.writes += 1
        if self.writes in self._full:
            raise OSError(errno.ENOSPC, "no room")
        return super().pwrite(fd, data, offset)


@pytest.mark.parametrize("count", [1, 4])
def test_whichever_write_finds_no_room_what_is_appended_again_is_there_once_and_found(tmp_path, count):
    """A disk that copies on write has no room for a few bytes of a file that is there, either."""
    last, nth, writes = 16 * 24, 1, 2
    while nth < writes:
        files = NthFails(nth, count)
        engine = FileEngine(tmp_path / f"{nth}", files=files, segment_bytes=4 << 10)
        engine.retention_bytes = 16 << 10
        writer = patiently(engine.open_writer)
        reader = engine.open_reader()
        patiently(writer.schemas.register, table_schema())
        for lsn in range(16, last + 1, 16):
            patiently(writer.append, transaction(lsn, size=1000))
            patiently(writer.sync)
            if lsn % 128 == 0:
                patiently(writer.trim, 0)
        there = range(writer.bounds().trimmed.commit_lsn + 16, last + 1, 16)
        assert commits(read_all(reader, writer.bounds().trimmed)) == [*there], f"write {nth}"
        assert [lsn for lsn in there if writer.find(1, lsn) is None] == [], f"write {nth}"
        engine.close()
        again = FileEngine(tmp_path / f"{nth}", segment_bytes=4 << 10)
        with closing(again):
            assert again.open_writer().bounds().end == Position(1, last, 1), f"write {nth}"
        with closing(LogCheck(engine.folder)) as check:
            found = [one for one in check.findings(lambda _: None) if Path(one.file).suffix != ".idx"]
            assert found == [], f"write {nth}"  # an index is built again when it is needed
        nth, writes = nth + 1, files.writes


def patiently(action: Callable[..., T], *arguments: object) -> T:
    """Tries until there is room."""
    while True:
        try:
            return action(*arguments)
        except LogFull:
            continue


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", 2) as folder:
        yield folder


def test_on_a_small_disk_confirming_stops_readers_go_on_and_room_resumes_it(disk):
    ballast = disk / "ballast"
    ballast.write_bytes(bytes(1 << 20))
    engine = FileEngine(disk / "log", segment_bytes=256 << 10)
    engine.retention_bytes = 400_000
    writer = engine.open_writer()
    reader = engine.open_reader()
    lsn, durable = 16, 0
    with pytest.raises(LogFull):
        while True:
            writer.append(transaction(lsn, size=20_000))
            durable = writer.sync().end.commit_lsn
            lsn += 16
    assert commits(read_all(reader)) == list(range(16, durable + 1, 16))
    with pytest.raises(LogFull):
        writer.sync()
    ballast.unlink()
    assert writer.sync().end.commit_lsn in (durable, lsn)
    if writer.bounds().end.commit_lsn < lsn:  # the piece itself had been refused
        writer.append(transaction(lsn, size=20_000))
    writer.sync()
    assert commits(read_all(reader)) == list(range(16, lsn + 1, 16))
    engine.close()


def test_retention_makes_room_on_a_disk_that_is_full_to_the_last_byte(disk):
    engine = FileEngine(disk / "log", segment_bytes=256 << 10)
    writer = engine.open_writer()
    lsn = 16
    with pytest.raises(LogFull):
        while True:
            writer.append(transaction(lsn, size=20_000))
            writer.sync()
            lsn += 16
    with pytest.raises(OSError, match="No space"), (disk / "ballast").open("wb", buffering=0) as ballast:
        while True:
            ballast.write(bytes(512))
    writer.trim(1e12)
    if writer.sync().end.commit_lsn < lsn:  # the piece itself had been refused
        writer.append(transaction(lsn, size=20_000))
        writer.sync()
    assert writer.bounds().end.commit_lsn == lsn
    engine.close()
