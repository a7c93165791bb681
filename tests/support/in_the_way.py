"""A folder where a process wants to write a file, which it replaces again and again."""

from __future__ import annotations

from pathlib import Path


def put_a_folder_at(path: Path) -> None:
    """From then on the file can be neither replaced nor written over; remove the folder to have it be written again."""
    while True:
        path.unlink(missing_ok=True)
        try:
            path.mkdir()
        except FileExistsError:  # it was written meanwhile
            continue
        return
