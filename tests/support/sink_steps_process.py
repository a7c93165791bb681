"""A sink as a process to kill: `python sink_steps_process.py KIND FOLDER OPTIONS SEED TRANSACTIONS`, options as JSON.

It goes on behind the sink's own checkpoint, some transactions to a commit, to the end of the log that the seed gives.
Some parts the log has no more when the sink gets there (`gaps`): it reads a snapshot then, and sweeps. The table gets a
column, and loses it, again and again, each time one of another name; some of that happens in a gap.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Sequence
from contextlib import closing
from itertools import groupby
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.model_source import (
    ITEMS,
    Edit,
    ModelSource,
    Row,
    column,
    delete,
    insert,
    items_layout,
    truncate,
    update,
)
from support.sink_writing import windows
from walbus.consumers.checkpoint import Following, Marks, Point, last_done_of
from walbus.consumers.sinks import Sink, SinkPlace, open_sink
from walbus.consumers.steps import Sweep
from walbus.events import Window, window_of

_IDS = 40
_A_COMMIT = 2  # transactions
MORE = "more_"  # begins the names of the columns that come and go


def gaps(transactions: int) -> list[tuple[int, int]]:
    """Where the log has nothing any more: the sink is at the first number, and finds a snapshot at the other."""
    return [(first, first + 6) for first in range(12, transactions - 6, 20)]


def model(seed: int, transactions: int) -> ModelSource:
    """Rows that come, change with and without their long value, move and go, in transactions whole and in pieces."""
    dice, source = random.Random(seed), ModelSource()
    more: list[str] = []
    for number in range(transactions):
        if number % 9 == 4:
            more = [] if more else [f"{MORE}{number}"]
            columns = (column("id", 23, "int4", in_key=True), *map(column, ["name", "body", *more]))
            source.add_layout(items_layout("items", *columns))
        rows = source.rows()
        alive = [int(id) for id in rows]
        edits: list[Edit] = [truncate(ITEMS)] if number and number % 50 == 0 else []
        for id in dice.sample(range(_IDS), dice.randint(1, 6)):
            if id not in alive or edits[:1] == [truncate(ITEMS)]:
                edits.append(insert(ITEMS, id, f"n{number}", f"long {number}" * 20))
                continue
            free = next(one for one in range(_IDS, 10 * _IDS) if str(one) not in rows)
            body: Row = {"body": f"long {number}"} if dice.random() < 0.5 else {}
            body |= {name: f"m{number}" for name in more if dice.random() < 0.5}
            ways = [
                update(ITEMS, id, name=f"n{number}", **body),
                update(ITEMS, id, free + number, name="moved"),
                delete(ITEMS, id),
            ]
            edits.append(dice.choice(ways))
        source.commit(edits, pieces=dice.choice([1, 1, 2]))
    return source


def main(kind: str, folder: Path, options: dict[str, object], seed: int, transactions: int) -> None:
    source = model(seed, transactions)
    with closing(open_sink(kind, options, SinkPlace("test", folder, ("public.*",)))) as sink:
        stored = sink.checkpoint()
        marks = Marks(1, 1) if stored is None else stored.marks
        done = last_done_of(stored)
        for first, last in gaps(transactions)[marks.generation - 1 :]:
            gone = source.history[first][0]
            follow(sink, source, [window for window in windows(source, done) if window.last <= gone], marks)
            marks = Marks(marks.generation + 1, 1)
            read(sink, source, last, marks)
            done = source.history[last][0]
        follow(sink, source, windows(source, done), marks)


def follow(sink: Sink, source: ModelSource, left: Sequence[Window], marks: Marks) -> None:
    """Takes windows of the log, and commits now and then."""
    whole = [list(pieces) for _, pieces in groupby(left, lambda window: window.commit_lsn)]
    for start in range(0, len(whole), _A_COMMIT):
        some = [piece for pieces in whole[start : start + _A_COMMIT] for piece in pieces]
        for piece in some:
            sink.write([piece], marks)
        sink.commit(Following(source.log_id, marks, Point(some[-1].last, some[-1].last_seq)))


def read(sink: Sink, source: ModelSource, at: int, marks: Marks) -> None:
    """Takes a snapshot, and deletes what it has not."""
    position, seq, _ = source.history[at]
    behind = Following(source.log_id, marks, Point(position, seq))
    for header, record in source.snapshot(ITEMS, None, at, rows_a_record=8):
        sink.write([window_of(header, record, source.layouts.__getitem__)], marks)
    sink.sweep(Sweep(ITEMS, seq, marks, behind))
    sink.commit(behind)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]))
