"""Sinks of other packages: the sample below `examples/`, installed, found by its entry point, run, and killed."""

from __future__ import annotations

import shutil
import signal
import sqlite3
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from support.model_source import ITEMS, ModelSource, delete, insert, truncate, update
from support.running_consumer import RunningConsumer, stored
from support.scripted_relay import ScriptedRelay
from support.sink_writing import MARKS, following, windows
from support.waiting import wait_for
from support.walbus_command import Running, write_config
from walbus.config import ConsumerConfig
from walbus.consumers.rebuilding import discard
from walbus.consumers.sinks import Sink, SinkPlace, open_fenced_sink, open_sink
from walbus.consumers.sinks.base import ReadableSink
from walbus.errors import ConfigError, SinkRefused, UsageError

pytestmark = pytest.mark.one_version

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = ROOT / "examples/tally_sink"


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the sample is installed in, as pip does it."""
    folder = tmp_path_factory.mktemp("site")
    copy = shutil.copytree(SAMPLE, tmp_path_factory.mktemp("sample") / "tally_sink")
    options = ("--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check")
    subprocess.run(
        [sys.executable, "-m", "pip", "install", *options, "--target", folder, copy], check=True, timeout=300
    )
    return folder


@pytest.fixture
def installed(site: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.syspath_prepend(str(site))
    yield site
    sys.modules.pop("tally_sink", None)


@pytest.fixture
def place(tmp_path: Path) -> SinkPlace:
    return SinkPlace("test", tmp_path, ("public.*",))


def told(path: Path) -> dict[tuple[str, str], int]:
    """What was counted, by table and operation, whatever the day."""
    with closing(sqlite3.connect(path, timeout=20)) as database:
        if not database.execute("SELECT 1 FROM sqlite_master WHERE name = 'tally'").fetchone():
            return {}
        rows = database.execute('SELECT "table", op, sum(rows) FROM tally GROUP BY 1, 2')
        return {(table, op): count for table, op, count in rows}


def changes(source: ModelSource) -> Counter[tuple[str, str]]:
    """What the log has."""
    return Counter((change.table, change.op.name) for window in windows(source) for change in window)


def work(source: ModelSource, round_: int) -> None:
    ids = range(10 * round_, 10 * round_ + 6)
    source.commit([insert(ITEMS, id) for id in ids], pieces=2)
    source.commit([*(update(ITEMS, id, name="b") for id in ids), delete(ITEMS, ids[0])])


def test_the_sample_is_found_by_its_name_and_counts_what_comes(
    installed: Path, relay: ScriptedRelay, source: ModelSource, tmp_path: Path
) -> None:
    path = tmp_path / "activity.sqlite"
    options = {"path": str(path), "start": "earliest"}
    for round_ in range(2):
        work(source, round_)
        running = RunningConsumer(relay, "tally", options, tmp_path / "own")
        work(source, 100 + round_)
        if round_:
            source.commit([truncate(ITEMS)])
        stored(running, source)
        assert running.stop() is None
    assert told(path) == changes(source)
    assert told(path)[ITEMS, "TRUNCATE"] == 1


def test_a_crash_between_counting_and_commit_counts_nothing_twice(
    installed: Path, place: SinkPlace, source: ModelSource
) -> None:
    work(source, 1)
    first = following(source)
    with closing(open_sink("tally", {}, place)) as sink:
        sink.write(windows(source), MARKS)
        sink.commit(first)
        sink.write(windows(source), MARKS)
        work(source, 2)
        sink.write(windows(source, first.point.last_done), MARKS)
    with closing(open_sink("tally", {}, place)) as again:
        assert again.checkpoint() == first
        again.write(windows(source)[:3], MARKS)
        again.rollback()
        again.write(windows(source), MARKS)
        again.commit(following(source))
    assert told(place.folder / "tally.sqlite") == changes(source)


def test_of_two_that_write_one_file_the_later_one_is_refused(
    installed: Path, place: SinkPlace, source: ModelSource
) -> None:
    work(source, 1)

    def take(sink: Sink) -> None:
        sink.write(windows(source), MARKS)
        sink.commit(following(source))

    with closing(open_sink("tally", {}, place)) as one, closing(open_sink("tally", {}, place)) as other:
        assert one.checkpoint() is other.checkpoint() is None
        take(one)
        with pytest.raises(SinkRefused, match="another consumer"):
            take(other)
    assert told(place.folder / "tally.sqlite") == changes(source)


def test_what_is_wrong_is_named(installed: Path, place: SinkPlace) -> None:
    with pytest.raises(ConfigError, match=r"no such key.*consumer\.test\.colour"):
        open_sink("tally", {"colour": "red"}, place)
    with pytest.raises(ConfigError, match=r"the sinks are .*stdout, tally, tantivy"):
        open_sink("tallies", {}, place)
    (place.folder / "file").write_text("no database, and long enough for a header" * 20)
    with pytest.raises(SinkRefused, match="this is no place"):
        open_sink("tally", {"path": place.folder / "file"}, place)
    with pytest.raises(ConfigError, match="compares no tokens"):
        open_fenced_sink("tally", {}, place)
    with pytest.raises(UsageError, match="the sink tally cannot be rebuilt"):
        discard("test", ConsumerConfig(sink="tally"), place.folder)
    with closing(open_sink("tally", {}, place)) as sink:
        assert not isinstance(sink, ReadableSink)


def test_without_its_package_there_is_no_such_sink(place: SinkPlace) -> None:
    with pytest.raises(ConfigError, match="there is no sink 'tally'"):
        open_sink("tally", {}, place)


@pytest.mark.timeout(300)
def test_a_process_that_is_killed_again_and_again_counts_each_change_once(
    site: Path, relay: ScriptedRelay, source: ModelSource, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    path, log = tmp_path / "activity.sqlite", tmp_path / "consume.log"
    section = {"sink": "tally", "path": str(path), "start": "earliest", "relay": relay.url}
    sections = {"source": {"dsn": ""}, "consumer.activity": section}
    config = write_config(tmp_path / "walbus.toml", sections, tmp_path / "data")

    def consume() -> Running:
        running = Running("consume", "activity", "-c", str(config), log=log, PYTHONPATH=str(site))
        request.addfinalizer(running.process.wait)
        request.addfinalizer(running.process.kill)
        return running

    def counted() -> int:
        return sum(told(path).values())

    for round_ in range(4):
        before, running = counted(), consume()
        for number in range(20):
            work(source, 100 * round_ + number)
        wait_for(lambda before=before: counted() > before, 60, what="it counts")
        running.stop(signal.SIGKILL)
    running = consume()
    wait_for(lambda: counted() >= changes(source).total(), 60, what="all is counted")
    assert running.stop() == 0, running.log()
    assert told(path) == changes(source)


def test_the_page_shows_the_samples_own_words() -> None:
    page = (ROOT / "docs/consumers.md").read_text()
    points = tomllib.loads((SAMPLE / "pyproject.toml").read_text())["project"]["entry-points"]["walbus.sinks"]
    assert f'[project.entry-points."walbus.sinks"]\ntally = "{points["tally"]}"' in page
    module, _, name = points["tally"].partition(":")
    assert f"class {name}:" in (SAMPLE / f"{module}.py").read_text()
