"""Capture ends, or stands still, at every step of a Kafka transaction; the log equals what a second slot saw."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from support.capturing import SlotLooks, flushed_lsn, source_of
from support.database import Database
from support.kafka_writing import committed
from support.log_view import log_transactions
from support.oracle import Oracle, assert_same_transactions
from support.relay_log import commits
from support.seed import announced_seed
from support.waiting import wait_for
from support.walbus_command import Running, environment, write_config
from walbus.config import SourceConfig
from walbus.errors import LogMissing
from walbus.relay.kafka import open_kafka_reader
from walbus.relay.kafka.cluster import ClusterSettings

pytestmark = [pytest.mark.one_version, pytest.mark.timeout(600)]

#: `walbus capture` that is killed at the nth call of a step of its producer: just before it, meanwhile, or behind it.
DIES = """
import os, signal, sys, threading, time
from walbus.relay.kafka.cluster import ClusterClients

def die():
    os.kill(os.getpid(), signal.SIGKILL)

class Dying:
    left = {nth}
    def __init__(self, producer):
        self._producer = producer
    def __getattr__(self, name):
        step = getattr(self._producer, name)
        if name != {step!r}:
            return step
        def dying(*args, **named):
            Dying.left -= 1
            if Dying.left == 0 and {when!r} == "before":
                die()
            if Dying.left == 0 and {when!r} == "meanwhile":
                threading.Timer({seconds}, die).start()
            done = step(*args, **named)
            if Dying.left == 0:
                die()
            return done
        return dying

