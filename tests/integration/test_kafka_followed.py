"""A log that is followed on a cluster tells its layouts to threads that must not wait, and none too late."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from unittest import mock

import pytest

from support.kafka_log import KafkaEngine
from support.relay_log import fill, piece, schema_piece, table_schema
from support.waiting import wait_for
from walbus.errors import LogUnreachable, UsageError
from walbus.log import SchemaRegistry
from walbus.position import ORIGIN
from walbus.records import Flag
from walbus.relay.kafka import followed as following
from walbus.relay.kafka.followed import FollowedLog, KnownLayouts


@pytest.fixture
def engine(kafka: str, tmp_path: Path) -> Iterator[KafkaEngine]:
    made = KafkaEngine(kafka, tmp_path / "log")
    yield made
    made.close()


def test_a_layout_is_known_when_a_record_that_tells_of_it_is_given_out(
    engine: KafkaEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "_LEARN_SECONDS", 3600.0)
    writer = engine.open_writer()
    fill(writer, 3)
    with closing(FollowedLog(engine.open_reader())) as log, closing(log.cursor(ORIGIN)) as cursor:
        assert cursor.read(1 << 20)
        assert log.schemas.all() == []
        made, _ = writer.schemas.register(table_schema())
        assert cursor.read(1 << 20) == [] == log.schemas.all()
        writer.append(piece(64, 1, 1, Flag.BEGIN))
        writer.append(schema_piece(64, 1, made))
        writer.append(piece(64, 2, 1, Flag.END))
        writer.sync()
        assert len(cursor.read(1 << 20)) == 3
        assert log.schemas.all() == [made] == [log.schemas.get(made.id)]
        assert log.source == engine.open_reader().source
        assert log.position_at_seq(log.bounds().last_seq + 1) == log.bounds().end


def test_a_layout_that_no_record_tells_of_is_known_soon(engine: KafkaEngine) -> None:
    writer = engine.open_writer()
    fill(writer, 3)
    with closing(FollowedLog(engine.open_reader())) as log:
        quiet, _ = writer.schemas.register(table_schema("quiet"))

        def known() -> bool:
            assert not log.wait(log.bounds().end, 0.1)
            return log.schemas.all() == [quiet]

        wait_for(known, what="the layout is known")


def test_what_is_known_is_told_while_the_cluster_is_away() -> None:
    layout = table_schema()
    cluster = mock.create_autospec(SchemaRegistry, instance=True)
    cluster.all.return_value = [layout]
    now = [100.0]
    known = KnownLayouts(cluster, lambda: now[0])
    cluster.all.side_effect = LogUnreachable("no answer")
    known.learn_now_and_then()
    now[0] += 2
    with pytest.raises(LogUnreachable):
        known.learn_now_and_then()
    assert known.all() == [layout] == [known.get(layout.id)]
    with pytest.raises(KeyError):
        known.get(layout.id + 1)
    with pytest.raises(UsageError):
        known.register(layout)
