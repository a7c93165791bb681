"""The sink of JSON lines: what a program at the other end of the pipe reads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from support.model_source import ITEMS, ModelSource, delete, insert, truncate, update
from support.scripted_relay import ScriptedRelay
from support.sink_writing import MARKS, following, windows
from support.waiting import wait_for
from walbus.consumers.sinks import SinkPlace, open_sink
from walbus.consumers.sinks.stdout import StdoutSink
from walbus.consumers.steps import Sweep
from walbus.errors import ConfigError, SinkRefused, SinkUnavailable
from walbus.events import window_of
from walbus.jsonlines import LineRenderer


class Pipe:
    """A pipe: `sink` writes, `text` reads what has come."""

    def __init__(self, folder: Path) -> None:
        self.reading, self.writing = os.pipe()
        os.set_blocking(self.reading, False)
        self.sink = StdoutSink(self.writing, folder / "stdout.json")

    def text(self) -> bytes:
        found = b""
        with suppress(BlockingIOError):
            while part := os.read(self.reading, 1 << 20):
                found += part
        return found

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text().splitlines()]

    def close(self) -> None:
        for descriptor in (self.reading, self.writing):
            with suppress(OSError):
                os.close(descriptor)


@pytest.fixture
def pipe(tmp_path: Path) -> Iterator[Pipe]:
    pipe = Pipe(tmp_path)
    yield pipe
    pipe.close()


def test_lines_are_those_of_the_relay(pipe: Pipe, source: ModelSource) -> None:
    source.commit([insert(ITEMS, n, 'quo"te\n', None) for n in range(7)], pieces=3)
    source.commit([update(ITEMS, 1, name="x"), update(ITEMS, 2, new_id=9, name="y"), delete(ITEMS, 3), truncate(ITEMS)])
    snapshot, delta = source.snapshot(ITEMS, None, at=1), source.delta(ITEMS, 0)
    records = [*snapshot, *delta, *source.records]
    renderer = LineRenderer(source.layouts.__getitem__)
    wanted = b"".join(renderer.render(header, record) for header, record in records).splitlines()
    pipe.sink.write([window_of(h, r, source.layouts.__getitem__) for h, r in records], MARKS)
    pipe.sink.commit(following(source))
    lines = pipe.text().splitlines()
    assert [json.loads(line) for line in lines] == [
        json.loads(line) for line in wanted if b'_end"' not in line
    ]  # a sweep stands for the end of a snapshot


def test_nothing_is_shown_before_its_commit_unless_it_is_too_large(pipe: Pipe, source: ModelSource) -> None:
    source.commit([insert(ITEMS, 1)])
    pipe.sink.write(windows(source), MARKS)
    assert pipe.lines() == []
    pipe.sink.rollback()
    pipe.sink.write(windows(source), MARKS)
    pipe.sink.commit(following(source))
    assert [line["op"] for line in pipe.lines()] == ["begin", "insert", "commit"]


def test_what_was_shown_and_does_not_count_is_taken_back(pipe: Pipe, source: ModelSource, tmp_path: Path) -> None:
    path = tmp_path / "lines"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    sink = StdoutSink(descriptor, tmp_path / "other.json")
    source.commit([insert(ITEMS, n, "x" * 600_000) for n in range(4)], pieces=4)
    sink.write(windows(source)[:3], MARKS)
    sink.rollback()
    sink.write(windows(source), MARKS)
    sink.commit(following(source))
    os.close(descriptor)
    operations = [json.loads(line)["op"] for line in path.read_text().splitlines()]
    again = operations.index("rollback")
    assert operations[: again + 1] in (
        ["begin", "insert", "insert", "rollback"],
        ["begin", "insert", "insert", "insert", "rollback"],
    )
    assert operations[again + 1 :] == ["begin", "insert", "insert", "insert", "insert", "commit"]
    assert pipe.lines() == []


def test_a_line_that_was_cut_off_goes_on_before_anything_else(pipe: Pipe, source: ModelSource) -> None:
    os.set_blocking(pipe.writing, False)  # full, it refuses instead of waiting: as a full disk does
    source.commit([insert(ITEMS, 1, "x" * 200_000)])
    pipe.sink.write(windows(source), MARKS)
    with pytest.raises(SinkUnavailable, match="takes nothing now"):
        pipe.sink.commit(following(source))
    pipe.sink.rollback()
    assert pipe.sink.checkpoint() is None
    text = pipe.text()
    assert not text.endswith(b"\n")
    source.commit([insert(ITEMS, 2, "y")])
    os.set_blocking(pipe.writing, True)
    done = source.records[0][0].last

    def write() -> None:  # blocks until its lines are read
        pipe.sink.write(windows(source, done), MARKS)
        pipe.sink.commit(following(source))

    writer = threading.Thread(target=write)
    writer.start()
    while writer.is_alive():
        text += pipe.text()
        writer.join(0.01)
    text += pipe.text()
    assert [json.loads(line)["op"] for line in text.splitlines()] == [
        "begin", "insert", "commit", "rollback", "begin", "insert", "commit",
    ]  # fmt: skip


def test_a_reader_that_is_gone_ends_the_consumer(pipe: Pipe, source: ModelSource) -> None:
    os.close(pipe.reading)
    source.commit([insert(ITEMS, 1)])
    pipe.sink.write(windows(source), MARKS)
    with pytest.raises(SinkRefused, match="nobody reads the standard output"):
        pipe.sink.commit(following(source))


def test_a_sweep_is_a_line(pipe: Pipe, source: ModelSource) -> None:
    pipe.sink.sweep(Sweep(ITEMS, 7, MARKS, following(source)))
    pipe.sink.commit(following(source))
    assert pipe.lines() == [{"op": "sweep", "table": ITEMS, "seq": 7}]


def test_a_key_is_named_that_the_sink_has_not(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"consumer\.test\.path"):
        open_sink("stdout", {"path": "x"}, SinkPlace("test", tmp_path, ("public.*",)))


CONSUME = """
import sys, threading
from pathlib import Path
from walbus.config import ConsumerConfig
from walbus.consumers import run_consumer
config = ConsumerConfig(sink="stdout", tables=("public.*",))
run_consumer("test", config, relay_url={url!r}, folder=Path({folder!r}), status_path=None, stop=threading.Event())
"""


def rows_of(lines: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The rows that a reader has who follows the lines: by seq, and swept."""
    rows: dict[str, dict[str, Any]] = {}
    seqs: dict[str, int] = {}
    for line in lines:
        if line["op"] in ("insert", "update"):
            id = str(line["key"]["id"])
            old = str(line["old_key"]["id"]) if "old_key" in line else id
            if line["seq"] > seqs.get(id, 0) - ("snapshot" in line):  # a snapshot's row replaces one of its version
                row = {**rows.get(old, {}), **line["after"]}
                if old != id:
                    rows.pop(old, None)
                rows[id], seqs[id] = row, line["seq"]
        elif line["op"] == "delete":
            rows.pop(str(line["key"]["id"]), None)
        elif line["op"] == "truncate":
            rows.clear()
    return rows


