"""A real Apache Kafka for tests and benchmarks, in a temporary folder; see `walbus.demo.kafka_server`.

Maven fetches the jars once into `.services/kafka` (43 MB). It takes a JDK of 17 or later.

with local_kafka() as cluster:       one broker, which is the controller too; local_kafka(brokers=3): three of both
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

from support.maven_jars import JARS
from support.server_folder import server_folder
from support.services import missing
from walbus.demo.kafka_server import JAVA, Cluster, embedded_kafka
from walbus.errors import UsageError

_C = TypeVar("_C")


@contextmanager
def local_kafka(
    brokers: int = 1,
    settings: Mapping[str, str] | None = None,
    java: Sequence[str] = JAVA,
    place: Callable[[str], AbstractContextManager[Path]] = server_folder,
) -> Iterator[Cluster]:
    """A cluster with settings of its own.

    Args:
        brokers: how many.
        settings: of brokers, over those that all have.
        java: the program and its options.
        place: makes the folder; benchmarks take `disk_folder`.

    Raises:
        UsageError: it cannot be had here; says why.
    """
    with place("kafka") as folder, embedded_kafka(folder, JARS, brokers, settings, java) as cluster:
        yield cluster


@contextmanager
def or_missing(opened: Callable[[], AbstractContextManager[_C]], why: str = "") -> Iterator[_C]:
    """A cluster; where it cannot be had, the test is skipped or fails (`support.services.missing`)."""
    with ExitStack() as stack:
        try:
            cluster = stack.enter_context(opened())
        except UsageError as error:
            missing("kafka", f"{why}{error}")
            raise
        yield cluster
