"""Every sink behind a mapping, from the snapshot to the live tail."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from support.model_source import ITEMS, ModelSource, delete, insert, truncate, update
from support.running_consumer import RunningConsumer, consumer
from support.scripted_relay import ScriptedRelay
from support.sinks_under_test import (
    Row,
    SinkUnderTest,
    opensearch_under_test,
    postgres_under_test,
    redis_under_test,
    sqlite_under_test,
    tantivy_under_test,
)
from support.waiting import wait_for
from walbus.errors import SinkRefused

pytestmark = pytest.mark.one_version

MAPPING: dict[str, Any] = {
    "rename": {"name": "title"},
    "constants": {"region": "eu"},
    "function": "support.mapped_rows:loud",
    "fields": {"size": "int8"},
}


@pytest.fixture(params=["sqlite", "postgres", "tantivy", "redis-json", "opensearch"])
def under_test(request: pytest.FixtureRequest, tmp_path: Path) -> SinkUnderTest:
    match request.param:
        case "postgres":
            return postgres_under_test(tmp_path, request.getfixturevalue("target_database").dsn)
        case "opensearch":
            found = opensearch_under_test(tmp_path, request.getfixturevalue("opensearch_url"))
            return replace(found, read=lambda table: without_name(found.read(table)))
        case "redis-json":
            return redis_under_test(tmp_path, request.getfixturevalue("redis_url"), "json")
        case "sqlite":
            return sqlite_under_test(tmp_path)
        case _:
            return tantivy_under_test(tmp_path)


def without_name(rows: dict[str, Row]) -> dict[str, Row]:
    """OpenSearch's rows, whose reader has a name for each, NULL where the document has none."""
    assert all(row.pop("name") is None for row in rows.values())
    return rows


def expected(source: ModelSource) -> dict[str, Row]:
    return {
        id: {
            "id": id,
            "title": row["name"] and row["name"].upper(),
            "body": row["body"],
            "region": "eu",
            "size": str(len(row["body"] or "")),
        }
        for id, row in source.rows().items()
        if row["name"] != "secret"
    }


def equal(under_test: SinkUnderTest, source: ModelSource) -> None:
    wait_for(lambda: under_test.rows() == expected(source), 60, what="the sink equals the mapped source")


def test_a_sink_holds_what_the_mapping_makes_of_the_source(
    under_test: SinkUnderTest, relay: ScriptedRelay, source: ModelSource
) -> None:
    source.commit([insert(ITEMS, n, "secret" if n == 3 else f"n{n}", "long " * n) for n in range(10)])
    source.trim(source.end)
    with consumer(relay, under_test, table={ITEMS: MAPPING}):
        equal(under_test, source)
        source.commit([update(ITEMS, 1, name="one"), update(ITEMS, 2, new_id=50, name="moved"), delete(ITEMS, 4)])
        equal(under_test, source)
        source.commit([update(ITEMS, 5, name="secret"), update(ITEMS, 3, name="told", body="now")])
        equal(under_test, source)
        source.commit([truncate(ITEMS), insert(ITEMS, 1, "after", None)])
        equal(under_test, source)
    with consumer(relay, under_test, table={ITEMS: MAPPING}):
        source.commit([insert(ITEMS, 7)])
        equal(under_test, source)


def test_a_sink_is_not_gone_on_with_under_another_mapping(
    relay: ScriptedRelay, source: ModelSource, tmp_path: Path
) -> None:
    under_test = sqlite_under_test(tmp_path)
    source.commit([insert(ITEMS, 1)])
    with consumer(relay, under_test):
        wait_for(lambda: under_test.rows() == source.rows())
    running = RunningConsumer(relay, "sqlite", {**under_test.options, "table": {ITEMS: MAPPING}}, tmp_path)
    assert isinstance(running.ended(), SinkRefused)
    assert under_test.rows() == source.rows()
