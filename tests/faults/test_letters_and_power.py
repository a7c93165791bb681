"""A dead letter that was tried again is deleted once a power failure cannot take its row back, and no earlier."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import cast

import pytest

from support.model_source import ITEMS, ModelSource, insert
from support.redis_cluster import LocalCluster
from support.services import local_redis, missing
from support.sinks_under_test import redis_cluster_under_test, redis_under_test
from walbus.consumers.checkpoint import Checkpoint, Following, Marks, Point
from walbus.consumers.dead_letters import DeadLetters
from walbus.consumers.refused_rows import RowRefused, row_of
from walbus.consumers.sifted_sink import SiftedSink
from walbus.consumers.sinks import Sink, open_sink, redis_server
from walbus.errors import SinkUnavailable
from walbus.events import Window, window_of

pytestmark = pytest.mark.one_version

MARKS = Marks(1, 1)


class Unsettled:
    """A sink that takes everything, and calls `at_settling` when what it has committed is to be kept for good."""

    def __init__(self, at_settling: Callable[[], None]) -> None:
        self._settling = at_settling
        self.committed: Checkpoint | None = None
        self.written: list[Window] = []

    def checkpoint(self) -> Checkpoint | None:
        return self.committed

    def write(self, windows: Sequence[Window], marks: Marks) -> None:
        self.written += windows

    def commit(self, checkpoint: Checkpoint) -> None:
        self.committed = checkpoint

    def settle(self) -> None:
        self._settling()

    def close(self) -> None:
        pass


@contextmanager
def asked_letters(
    folder: Path, sink: Unsettled, count: int, seconds: float = 0.01
) -> Iterator[tuple[SiftedSink, DeadLetters]]:
    """Letters that are to be tried, and the sink that is to take them; the time is so much later at each look."""
    source = ModelSource()
    source.commit([insert(ITEMS, n) for n in range(count)])
    (window,) = [window_of(header, record, source.layouts.__getitem__) for header, record in source.records]
    sink.committed = Following("log-a", MARKS, Point(window.last, window.last_seq))
    clock = iter(range(1_000_000))
    with closing(DeadLetters(folder / "letters.sqlite")) as operator:
        for change in window.changes:
            operator.park(change, window, "log-a", ValueError("no"), 1)
        operator.retry()
        letters = DeadLetters(folder / "letters.sqlite")
        sifted = SiftedSink(cast(Sink, sink), row_of, letters, 1, "test", lambda: seconds * next(clock))
        sifted.checkpoint()
        with closing(sifted):
            yield sifted, operator


def test_a_letter_is_there_until_its_sink_is_sure_of_the_row(tmp_path: Path) -> None:
    seen = []
    sink = Unsettled(lambda: seen.append([letter.asked for letter in operator.letters()]))
    with asked_letters(tmp_path, sink, 3) as (sifted, operator):
        sifted.try_letters()
        assert seen == [[True, True, True]]
        assert operator.letters() == []


def test_letters_whose_sink_was_never_sure_are_tried_again(tmp_path: Path) -> None:
    def fails() -> None:
        raise SinkUnavailable("the power is gone")

    sink = Unsettled(fails)
    with asked_letters(tmp_path, sink, 3) as (sifted, operator):
        with pytest.raises(SinkUnavailable):
            sifted.try_letters()
        assert [letter.asked for letter in operator.letters()] == [True, True, True]


def test_a_letter_of_a_log_that_another_one_has_followed_is_void(tmp_path: Path) -> None:
    """The rows that the sink has are those of the other log, whose seqs are not this one's."""
    sink = Unsettled(lambda: None)
    with asked_letters(tmp_path, sink, 3) as (sifted, operator):
        assert isinstance(sink.committed, Following)
        sifted.commit(replace(sink.committed, log_id="log-b"))
        sifted.try_letters()
        assert (operator.letters(), sink.written) == ([], [])


class Emptied(Unsettled):
    """One that came back empty, and refuses the row all the same."""

    def write(self, windows: Sequence[Window], marks: Marks) -> None:
        self.committed = None
        raise RowRefused("it is refused", row=row_of(windows[0].changes[0]))

    def rollback(self) -> None:
        pass


def test_a_sink_that_is_empty_when_it_refuses_a_letter_is_begun_again(tmp_path: Path) -> None:
    """The letter would be told as refused once more, and whatever follows go behind a checkpoint that is gone."""
    with asked_letters(tmp_path, Emptied(lambda: None), 2) as (sifted, operator):
        with pytest.raises(SinkUnavailable, match="another checkpoint than was stored last"):
            sifted.try_letters()
        assert [(letter.asked, letter.attempts) for letter in operator.letters()] == [(True, 1), (True, 1)]


def test_letters_are_tried_a_moments_worth_at_a_time_so_that_a_stop_is_seen(tmp_path: Path) -> None:
    with asked_letters(tmp_path, Unsettled(lambda: None), 100) as (sifted, operator):
        left = []
        while operator.letters():
            sifted.try_letters()
            left.append(len(operator.letters()))
        assert 4 <= len(left) < 20, "each call takes some, and the next one goes on without a pause"
        assert left == sorted(set(left), reverse=True)


