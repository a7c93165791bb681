"""Each suite of the log runs on each of its engines, and each suite of sinks on each of these."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.kafka_log import KafkaEngine
from support.relay_log import FileEngine
from support.sinks_under_test import SINKS, SinkUnderTest, of_kind
from walbus.consumers.sinks import Sink


@pytest.fixture(params=["file", "kafka"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[FileEngine | KafkaEngine]:
    """A log's engine, without a log yet."""
    if request.param == "kafka":
        made: FileEngine | KafkaEngine = KafkaEngine(request.getfixturevalue("kafka"), tmp_path / "log")
    else:
        made = FileEngine(tmp_path / "log")
    yield made
    made.close()


@pytest.fixture(params=[*SINKS, "kafka", "kafka-debezium", "redis-string", "redis-expiring", "cluster-string"])
def under_test(request: pytest.FixtureRequest, tmp_path: Path) -> SinkUnderTest:
    """A kind of sink, at an empty place."""
    return of_kind(request.param, tmp_path, request.getfixturevalue)


@pytest.fixture
def sink(under_test: SinkUnderTest) -> Iterator[Sink]:
    """The sink, opened."""
    opened = under_test.open()
    yield opened
    opened.close()
