"""Faults 2 and 7: the power fails at any moment, and the disk has nothing but what was synced, or any part of more."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.mounted_disk import MountedDisk, mounted_disk
from support.relay_log import FileEngine, UnsyncedFiles, commits, read_all
from support.well_formed_log import fill_well, findings_of
from walbus.errors import WalbusError
from walbus.relay.fs import Files

pytestmark = pytest.mark.one_version

SEGMENT_BYTES = 6_000


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[MountedDisk]:
    with mounted_disk(tmp_path) as mounted:
        yield mounted


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