def test_a_program_that_follows_the_lines_has_the_sources_rows_over_restarts(
    relay: ScriptedRelay, source: ModelSource, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    source.commit([insert(ITEMS, n, "start", "toasted") for n in range(50)])
    out = tmp_path / "lines"
    code = textwrap.dedent(CONSUME.format(url=relay.url, folder=str(tmp_path / "consumer")))

    def lines() -> list[dict[str, Any]]:
        return [json.loads(line) for line in out.read_bytes().splitlines() if line.endswith(b"}")]

    def same() -> bool:
        found = {id: {**row, "id": str(row["id"])} for id, row in rows_of(lines()).items()}
        return found == source.rows()

    for round_ in range(3):
        with out.open("ab") as file:
            process = subprocess.Popen([sys.executable, "-c", code], stdout=file)
        request.addfinalizer(process.wait)
        request.addfinalizer(process.kill)
        wait_for(same, 90, what="the lines give the source's rows")
        source.commit([update(ITEMS, n, name=f"r{round_}") for n in range(20)], pieces=2)
        source.commit([update(ITEMS, 40 + round_, new_id=100 + round_, name="moved"), delete(ITEMS, 30 + round_)])
        wait_for(same, 90, what="the lines give the source's rows")
        process.kill()
        process.wait()
    assert len(relay.asked("/v1/snapshot")) == 1
    assert sum(line["op"] == "sweep" for line in lines()) == 1
