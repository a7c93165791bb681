"""A process that writes a Kafka sink and is killed at a step of its commit.

python -m support.kafka_sink_process SETTINGS     as JSON: options, folder, step, count

It fills the sink with so many transactions of `model_of`, and is killed in the last one:

    written     the records are on their way
    flushed     the cluster has them, and the commit was not asked for
    committed   the cluster has the commit, and the copy beside the consumer has not
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

from support.model_source import ITEMS, ModelSource, delete, insert, truncate, update
from support.sink_writing import MARKS, following, windows
from walbus.consumers.sinks import SinkPlace, open_sink
from walbus.consumers.sinks.kafka import KafkaSink
from walbus.consumers.sinks.kafka_rows import RowCopy
from walbus.consumers.sinks.kafka_sender import Sender

STEPS = ("written", "flushed", "committed")


def model_of(count: int) -> ModelSource:
    """The source after so many transactions; always the same."""
    source = ModelSource()
    for n in range(count):
        match n % 5:
            case 0 | 1:
                source.commit([insert(ITEMS, 10 * n + i, f"name {n}", "toasted " * 100) for i in range(5)])
            case 2:
                ids = sorted(source.rows(), key=int)
                source.commit(
                    [update(ITEMS, int(ids[0]), name=f"u {n}"), update(ITEMS, int(ids[1]), new_id=10 * n, name="m")]
                )
            case 3:
                source.commit([delete(ITEMS, int(max(source.rows(), key=int)))])
            case _ if n % 10 == 9:
                source.commit([truncate(ITEMS), insert(ITEMS, 10 * n, "behind the truncate")])
            case _:
                source.commit([update(ITEMS, int(id), name=f"all {n}") for id in source.rows()])
    return source


def killed(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    told = json.loads(sys.argv[1])
    sink = open_sink("kafka", told["options"], SinkPlace("test", Path(told["folder"]), ("public.*",)))
    assert isinstance(sink, KafkaSink)
    checkpoint = sink.checkpoint()
    done = checkpoint.point.last_done if checkpoint is not None else None  # type: ignore[union-attr]
    before, source = model_of(told["count"] - 1), model_of(told["count"])
    rest = windows(before) if done is None else windows(before, done)
    if rest:
        sink.write(rest, MARKS)
        sink.commit(following(before))
    if told["step"] == "flushed":

        def flush(sender: Sender) -> None:
            assert sender._producer is not None and sender._producer.flush(60) == 0
            killed()

        Sender.commit = flush  # type: ignore[method-assign]
    elif told["step"] == "committed":
        RowCopy.commit = killed  # type: ignore[method-assign,assignment]
    sink.write(windows(source, before.end), MARKS)
    if told["step"] == "written":
        killed()
    sink.commit(following(source))


if __name__ == "__main__":
    main()
