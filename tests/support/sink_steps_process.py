"""A sink as a process to kill: `python sink_steps_process.py KIND FOLDER OPTIONS SEED`, with the options as JSON.

It goes on behind the sink's own checkpoint, some transactions to a commit, to the end of the log that the seed gives.
"""

from __future__ import annotations

import json
import random
import sys
from contextlib import closing
from itertools import groupby
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.model_source import ITEMS, Edit, ModelSource, delete, insert, truncate, update
from support.sink_writing import MARKS, windows
from walbus.consumers.checkpoint import Following, Point, last_done_of
from walbus.consumers.sinks import SinkPlace, open_sink

_IDS = 40
_A_COMMIT = 2  # transactions


def model(seed: int, transactions: int = 120) -> ModelSource:
    """Rows that come, change with and without their long value, move and go, in transactions whole and in pieces."""
    dice, source = random.Random(seed), ModelSource()
    for number in range(transactions):
        alive = [int(id) for id in source.rows()]
        edits: list[Edit] = [truncate(ITEMS)] if number and number % 50 == 0 else []
        for id in dice.sample(range(_IDS), dice.randint(1, 6)):
            if id not in alive or edits[:1] == [truncate(ITEMS)]:
                edits.append(insert(ITEMS, id, f"n{number}", f"long {number}" * 20))
                continue
            free = next(one for one in range(_IDS, 10 * _IDS) if str(one) not in source.rows())
            body = {"body": f"long {number}"} if dice.random() < 0.5 else {}
            ways = [
                update(ITEMS, id, name=f"n{number}", **body),
                update(ITEMS, id, free + number, name="moved"),
                delete(ITEMS, id),
            ]
            edits.append(dice.choice(ways))
        source.commit(edits, pieces=dice.choice([1, 1, 2]))
    return source


def main(kind: str, folder: Path, options: dict[str, object], seed: int) -> None:
    source = model(seed)
    with closing(open_sink(kind, options, SinkPlace("test", folder, ("public.*",)))) as sink:
        left = windows(source, last_done_of(sink.checkpoint()))
        whole = [list(pieces) for _, pieces in groupby(left, lambda window: window.commit_lsn)]
        for start in range(0, len(whole), _A_COMMIT):
            some = [piece for pieces in whole[start : start + _A_COMMIT] for piece in pieces]
            for piece in some:
                sink.write([piece], MARKS)
            sink.commit(Following(source.log_id, MARKS, Point(some[-1].last, some[-1].last_seq)))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3]), int(sys.argv[4]))
