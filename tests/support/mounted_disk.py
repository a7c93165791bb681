"""A forgetful disk (`support.forgetful_disk`), mounted for a test."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.seed import announced_seed
from support.waiting import wait_for

PROGRAM = Path(__file__).with_name("forgetful_disk.py")


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
        self._process.wait(60)


@contextmanager
def mounted_disk(folder: Path) -> Iterator[MountedDisk]:
    """Skips the test where there can be none, or fails it where everything is required."""
    if missing := what_is_missing():
        if os.environ.get("WALBUS_REQUIRE_SERVICES") == "1":
            pytest.fail(f"a forgetful disk is required: {missing}")
        pytest.skip(f"no forgetful disk can be mounted: {missing}")
    mounted = MountedDisk(folder, announced_seed("what survives"))
    try:
        wait_for(mounted.is_up, what="the disk to be mounted")
        yield mounted
    finally:
        mounted.unmount()
