"""A consumer with callbacks as a process to kill: `python calling_process.py URL FOLDER KIND`.

It refuses rows whose id is a multiple of 7 (policy dead-letter), and appends `seq id` of the others to FOLDER/taken,
which it syncs at each checkpoint. KIND is where its checkpoint is kept: file or sqlite.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import walbus
from walbus.consumers import Delivered, SqliteCheckpointStore
from walbus.events import Change
from walbus.position import Position
from walbus.records import Op

POISON = 7


class Appends(walbus.Callbacks):
    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self._lines: list[str] = []

    def on_change(self, change: Change, window: Delivered) -> None:
        if change.op not in (Op.INSERT, Op.UPDATE, Op.DELETE) or change.key is None:
            return
        if change.key["id"] % POISON == 0 and window.phase != "dead-letter":
            raise ValueError("poison")
        self._lines.append(f"{change.seq} {change.key['id']}\n")

    def on_rollback(self, position: Position) -> None:
        self._lines.clear()

    def on_checkpoint(self, position: Position) -> None:
        os.write(self._file, "".join(self._lines).encode())
        self._lines.clear()
        os.fsync(self._file)


def main(url: str, folder: Path, kind: str) -> None:
    checkpoints = SqliteCheckpointStore(folder / "own.sqlite", "killed") if kind == "sqlite" else None
    failures = walbus.Failures("dead-letter", attempts=1)
    with walbus.connect(url, folder=folder) as bus:
        subscription = bus.subscribe("public.*", name="killed", start="earliest", checkpoints=checkpoints)
        subscription.run(Appends(folder / "taken"), failures, checkpoint_seconds=0.01)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
