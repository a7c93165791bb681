"""The order in which xdist's workers take tests: what takes long goes first, lest one worker is at it alone at the end.

`--dist worksteal` cuts the list into pieces of equal numbers of tests, one a worker; who has done its piece takes from
the end of another's. So each piece begins with some of the files whose tests take long, each file whole, since its
tests may share what is dear.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TypeVar

import pytest

Item = TypeVar("Item", bound=pytest.Item)

#: Files with tests of more than twelve seconds (`make test ARGS=--durations=60`).
LONG = frozenset(
    {
        "test_bootstrap_kafka.py",
        "test_capture_catch_up.py",
        "test_capture_regrouped_partitions.py",
        "test_consumers_groups.py",
        "test_consumers_kafka_debezium.py",
        "test_consumers_kafka_groups.py",
        "test_consumers_without_a_relay.py",
        "test_demo_run.py",
        "test_refused_rows.py",
        "test_relay_chain.py",
        "test_rows_from_topics.py",
        "test_shows_late_consumer.py",
        "test_shows_resumed_snapshot.py",
        "test_shows_stopped_consumer.py",
        "test_sink_group_commands.py",
        "test_tantivy_verifying.py",
        "test_topics_on_kafka.py",
        "test_values_replay.py",
        "test_values_zoo.py",
        "test_verify_kafka.py",
    }
)


def long_ones_first(items: Sequence[Item], workers: int) -> list[Item]:
    """The same tests, for so many workers.

    Args:
        items: the tests, those of a file together.
        workers: how many pieces are made of the list.
    """
    files = [list(group) for _, group in groupby(items, key=lambda item: item.path)]
    long = [file for file in files if file[0].path.name in LONG]
    quick = [item for file in files if file[0].path.name not in LONG for item in file]
    ordered: list[Item] = []
    for worker in range(workers):
        first = [item for file in long[worker::workers] for item in file]
        size = len(items) * (worker + 1) // workers - len(ordered)
        taken = max(0, size - len(first))
        ordered += [*first, *quick[:taken]]
        del quick[:taken]
    return ordered + quick
