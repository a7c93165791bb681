"""Faults 2 and 7: the power fails at any moment, and the disk has nothing but what was synced, or any part of more."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.relay_log import FileEngine, UnsyncedFiles, commits, read_all
from support.seed import announced_seed
from support.waiting import wait_for
from support.well_formed_log import fill_well, findings_of
from walbus.errors import WalbusError
from walbus.relay.fs import Files

pytestmark = pytest.mark.one_version

PROGRAM = Path(__file__).parents[1] / "support" / "forgetful_disk.py"
SEGMENT_BYTES = 6_000


def what_is_missing() -> str:
    """Why there can be no such disk on this machine; empty if there can."""
    if importlib.util.find_spec("mfusepy") is None:
        return "mfusepy is not installed"
    if shutil.which("fusermount3") is None:
        return "fuse3 is not installed"
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "/dev/fuse is not there, or may not be used"
    return ""


class MountedDisk:
    """A forgetful disk at `path`; what is left of it at each moment is in `survivors`."""

    def __init__(self, folder: Path, seed: object) -> None:
        self.path, self.survivors = folder / "disk", folder / "survivors"
        self.path.mkdir()
        self.survivors.mkdir()
        self._log = folder / "disk.log"
        with self._log.open("wb") as log:
            command = [sys.executable, str(PROGRAM), str(self.path), str(self.survivors), str(seed)]
            self._process = subprocess.Popen(command, stdout=log, stderr=log)

    def is_up(self) -> bool:
        assert self._process.poll() is None, self._log.read_text()
        return os.path.ismount(self.path)

    def say_confirmed(self, lsn: int) -> None:
        os.setxattr(self.path, "user.confirmed", b"%d" % lsn)

    def moments(self) -> list[tuple[Path, int]]:
        """What is left at each moment, and what had been confirmed then."""
        found = sorted(self.survivors.glob("*.said"))
        return [(said.with_suffix(""), int(said.read_bytes() or 0)) for said in found]

    def unmount(self) -> None:
        subprocess.run(["fusermount3", "-u", "-z", self.path], check=False, capture_output=True)
        self._process.wait(20)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[MountedDisk]:
    if missing := what_is_missing():
        if os.environ.get("WALBUS_REQUIRE_SERVICES") == "1":
            pytest.fail(f"a forgetful disk is required: {missing}")
        pytest.skip(f"no forgetful disk can be mounted: {missing}")
    mounted = MountedDisk(tmp_path, announced_seed("what survives"))
    try:
        wait_for(mounted.is_up, what="the disk to be mounted")
        yield mounted
    finally:
        mounted.unmount()


def live_through(disk: MountedDisk, files: Files | None) -> None:
    """The life of a log: made, filled over several segments, trimmed, closed, opened again, filled, killed, opened."""
    engine = FileEngine(disk.path / "log", files=files, segment_bytes=SEGMENT_BYTES)
    engine.retention_bytes = 4 * SEGMENT_BYTES
    try:
        lsn = 0
        for ending in ("close", "kill", "leave"):
            writer = engine.open_writer()
            first = lsn // 16 + 1
            for number in range(first, first + 24, 3):
                fill_well(writer, 3, first=number, sync_every=3)
                lsn = writer.bounds().end.commit_lsn
                disk.say_confirmed(lsn)
            writer.trim(0)
            if ending == "close":
                writer.close()
            elif ending == "kill":
                engine.kill(writer)
    finally:
        engine.close()


def what_was_lost(folder: Path, confirmed: int) -> str:
    """Opens what is left of the disk as its next writer does; says what is not as it has to be."""
    engine = FileEngine(folder / "log", files=UnsyncedFiles(), segment_bytes=SEGMENT_BYTES)
    try:
        writer = engine.open_writer()
        end = writer.bounds().end.commit_lsn
        if end < confirmed:
            return f"up to {confirmed} was confirmed, and the log ends at {end}"
        held = commits(read_all(engine.open_reader(), writer.bounds().trimmed))
        first = held[0] if held else end + 16
        if held != list(range(first, end + 1, 16)):
            return f"the log holds {held}"
        fill_well(writer, 12, first=end // 16 + 1)
        harmless = ("the index is missing", "the index is damaged")  # it is never synced
        if found := [finding for finding in findings_of(engine.folder) if not finding.what.startswith(harmless)]:
            return f"a check finds {found}"
    except (WalbusError, OSError, AssertionError) as error:
        return f"{type(error).__name__}: {error}"
    finally:
        engine.close()
    return ""


def test_whenever_the_power_fails_only_an_unconfirmed_tail_is_missing(disk):
    live_through(disk, None)
    disk.unmount()
    moments = disk.moments()
    assert len(moments) > 200
    lost = {place.name: what for place, confirmed in moments if (what := what_was_lost(place, confirmed))}
    assert not lost


class NamesNotSynced(Files):
    """Files whose bytes are synced, and whose names are not."""

    def fsync(self, fd: int) -> None:
        if not Path(f"/proc/self/fd/{fd}").is_dir():
            super().fsync(fd)


@pytest.mark.parametrize("files", [UnsyncedFiles(), NamesNotSynced()], ids=["no-syncs", "no-syncs-of-folders"])
def test_this_disk_would_show_a_sync_that_is_missing(disk, files):
    live_through(disk, files)
    disk.unmount()
    assert any(what_was_lost(place, confirmed) for place, confirmed in disk.moments())
