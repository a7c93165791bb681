"""What the spool makes durable, and in which order: a power loss leaves a prepared transaction whole, or as it was."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from support import pgoutput_bytes as made
from support.intake_rig import LAYOUT, Rig, block, keys, row, whole
from walbus.capture import spool as spool_module
from walbus.capture.prepared import PREPARED_SUFFIX
from walbus.capture.spool import OPEN_SUFFIX

PREPARED = [made.begin_prepare(700, "g", 500), LAYOUT, row(1), made.prepare(700, "g", 500)]
OPEN = f"700{OPEN_SUFFIX}"


class Disk:
    """What was asked of the operating system, in order: (call, name)."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[str, str]] = []
        for call in ("pwrite", "fdatasync", "fsync"):
            monkeypatch.setattr(os, call, self._noted(call, getattr(os, call)))
        unlink, replace = Path.unlink, Path.replace
        monkeypatch.setattr(Path, "unlink", lambda path, **how: (self._note("unlink", path), unlink(path, **how))[1])
        monkeypatch.setattr(Path, "replace", lambda path, to: (self._note("rename", to), replace(path, to))[1])

    def _note(self, call: str, path: Path | str) -> None:
        self.calls.append((call, Path(path).name))

    def _noted(self, call, original):
        def noted(fd, *arguments):
            self._note(call, Path(f"/proc/self/fd/{fd}").readlink())
            return original(fd, *arguments)

        return noted


@pytest.fixture
def rig(tmp_path):
    return Rig(tmp_path / "spool")


@pytest.fixture
def disk(rig, monkeypatch):
    return Disk(monkeypatch)


def test_a_prepared_file_has_its_name_only_when_it_is_durable_and_the_name_is_before_anything_is_confirmed(rig, disk):
    rig.feed(*PREPARED)
    (name,) = rig.names(PREPARED_SUFFIX)
    written = len(disk.calls) - disk.calls[::-1].index(("pwrite", OPEN))
    assert disk.calls[written:] == [("fdatasync", OPEN), ("rename", name), ("fsync", "spool")]


def test_a_prepared_file_is_gone_for_good_before_the_source_is_told_that_its_end_is_durable(rig, disk):
    rig.feed(*PREPARED, made.commit_prepared(700, "g", 1000))
    (name,) = rig.names(PREPARED_SUFFIX)
    disk.calls.clear()
    rig.sync()
    assert disk.calls == [("unlink", name), ("fsync", "spool")]


def test_a_large_transaction_that_may_be_prepared_is_synced_while_it_grows(rig, disk, monkeypatch):
    monkeypatch.setattr(spool_module, "BUFFER_BYTES", 100)
    monkeypatch.setattr(spool_module, "SYNC_BYTES", 1000)
    rows = [(700, row(key, "x" * 100)) for key in range(50)]
    rig.feed(*block(700, (700, LAYOUT), *rows))
    since, most = 0, 0
    for call, name in disk.calls:
        assert name == OPEN
        since = 0 if call == "fdatasync" else since + 1
        most = max(most, since)
    assert 2 <= most <= 11


def test_what_a_killed_process_left_open_goes_at_the_start_and_what_it_prepared_stays(rig, tmp_path):
    rig.feed(*PREPARED)
    (tmp_path / "spool" / f"9{OPEN_SUFFIX}").write_bytes(b"x" * 1000)
    again = Rig(tmp_path / "spool")
    assert again.names(OPEN_SUFFIX) == []
    again.records(made.commit_prepared(700, "g", 1000), *whole(2000, LAYOUT, row(2), xid=701))
    assert keys(again) == ["1", "2"]
