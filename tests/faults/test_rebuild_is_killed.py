"""`walbus rebuild` is killed anywhere: readers never notice, and the next one goes on with the copy."""

from __future__ import annotations

import random
import signal
import threading
from pathlib import Path

import pytest

from support.model_source import ITEMS, ModelSource, insert, update
from support.rebuild_rig import Load, Looks, config_of, fill, looking_at
from support.running_consumer import consumer, equal, followed
from support.scripted_relay import ScriptedRelay
from support.seed import announced_seed
from support.sinks_under_test import (
    SinkUnderTest,
    opensearch_under_test,
    postgres_under_test,
    redis_under_test,
    sqlite_under_test,
    tantivy_under_test,
)
from support.waiting import wait_for
from support.walbus_command import Running, walbus
from walbus.config import ConsumerConfig
from walbus.consumers.sink_verifying import verify_sink

pytestmark = pytest.mark.one_version

_KILLS = 4
#: What the command has said before the moment is drawn at which it is killed.
_MARKS = ("", "rebuild.bootstrap_begins", "rebuild.table_begins", "rebuild.bootstrap_ends")


@pytest.fixture(params=["sqlite", "postgres", "redis", "opensearch", "tantivy"])
def under_test(request: pytest.FixtureRequest, tmp_path: Path) -> SinkUnderTest:
    if request.param == "postgres":
        return postgres_under_test(tmp_path, request.getfixturevalue("target_database").dsn)
    if request.param == "redis":
        return redis_under_test(tmp_path, request.getfixturevalue("redis_url"), "hash", pointer="items:live")
    if request.param == "opensearch":
        return opensearch_under_test(tmp_path, request.getfixturevalue("opensearch_url"))
    if request.param == "tantivy":
        return tantivy_under_test(tmp_path)
    return sqlite_under_test(tmp_path)


def killed(config: str, log: Path, chance: random.Random) -> None:
    """Starts the command, and kills it somewhere, if it has not come to its end before."""
    running = Running("rebuild", "test", "-c", config, log=log)
    mark, moment = chance.choice(_MARKS), chance.uniform(0.0, 0.4)
    print(f"killed {moment:.3f} s behind {mark or 'its start'}")
    try:
        wait_for(lambda: mark in running.log() or running.process.poll() is not None, 60, what=mark)
        threading.Event().wait(moment)
    finally:
        running.stop(signal.SIGKILL)


@pytest.mark.timeout(300)
def test_a_rebuild_that_is_killed_again_and_again_leaves_no_trace_but_a_copy_that_is_gone_on_with(
    under_test: SinkUnderTest, relay: ScriptedRelay, source: ModelSource, tmp_path: Path
) -> None:
    seed = announced_seed("a rebuild that is killed")
    chance = random.Random(seed)
    source.commit([insert(ITEMS, 1_000 + n, "more", "body" * 20) for n in range(2_000)])
    fill(source)
    with consumer(relay, under_test) as running:
        equal(under_test, relay)
        followed(running, under_test, relay, update(ITEMS, 9, name="behind the snapshot"))
    config = str(config_of(relay, under_test, tmp_path))
    with Load(source, seed), Looks(looking_at(under_test)), consumer(relay, under_test):
        for number in range(_KILLS):
            killed(config, tmp_path / f"rebuild-{number}.log", chance)
            assert walbus("rebuild", "test", "--drop-old", "-c", config).code == 0  # of one that was swapped in time
        done = walbus("rebuild", "test", "-c", config, deadline=120)
        assert done.code == 0, done.stderr
    with consumer(relay, under_test):
        equal(under_test, relay)
    options = ConsumerConfig(sink=under_test.name, tables=("public.*",), **under_test.options)
    (verdict,) = verify_sink("test", options, relay_url=relay.url, folder=under_test.place.folder)
    assert (verdict.reason, verdict.differing) == (None, 0)
