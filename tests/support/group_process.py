"""A member of a group as a process to kill and stop: `python group_process.py URL FOLDER NAME PARTS LEASE`.

It appends a line for each row to FOLDER/NAME.taken, and syncs that before it commits:

    row PART TOKEN SEQ ID          was handled
    committed PART TOKEN SEQ       its commit came back

While FOLDER/NAME.hold is there each part stands in the middle of a window, between its rows and its commit, and says so
with FOLDER/NAME.PART.holding (of 2/4: 2-of-4). SIGTERM ends it in order.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

import walbus
from walbus.consumers import LeasedSubscription
from walbus.records import Op


class Handles:
    """Takes the rows of whatever part comes.

    Args:
        folder: of the files.
        name: of the process.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self._file = os.open(folder / f"{name}.taken", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self._hold, self._holding = folder / f"{name}.hold", f"{folder / name}.{{}}.holding"

    def work(self, subscription: LeasedSubscription) -> None:
        part = f"{subscription.part.partition} {subscription.part.token}"
        holding = Path(self._holding.format(subscription.part.partition.replace("/", "-of-")))
        for window in subscription:
            rows = [change for change in window if change.op is Op.INSERT]
            for change in rows:
                self._write(f"row {part} {change.seq} {change.key['id']}\n")
            while rows and self._hold.exists():
                holding.touch()
                threading.Event().wait(0.01)
            window.commit()
            if rows:
                self._write(f"committed {part} {rows[-1].seq}\n")

    def _write(self, line: str) -> None:
        os.write(self._file, line.encode())
        os.fsync(self._file)


def main(url: str, folder: Path, name: str, parts: int, lease: float) -> None:
    with walbus.connect(url, folder=folder / "checkpoints") as bus:
        member = bus.join("public.*", name="orders", parts=parts, lease_seconds=lease, start="earliest")
        signal.signal(signal.SIGTERM, lambda *_: member.stop())
        member.run(Handles(folder, name).work)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), float(sys.argv[5]))
