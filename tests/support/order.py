"""The order in which xdist's workers take tests.

`--dist worksteal` cuts the list into pieces of equal numbers of tests, one a worker; who has done its piece takes from
the end of another's. So what a piece begins with stays with its worker, and begins at once:

* the tests that need a server which takes the processor for seconds to start, and which each worker would have to
  itself: those of one server are with one worker;
* the files whose tests take long, lest one worker is at such a test alone at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TypeVar

import pytest

Item = TypeVar("Item", bound=pytest.Item)

#: In JVMs; told by fixtures and parameters. Kafka is not among them: too many tests need it for one worker.
SERVERS = ("opensearch", "elasticsearch", "apicurio")

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


def ordered_for(items: Sequence[Item], workers: int) -> list[Item]:
    """The same tests, for so many workers.

    Args:
        items: the tests; what stands together of a file that takes long stays together.
        workers: how many pieces are made of the list.
    """
    first: list[list[Item]] = [[] for _ in range(workers)]
    for number, server in enumerate(SERVERS):
        first[number % workers] += [item for item in items if server_of(item) == server]
    quick: list[Item] = []
    long = 0
    for path, group in groupby([item for item in items if server_of(item) is None], key=lambda item: item.path):
        if path.name in LONG:
            long += 1
            first[-long % workers] += group
        else:
            quick += group
    ordered: list[Item] = []
    for worker, begin in enumerate(first, 1):
        taken = max(0, len(items) * worker // workers - len(ordered) - len(begin))
        ordered += [*begin, *quick[:taken]]
        del quick[:taken]
    return ordered + quick


def server_of(item: pytest.Item) -> str | None:
    """Which of `SERVERS` a test needs, if any, by the names of its fixtures, its parameters and its own."""
    named = " ".join([item.name, *getattr(item, "fixturenames", ())])
    return next((server for server in SERVERS if server in named), None)
