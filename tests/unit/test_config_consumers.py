"""Where a consumer has its log, and its rows, from."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from walbus.config import Settings
from walbus.config_consumers import log_address
from walbus.kafka_address import KafkaAddress

KAFKA = {
    "engine": "kafka",
    "topic_prefix": "shop",
    "kafka": {"bootstrap_servers": ["a:1", "b:2"], "options": {"x": "y"}},
}


def settings(relay: dict[str, Any], /, **consumer: Any) -> Settings:
    return Settings(source={"dsn": "postgresql://nowhere/shop"}, relay=relay, consumer={"c": {"sink": "s", **consumer}})


def address(relay: dict[str, Any], /, **consumer: Any) -> object:
    made = settings(relay, **consumer)
    return log_address(made, made.consumer["c"])


def test_a_consumer_reads_from_the_relay_or_from_those_that_it_names() -> None:
    assert address({}) == ("http://127.0.0.1:7070",)
    assert address({}, relay=["http://there:1"]) == ("http://there:1",)


def test_a_consumer_may_read_the_cluster_and_have_its_rows_from_a_server_or_from_topics() -> None:
    there = KafkaAddress("a:1,b:2", "walbus.walbus", {"x": "y"}, "http://127.0.0.1:7071")
    assert address(KAFKA, read_from="kafka") == there
    topics = KafkaAddress("a:1,b:2", "walbus.walbus", {"x": "y"}, "kafka://a:1,b:2/shop")
    assert address(KAFKA, read_from="kafka", rows_from="topics") == topics


@pytest.mark.parametrize(
    ("relay", "consumer", "why"),
    [
        ({}, {"read_from": "kafka"}, 'needs engine = "kafka"'),
        (KAFKA, {"rows_from": "topics"}, 'needs consumer.c.read_from = "kafka"'),
        (KAFKA, {"read_from": "kafka", "relay": ["http://there:1"]}, "consumer.c.relay names relays"),
    ],
)
def test_a_reading_that_cannot_be_is_refused(relay: dict[str, Any], consumer: dict[str, Any], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        settings(relay, **consumer)
