"""First batches that a broker refuses while it takes the next: librdkafka tells them as delivered, and none is lost."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from support.kafka_log import KafkaEngine
from support.kafka_refusing import RefusingWay, refusing
from support.kafka_writing import patiently
from support.model_source import ITEMS, ModelSource, insert
from support.relay_log import commits, read_all, transaction
from support.sink_writing import fill
from support.sinks_under_test import kafka_under_test

pytestmark = pytest.mark.one_version


@pytest.fixture
def way(kafka: str) -> Iterator[RefusingWay]:
    with refusing(kafka) as opened:
        yield opened


def test_the_log_has_every_transaction_though_the_first_batch_was_refused(
    way: RefusingWay, kafka: str, tmp_path: Path
) -> None:
    engine = KafkaEngine(kafka, tmp_path / "log")
    through = KafkaEngine(way.bootstrap, tmp_path / "log")
    through.cluster = replace(through.cluster, topic=engine.cluster.topic)
    through.plan = through.plan._replace(largest=64 << 10)  # bytes of a batch
    with closing(engine), closing(through):
        writer = through.open_writer()
        for lsn in range(16, 16 * 41, 16):
            patiently(lambda lsn=lsn: writer.append(transaction(lsn, size=20_000)))
        patiently(writer.sync)
        assert (engine.cluster.topic, 0) in way.refused
        assert commits(read_all(engine.open_reader())) == list(range(16, 16 * 41, 16))


@pytest.mark.parametrize("form", [{}, {"format": "debezium", "database": "shop"}])
def test_the_topics_have_every_row_though_first_batches_were_refused(
    way: RefusingWay, kafka: str, tmp_path: Path, form: dict[str, str]
) -> None:
    under_test = kafka_under_test(tmp_path, kafka, max_message_bytes=8 << 20, **form)
    under_test.options["bootstrap_servers"] = way.bootstrap
    source = ModelSource()
    source.commit([insert(ITEMS, n, "small", "x") for n in range(12)])
    source.commit([insert(ITEMS, n, "a batch of its own", "x" * 1_000_000) for n in range(12, 24)])
    with closing(under_test.open()) as sink:
        fill(sink, source)
    assert {number for topic, number in way.refused if topic.endswith(".items")} == {0, 1, 2}
    assert under_test.rows().keys() == source.rows(ITEMS).keys()
