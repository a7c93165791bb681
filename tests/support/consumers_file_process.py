"""Keeps consumers in a file, over and over, to be killed: `python consumers_file_process.py FOLDER TURNS`.

In each turn every one of a few consumers moves on by one, and the file is written; a turn that was written is printed.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from walbus.consumer_reports import ConsumerReport
from walbus.position import Position
from walbus.relay.consumers_file import ConsumersFile, pack_consumers
from walbus.relay.fs import Files
from walbus.relay.known_consumers import KnownConsumers
from walbus.relay.peer import Peer

NAMES = [f"consumer-{n}" for n in range(5)]


def main(folder: Path, turns: int) -> None:
    file, known = ConsumersFile(folder / "consumers.json", Files()), KnownConsumers()
    file.load(known)
    assert file.problem is None, file.problem
    first = known.get(NAMES[0])
    done = first.last_done.commit_lsn if first is not None and first.last_done is not None else 0
    print("open", done, flush=True)
    for turn in range(done + 1, done + 1 + turns):
        for name in NAMES:
            report = ConsumerReport("1", False, "ab", "online", Position(1, turn, 1), turn, 1, whole=True)
            known.report(name, report, Peer("127.0.0.1", "test"), float(turn))
        if file.write(pack_consumers(known.dump()), known.changes, float(turn)):
            print("kept", turn, flush=True)
    print("closed", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
