"""A real Apache Kafka for tests and benchmarks, in a temporary folder; see `walbus.demo.kafka_server`.

Maven fetches the jars once into `.services/kafka` (43 MB). It takes a JDK of 17 or later.

with local_kafka() as cluster:       one broker, which is the controller too; local_kafka(brokers=3): three of both
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from support.maven_jars import JARS
from walbus.demo.kafka_server import JAVA, Cluster, embedded_kafka


@contextmanager
def local_kafka(
    brokers: int = 1, settings: Mapping[str, str] | None = None, java: Sequence[str] = JAVA
) -> Iterator[Cluster]:
    """A cluster with settings of its own.

    Raises:
        UsageError: it cannot be had here; says why.
    """
    with (
        tempfile.TemporaryDirectory(prefix="walbus-kafka-", ignore_cleanup_errors=True) as folder,
        embedded_kafka(Path(folder), JARS, brokers, settings, java) as cluster,
    ):
        yield cluster
