"""Each suite of the log runs on each of its engines, and each suite of sinks on each of these."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.kafka_log import KafkaEngine
from support.relay_log import FileEngine
from support.sinks_under_test import (
    SINKS,
    SinkUnderTest,
    kafka_under_test,
    opensearch_under_test,
    postgres_under_test,
    redis_cluster_under_test,
    redis_under_test,
    sqlite_under_test,
    tantivy_under_test,
)
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
    kind, _, form = request.param.partition("-")
    if kind == "postgres":
        return postgres_under_test(tmp_path, request.getfixturevalue("target_database").dsn)
    if kind == "redis":
        return redis_under_test(tmp_path, request.getfixturevalue("redis_url"), form)
    if kind == "cluster":
        return redis_cluster_under_test(tmp_path, request.getfixturevalue("redis_cluster"), form)
    if kind == "kafka":
        options = {"format": form, "database": "shop"} if form else {}
        return kafka_under_test(tmp_path, request.getfixturevalue("kafka"), **options)
    if kind in ("opensearch", "elasticsearch"):
        return opensearch_under_test(tmp_path, request.getfixturevalue(f"{kind}_url"))
    return sqlite_under_test(tmp_path) if kind == "sqlite" else tantivy_under_test(tmp_path)


@pytest.fixture
def sink(under_test: SinkUnderTest) -> Iterator[Sink]:
    """The sink, opened."""
    opened = under_test.open()
    yield opened
    opened.close()
