"""A hold on the log that lies on the cluster: who trims the log keeps to it, whether or not anybody has it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka.admin import AdminClient
from structlog.testing import capture_logs

from support.kafka_log import KafkaEngine
from support.relay_log import BASE_TIME, commits, fill, read_all
from support.waiting import wait_for
from walbus.errors import ConfigError, LogBusy, LogError, LogMissing, LogUnreachable
from walbus.position import Position
from walbus.relay.kafka import hold as holding
from walbus.relay.kafka import trimming
from walbus.relay.kafka import view as viewing
from walbus.relay.kafka.cluster import ClusterClients
from walbus.relay.kafka.held_offset import Held, held_on
from walbus.relay.kafka.hold import ClusterHold
from walbus.relay.kafka.lock import GroupLock
from walbus.relay.kafka.partition import ends_of
from walbus.relay.kafka.writer import KafkaLogWriter

LATER = (BASE_TIME + 1600) / 1e6 + 7200  #: when all of the log is too old to be kept


@pytest.fixture
def engine(kafka: str, tmp_path: Path) -> Iterator[KafkaEngine]:
    made = KafkaEngine(kafka, tmp_path / "log", block_bytes=4 << 10)
    yield made
    made.close()


def held(engine: KafkaEngine) -> Held | None:
    with closing(ClusterClients(engine.cluster)) as clients:
        return held_on(clients, 15.0)


def is_had(hold: ClusterHold) -> bool:
    try:
        hold.require()
    except (LogBusy, LogMissing):
        return False
    return True


def require(hold: ClusterHold) -> None:
    """As its owner does: again while the cluster has not answered yet."""
    while True:
        try:
            return hold.require()
        except LogUnreachable as error:
            if "has not answered yet" not in error.what:
                raise


def let_go(engine: KafkaEngine) -> None:
    """As `kafka-consumer-groups.sh --delete` does, once nobody is a member."""
    client = AdminClient({"bootstrap.servers": engine.cluster.bootstrap, "log_level": 0})

    def gone() -> bool:
        (done,) = client.delete_consumer_groups([engine.cluster.hold_group]).values()
        return done.result() is None

    wait_for(gone, what="the group is deleted", every=0.1)


@contextmanager
def holding_at(engine: KafkaEngine, position: Position) -> Iterator[ClusterHold]:
    """A hold that stands at a position."""
    with closing(ClusterHold(engine.cluster)) as hold:
        require(hold)
        hold.move(engine.open_reader().bounds().log_id, position)
        wait_until_at(engine, position)
        yield hold


def wait_until_at(engine: KafkaEngine, position: Position) -> None:
    def there() -> bool:
        found = held(engine)
        return found is not None and found.text == str(position)

    wait_for(there, what=f"the hold is at {position}", every=0.1)


def written(engine: KafkaEngine) -> KafkaLogWriter:
    """A log of a hundred transactions in many messages."""
    writer = engine.open_writer()
    for first in range(1, 101, 5):
        fill(writer, 5, first=first)
    return writer


def check_trimmed(engine: KafkaEngine, writer: KafkaLogWriter, position: Position, *, slack: int) -> None:
    """All that is behind a position is there, and at most so many LSNs before it are."""
    trimmed = writer.trim(LATER)
    assert position.commit_lsn - slack <= trimmed.commit_lsn, f"{trimmed} of {writer.bounds()}, held {held(engine)}"
    assert trimmed <= position, f"{trimmed} is past the hold {held(engine)}"
    assert engine.open_reader().bounds().trimmed == trimmed
    assert commits(read_all(engine.open_reader(), position)) == list(range(position.commit_lsn + 16, 1601, 16))


def test_a_log_is_trimmed_up_to_the_hold_on_the_cluster_and_not_beyond(engine: KafkaEngine) -> None:
    writer = written(engine)
    with holding_at(engine, Position(1, 400, 2)) as hold:
        check_trimmed(engine, writer, Position(1, 400, 2), slack=160)
        hold.move(writer.bounds().log_id, Position(1, 800, 2))
        wait_until_at(engine, Position(1, 800, 2))
        check_trimmed(engine, writer, Position(1, 800, 2), slack=160)
    check_trimmed(engine, writer, Position(1, 800, 2), slack=160)  # whose owner is away
    let_go(engine)
    assert writer.trim(LATER) > Position(1, 1400, 2)


def test_the_lower_of_two_holds_counts(engine: KafkaEngine) -> None:
    writer = written(engine)
    (engine.folder / "holds").mkdir(parents=True)
    file = engine.folder / "holds" / "bootstrap.json"
    with holding_at(engine, Position(1, 800, 2)):
        file.write_text('{"last_done": "1:0/190:2"}')  # 400
        check_trimmed(engine, writer, Position(1, 400, 2), slack=160)
        file.write_text('{"last_done": "1:0/4B0:2"}')  # 1200
        check_trimmed(engine, writer, Position(1, 800, 2), slack=160)


def test_a_hold_at_the_end_of_the_log_keeps_what_comes_behind_it(engine: KafkaEngine) -> None:
    writer = written(engine)
    end = writer.bounds().end
    with holding_at(engine, end):
        for first in range(101, 201, 5):
            fill(writer, 5, first=first)
        trimmed = writer.trim(LATER + 1)
        assert Position(1, 1440, 2) <= trimmed <= end
        assert commits(read_all(engine.open_reader(), end))[0] == end.commit_lsn + 16


def test_a_hold_that_is_not_told_holds_everything_and_the_writer_goes_on(
    engine: KafkaEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, asked = written(engine), []
    now = [time.monotonic()]
    writer._settings.trimming._monotonic = lambda: now[0]

    def untold(clients: ClusterClients, seconds: float) -> None:
        del clients
        asked.append(seconds)
        raise LogUnreachable("no coordinator")

    with monkeypatch.context() as patch, capture_logs() as logs:
        patch.setattr(trimming, "held_on", untold)
        for _ in range(3):
            assert writer.trim(LATER) == Position(0, 0, 0)
        assert len(asked) == 1  # a question may take long, and the writer has other things to do
        now[0] += 31
        assert writer.trim(LATER) == Position(0, 0, 0)
        assert len(asked) == 2
        fill(writer, 5, first=101)
    assert [log["event"] for log in logs].count("log_hold_unreadable") == 1
    now[0] += 31
    assert writer.trim(LATER) > Position(1, 1400, 2)


def trims_meanwhile(writer: KafkaLogWriter, act: Callable[..., Any]) -> Callable[..., Any]:
    """What does the same, but that the log is trimmed behind its first time."""
    done: list[None] = []

    def doing(*given: object) -> object:
        result = act(*given)
        if not done:
            done.append(None)
            writer.trim(LATER)
        return result

    return doing


@pytest.mark.parametrize("by", ["position", "time", "seq"])
def test_a_reader_that_finds_its_place_while_the_log_is_trimmed_before_it_is_not_too_late(
    engine: KafkaEngine, by: str
) -> None:
    writer = written(engine)
    held = Position(1, 1200, 2)
    (engine.folder / "holds").mkdir(parents=True)
    (engine.folder / "holds" / "bootstrap.json").write_text('{"last_done": "1:0/4B0:2"}')
    wanted = next(header.first_seq for header in read_all(engine.open_reader(), held))
    fresh = engine.open_reader()
    with closing(fresh.any_cursor()) as cursor:
        cursor._view = trims_meanwhile(writer, fresh.view)
        match by:
            case "position":
                cursor.seek(held)
            case "time":
                cursor.seek_time(BASE_TIME + 1201)
            case _:
                cursor.seek_seq(wanted)
        assert cursor.done == held
    assert fresh.bounds().trimmed == held


def test_the_bounds_of_a_log_that_is_trimmed_meanwhile_are_told(
    engine: KafkaEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = written(engine)
    reader = engine.open_reader()
    monkeypatch.setattr(viewing, "ends_of", trims_meanwhile(writer, ends_of))
    assert reader.bounds().trimmed > Position(1, 1400, 2)


def test_the_cluster_is_asked_for_its_hold_only_where_something_would_go(
    engine: KafkaEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = written(engine)

    def asked(clients: ClusterClients, seconds: float) -> None:
        raise AssertionError(f"{clients.settings.hold_group} was asked for, {seconds}")

    monkeypatch.setattr(trimming, "held_on", asked)
    assert writer.trim(BASE_TIME / 1e6) == Position(0, 0, 0)


def test_a_second_owner_is_told_who_holds_the_log_and_follows_when_that_has_ended(engine: KafkaEngine) -> None:
    written(engine)
    with holding_at(engine, Position(1, 400, 2)) as first, closing(ClusterHold(engine.cluster)) as second:
        with pytest.raises(LogBusy, match="another process holds this log for a bootstrap: walbus-") as told:
            require(second)
        assert "stop one of the two" in str(told.value)
        second.move(engine.open_reader().bounds().log_id, Position(1, 800, 2))
        first.require()
        first.close()
        wait_for(lambda: is_had(second), 60, what="the second one has the hold")
        wait_until_at(engine, Position(1, 800, 2))


def test_a_hold_that_does_not_move_is_written_again_lest_brokers_forget_it(
    engine: KafkaEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes: list[str] = []
    note = GroupLock.note

    def counted(lock: GroupLock, topic: str, offset: int, text: str) -> None:
        note(lock, topic, offset, text)
        notes.append(text)

    monkeypatch.setattr(GroupLock, "note", counted)
    monkeypatch.setattr(holding, "_TICK_SECONDS", 0.05)
    written(engine)
    with holding_at(engine, Position(1, 400, 2)):
        wait_for(lambda: notes, what="it is known here too that it is written")
        settled = time.monotonic() + 1.0
        wait_for(lambda: time.monotonic() > settled)
        assert notes == ["1:0/190:2"]
        monkeypatch.setattr(holding, "_AGAIN_SECONDS", 0.3)
        wait_for(lambda: len(notes) >= 3, what="it is written again")
    assert set(notes) == {"1:0/190:2"}


def test_a_position_of_another_log_moves_no_hold(engine: KafkaEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holding, "_TICK_SECONDS", 0.05)
    written(engine)
    with holding_at(engine, Position(1, 400, 2)) as hold:
        hold.move("another", Position(1, 800, 2))
        settled = time.monotonic() + 1.0
        wait_for(lambda: time.monotonic() > settled)
        found = held(engine)
        assert found is not None and found.text == "1:0/190:2"
        hold.require()


def test_a_hold_on_a_log_that_is_not_there_yet_is_waited_for(engine: KafkaEngine) -> None:
    with closing(ClusterHold(engine.cluster)) as hold:
        with pytest.raises(LogMissing):
            require(hold)
        written(engine)
        wait_for(lambda: is_had(hold), 60, what="it is had once there is a log")


def test_a_hold_beside_a_relay_goes_once_there_is_one_on_the_cluster(engine: KafkaEngine, tmp_path: Path) -> None:
    written(engine)
    file = tmp_path / "bootstrap.json"
    file.write_text('{"last_done": "1:0/10:2"}')
    with closing(ClusterHold(engine.cluster, replaces=file)) as hold:
        require(hold)
        assert file.exists()
        hold.move(engine.open_reader().bounds().log_id, Position(1, 400, 2))
        wait_for(lambda: not file.exists(), what="the file is gone")
        found = held(engine)
        assert found is not None and found.text == "1:0/190:2"


def test_a_cluster_that_is_away_is_told_and_a_wrong_option_too(kafka: str, tmp_path: Path, free_port: int) -> None:
    engine = KafkaEngine(f"127.0.0.1:{free_port}", tmp_path / "log")
    engine.cluster = dataclasses.replace(engine.cluster, answer_seconds=1.0)
    with closing(ClusterHold(engine.cluster)) as hold, pytest.raises(LogUnreachable, match=r"127\.0\.0\.1"):
        require(hold)
    engine = KafkaEngine(kafka, tmp_path / "log")
    wrong = dataclasses.replace(engine.cluster, options={"no.such.option": "1"})
    with closing(ClusterHold(wrong)) as hold, pytest.raises(ConfigError, match=r"no\.such\.option"):
        require(hold)


def test_a_topic_that_was_made_again_ends_the_hold(engine: KafkaEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holding, "_TOPIC_SECONDS", 0.0)
    writer = written(engine)
    with holding_at(engine, Position(1, 400, 2)) as hold:
        engine.kill(writer)
        client = AdminClient({"bootstrap.servers": engine.cluster.bootstrap, "log_level": 0})
        for done in client.delete_topics([engine.cluster.topic]).values():
            done.result()

        def told() -> str:
            try:
                hold.require()
            except LogError as error:
                return type(error).__name__
            return ""

        wait_for(lambda: told() == "LogMissing", 60, what="it is told that the topic is gone")
    wait_for(lambda: held(engine) is None, what="the group's offset goes with the topic")