def test_a_look_that_takes_long_tries_one_letter_at_least(tmp_path: Path) -> None:
    with asked_letters(tmp_path, Unsettled(lambda: None), 3, seconds=1.0) as (sifted, operator):
        sifted.try_letters()
        assert len(operator.letters()) == 2


def traced(program: str, folder: Path) -> str:
    """Which files it opens and syncs."""
    code = program.format(tests=str(Path(__file__).parents[1]), folder=str(folder))
    trace = ("strace", "-f", "-y", "-o", str(folder / "trace"), "-e", "trace=fsync,fdatasync,openat")
    subprocess.run([*trace, sys.executable, "-c", textwrap.dedent(code)], check=True, timeout=120)
    return (folder / "trace").read_text()


SETTLES = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from support.model_source import ITEMS, ModelSource, insert
from support.sinks_under_test import sqlite_under_test
from walbus.consumers.checkpoint import Following, Marks, Point
from walbus.events import window_of
source = ModelSource()
source.commit([insert(ITEMS, 1)])
sink = sqlite_under_test(Path({folder!r})).open()
sink.write([window_of(h, r, source.layouts.__getitem__) for h, r in source.records], Marks(1, 1))
sink.commit(Following(source.log_id, Marks(1, 1), Point(source.end, source.last_seq)))
Path({folder!r}, "committed").touch()
sink.settle()
Path({folder!r}, "settled").touch()
sink.close()
"""


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_a_replica_in_sqlite_syncs_its_log_of_writes_when_it_settles(tmp_path: Path) -> None:
    told = traced(SETTLES, tmp_path)
    between = told[told.index(f'{tmp_path}/committed"') : told.index(f'{tmp_path}/settled"')]
    assert re.search(r"f(data)?sync\(\d+<[^>]*replica\.sqlite-wal>", between)


PARKS = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from support.model_source import ITEMS, ModelSource, insert
from walbus.consumers.dead_letters import DeadLetters
from walbus.events import window_of
source = ModelSource()
letters = DeadLetters(Path({folder!r}, "letters.sqlite"))
for n in range(3):
    source.commit([insert(ITEMS, n)])
    window = window_of(*source.records[-1], source.layouts.__getitem__)
    Path({folder!r}, f"before-{{n}}").touch()
    letters.park(window.changes[0], window, "log-a", ValueError("no"), 1)
Path({folder!r}, "before-3").touch()
letters.close()
"""


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_a_letter_is_synced_when_it_is_parked(tmp_path: Path) -> None:
    """The checkpoint passes its row next, and the log does not bring it again."""
    told = traced(PARKS, tmp_path)
    at = [told.index(f'{tmp_path}/before-{n}"') for n in range(4)]
    for start, end in pairwise(at):
        assert re.search(r"f(data)?sync\(\d+<[^>]*letters\.sqlite-wal>", told[start:end])


class Watch:
    """The time, and for how many seconds somebody slept."""

    def __init__(self) -> None:
        self.slept = 0.0
        self.monotonic = time.monotonic

    def sleep(self, seconds: float) -> None:
        self.slept += seconds
        time.sleep(seconds)


def test_a_consumer_that_waits_for_a_sync_stops_at_once(tmp_path: Path) -> None:
    """The row may be lost, so its letter stays: it is not settled."""
    if not shutil.which("redis-server"):
        missing("redis-server", "how it syncs is given when it starts")
    with local_redis("--appendonly", "yes", "--appendfsync", "everysec") as server:
        under_test = redis_under_test(tmp_path, server.url, "hash")
        place = replace(under_test.place, stopping=lambda: True)
        with (
            closing(open_sink("redis", under_test.options, place)) as sink,
            pytest.raises(SinkUnavailable, match="does not get to sync"),
        ):
            sink.settle()


def test_a_consumer_that_waits_for_the_syncs_of_a_cluster_stops_at_once(
    tmp_path: Path, redis_cluster: LocalCluster
) -> None:
    under_test = redis_cluster_under_test(tmp_path, redis_cluster, "hash")
    place = replace(under_test.place, stopping=lambda: True)
    try:
        for node in redis_cluster.masters:
            node.call("CONFIG SET", "appendonly", "yes", "appendfsync", "everysec")
        with (
            closing(open_sink("redis", under_test.options, place)) as sink,
            pytest.raises(SinkUnavailable, match="does not get to sync"),
        ):
            sink.settle()
    finally:
        for node in redis_cluster.masters:
            node.call("CONFIG SET", "appendonly", "no")


def test_a_redis_that_syncs_once_a_second_is_waited_for_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not shutil.which("redis-server"):
        missing("redis-server", "how it syncs is given when it starts")
    for options, waits in ((("always",), False), (("everysec",), True), (("no",), False), ((), False)):
        given = ("--appendonly", "yes", "--appendfsync", *options) if options else ()
        with local_redis(*given) as server, closing(redis_under_test(tmp_path, server.url, "hash").open()) as sink:
            watch, began = Watch(), time.monotonic()
            monkeypatch.setattr(redis_server, "time", watch)
            sink.settle()
            assert (watch.slept > 0) == waits, options
            assert not waits or time.monotonic() - began >= 2.0