made = ClusterClients.producer
ClusterClients.producer = lambda self, largest: Dying(made(self, largest))
sys.argv = ["walbus", "capture", "-c", {config!r}]
from walbus.cli import main
main()
"""

#: The first transaction of a capture says who writes; the second one holds changes (of a large one, with the third).
STEPS = [
    *((step, when, nth)
      for step, nth in (("init_transactions", 1), ("begin_transaction", 1), ("begin_transaction", 2), ("produce", 2),
                        ("poll", 2), ("commit_transaction", 1), ("commit_transaction", 2))
      for when in ("before", "behind")),
    *(("commit_transaction", "meanwhile", nth) for nth in (1, 2, 2, 2)),
]  # fmt: skip
LARGE_STEPS = [
    ("produce", "behind", 10),
    ("commit_transaction", "before", 2),
    ("commit_transaction", "behind", 2),
    ("begin_transaction", "behind", 3),
    ("commit_transaction", "before", 3),
    ("commit_transaction", "meanwhile", 3),
    ("commit_transaction", "behind", 3),
]


class Captured:
    """A database that is captured into topics of its own, by one capture after another."""

    def __init__(self, database: Database, bootstrap: str, folder: Path) -> None:
        self.database, self.folder = database, folder
        self.slot = f"s_{database.name}"
        self.cluster = ClusterSettings(bootstrap, f"log-{database.name}")
        self.source: SourceConfig = source_of(database.dsn, slot=self.slot)
        self._started: list[Running] = []

    def config(self, name: str = "one") -> Path:
        """Of a capture whose files lie in a folder of this name."""
        (self.folder / name).mkdir(exist_ok=True)
        sections = {
            "source": {"dsn": self.database.dsn, "slot": self.slot, "tables": ["public.*"]},
            "relay": {"engine": "kafka"},
            "relay.kafka": {
                "bootstrap_servers": self.cluster.bootstrap.split(","),
                "topic": self.cluster.topic,
            },
        }
        return write_config(self.folder / name / "walbus.toml", sections, self.folder / name / "data")

    def start(self, name: str = "one") -> Running:
        self._started.append(Running("capture", "-c", str(self.config(name)), log=self.folder / f"{name}.log"))
        return self._started[-1]

    def is_in_the_log(self, lsn: int) -> bool:
        try:
            with closing(open_kafka_reader(self.cluster)) as reader:
                return reader.bounds().end_lsn >= lsn
        except LogMissing:
            return False

    def wait_until_caught_up(self) -> None:
        lsn = flushed_lsn(self.source)
        wait_for(lambda: self.is_in_the_log(lsn), 120, what="the log holds everything", every=0.2)

    def check(self, truth: Oracle) -> None:
        """What is committed is what the second slot saw, each transaction once and whole, under rising seqs."""
        with closing(open_kafka_reader(self.cluster)) as reader:
            assert_same_transactions([one for one in log_transactions(reader) if one.xid], truth.transactions())
        headers = committed(self.cluster)
        whole = commits([header for header in headers if header.kind == 1])
        assert whole == sorted(set(whole))
        seqs = [header.last_seq for header in headers if header.kind == 1]
        assert seqs == sorted(set(seqs))

    def stop(self) -> None:
        for running in self._started:
            if running.process.poll() is None:
                running.process.kill()
                running.process.wait()


@pytest.fixture
def captured(database: Database, kafka: str, tmp_path: Path) -> Iterator[Captured]:
    """A captured table."""
    database.execute("CREATE TABLE t (id serial PRIMARY KEY, note text)")
    made = Captured(database, kafka, tmp_path)
    try:
        yield made
    finally:
        made.stop()


def begun(captured: Captured, oracle: Callable[..., Oracle]) -> tuple[Running, Oracle]:
    """The first capture, which streams, and a second slot; nothing was written yet."""
    since = time.time()
    running = captured.start()
    with closing(SlotLooks(captured.source)) as looks:
        wait_for(lambda: looks.is_active(since), 60, what="capture streams")
    return running, oracle("walbus")


def kill_at(captured: Captured, step: str, when: str, nth: int, seconds: float) -> None:
    """Runs capture until it is killed there."""
    code = DIES.format(step=step, when=when, nth=nth, seconds=seconds, config=str(captured.config()))
    with (captured.folder / "dying.log").open("ab") as log:
        process = subprocess.Popen([sys.executable, "-P", "-c", code], stdout=log, stderr=log, env=environment())
    try:
        assert process.wait(120) == -signal.SIGKILL, (captured.folder / "dying.log").read_text()[-3000:]
    finally:
        process.kill()
        process.wait()


def some_transactions(database: Database, rng: random.Random) -> None:
    """Of one row, of some, and of one that comes to nothing."""
    database.execute("INSERT INTO t (note) VALUES ('one')")
    database.execute(f"INSERT INTO t (note) SELECT 'n' || i FROM generate_series(1, {rng.randrange(2, 2000)}) AS i")
    database.execute("DO $$ BEGIN INSERT INTO t (note) VALUES ('never'); ROLLBACK; END $$")
    database.execute(f"UPDATE t SET note = note || '!' WHERE id % {rng.randrange(20, 90)} = 0")


def a_large_transaction(database: Database, rng: random.Random) -> None:
    """Larger than what capture keeps in memory of one that has not ended."""
    query = f"SELECT repeat(md5(i::text), 32) FROM generate_series(1, {rng.randrange(12_000, 14_000)}) AS i"
    database.execute(f"INSERT INTO t (note) {query}")


@pytest.mark.long
@pytest.mark.parametrize(
    ("steps", "write"), [(STEPS, some_transactions), (LARGE_STEPS, a_large_transaction)], ids=["small", "large"]
)
def test_capture_that_is_killed_at_any_step_of_a_kafka_transaction_loses_and_repeats_nothing(
    captured: Captured,
    oracle: Callable[..., Oracle],
    steps: list[tuple[str, str, int]],
    write: Callable[[Database, random.Random], None],
) -> None:
    rng = random.Random(announced_seed("the steps"))
    running, truth = begun(captured, oracle)
    assert running.stop() == 0
    for step, when, nth in rng.sample(steps, len(steps)):
        write(captured.database, rng)
        kill_at(captured, step, when, nth, rng.choice((0.0, 0.001, 0.004)))
    captured.start()
    captured.wait_until_caught_up()
    captured.check(truth)


def test_capture_that_stands_still_for_longer_than_its_lease_is_fenced(
    captured: Captured, oracle: Callable[..., Oracle]
) -> None:
    first, truth = begun(captured, oracle)
    captured.database.execute("INSERT INTO t (note) VALUES ('by the first')")
    captured.wait_until_caught_up()
    second = captured.start("two")
    assert second.process.wait(60) != 0
    assert "another process writes this log" in second.log()
    os.kill(first.process.pid, signal.SIGSTOP)
    captured.database.execute("INSERT INTO t (note) SELECT 'of nobody yet' FROM generate_series(1, 500)")
    lsn = flushed_lsn(captured.source)

    def follows() -> bool:
        nonlocal second
        if second.process.poll() is not None:  # the first one is still waited for
            second = captured.start("two")
        return captured.is_in_the_log(lsn)

    wait_for(follows, 120, what="another capture takes over", every=1.0)
    os.kill(first.process.pid, signal.SIGCONT)
    captured.database.execute("INSERT INTO t (note) VALUES ('by the second')")
    assert first.process.wait(60) != 0
    assert "another capture took the log over" in first.log()
    captured.database.execute("INSERT INTO t (note) VALUES ('by the second, still')")
    captured.wait_until_caught_up()
    captured.check(truth)
    assert second.stop() == 0
