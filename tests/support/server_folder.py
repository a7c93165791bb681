"""Folders of the servers that tests start, in memory where there is room: what they keep outlives no test.

PostgreSQL makes 300 files for a database and removes them with it. ext4 does not give a removed file's inode again for
minutes, and goes through all of these for each file that is made: a fresh database took 100 to 220 ms of the processor
there, and takes 36 in memory. What Walbus itself writes stays on the disk.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

_MEMORY = Path("/dev/shm")
_ROOM = 4 << 30  # bytes; three workers' servers were seen to take 1 GB


@contextmanager
def disk_folder(name: str, parent: Path | None = None) -> Iterator[Path]:
    """An empty folder that every user can reach, where temporary files go; gone at the end.

    Args:
        name: of the server.
        parent: another place.
    """
    folder = Path(tempfile.mkdtemp(prefix=f"walbus-{name}-", dir=parent))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def server_folder(name: str) -> AbstractContextManager[Path]:
    """As `disk_folder`, in memory where there is room."""
    return disk_folder(name, _MEMORY if _has_room() else None)


def _has_room() -> bool:
    """Whether memory can be written to, holds this much more, and lets programs run that are copied there."""
    if not os.access(_MEMORY, os.W_OK):
        return False
    file_system = os.statvfs(_MEMORY)
    room = min(file_system.f_bavail * file_system.f_frsize, _free_memory())
    return room >= _ROOM and not file_system.f_flag & os.ST_NOEXEC


def _free_memory() -> int:
    """Bytes that this machine can still give, as Linux tells them; nothing elsewhere."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 0
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
