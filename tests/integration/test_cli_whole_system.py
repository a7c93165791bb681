"""`walbus run`, `tail` and `status` as an operator uses them, on one system that runs."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import pytest

from support import plain_http
from support.database import Database, fresh_database
from support.kernel_slices import kernel_slice, may_have_slices
from support.waiting import wait_for
from support.walbus_command import PROGRAM, environment, walbus
from support.whole_system import WholeSystem, make_marker, row_changes
from walbus.cli.supervisor import Timing
from walbus.demo.postgres import EmbeddedPostgres

pytestmark = pytest.mark.one_version

SECRET = "hunter22-canary"


class Stage(NamedTuple):
    """A running system, and its source."""

    system: WholeSystem
    database: Database

    def insert(self, *ids: int) -> None:
        for key in ids:
            self.database.execute("INSERT INTO items VALUES (%s, %s)", [key, f"item {key}"])

    def next_id(self) -> int:
        return int(self.database.value("SELECT coalesce(max(id), 0) + 1 FROM items"))


@pytest.fixture(scope="module")
def stage(pg_server: EmbeddedPostgres) -> Iterator[Stage]:
    with tempfile.TemporaryDirectory(prefix="walbus-test-") as folder, fresh_database(pg_server) as database:
        role = f"owner_{database.name}"
        database.execute(f"CREATE ROLE {role} SUPERUSER LOGIN PASSWORD '{SECRET}'")
        database.execute("CREATE TABLE items (id bigint PRIMARY KEY, name text)")
        database.execute("CREATE TABLE others (id bigint PRIMARY KEY)")
        make_marker(database)
        dsn = f"postgresql://{role}:{SECRET}@127.0.0.1:{pg_server.port}/{database.name}"
        source = {"slot": f"s_{database.name}"}
        with WholeSystem(Path(folder), dsn, {"replica": {"sink": "sqlite"}}, source=source) as system:
            system.start()
            system.wait_until_streaming()
            yield Stage(system, database)
            assert system.stop() == 0
            assert SECRET not in system.log()
            assert "Traceback" not in system.log()
    with pg_server.connect() as admin:
        admin.execute(f"DROP ROLE {role}")


class Tail:
    """`walbus tail` that follows."""

    def __init__(self, stage: Stage, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [*PROGRAM, "tail", "-c", str(stage.system.config), "--format", "json", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
        )
        self._stage = stage
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)

    def ids(self, count: int) -> list[int]:
        """The keys of the next lines; where they do not come, what is known of where they are."""
        try:
            return [json.loads(self._lines.get(timeout=60))["after"]["id"] for _ in range(count)]
        except queue.Empty:
            info = self._stage.system.info()
            newest = self._stage.next_id() - 1
            _, stderr = self.interrupt()
            known = f"the log ends at {info['end']}, streams are {info['streams']}, the last row is {newest}"
            raise AssertionError(f"no line in a minute: {known}; the tail says: {stderr}") from None

    def interrupt(self) -> tuple[int, str]:
        assert self.process.stderr is not None
        self.process.send_signal(signal.SIGINT)
        code = self.process.wait(60)
        return code, self.process.stderr.read()

    def close(self) -> None:
        self.process.kill()
        self.process.wait(60)
        self._thread.join(10)
        for pipe in (self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()


@pytest.fixture
def follow(stage: Stage) -> Iterator[type[Tail]]:
    tails: list[Tail] = []

    def make(stage: Stage, *arguments: str) -> Tail:
        tails.append(Tail(stage, *arguments))
        return tails[-1]

    yield make  # type: ignore[misc]
    for tail in tails:
        tail.close()


def streams(stage: Stage) -> int:
    """Those of no name: consumers have one, and connect again when they like."""
    info = plain_http.get(f"{stage.system.relay_url}/v1/info").json()
    return sum(not stream["name"] for stream in info["streams"])


def test_a_tail_follows_from_now_until_it_is_interrupted(stage: Stage, follow: type[Tail]) -> None:
    first = stage.next_id()
    stage.insert(first)
    stage.system.wait_until_at_rest(stage.database)
    wait_for(lambda: streams(stage) == 0, 60, what="those of before have gone")
    tail = follow(stage, "public.items")
    wait_for(lambda: streams(stage) == 1, 60, what="the tail is connected")
    stage.insert(first + 1, first + 2)
    assert tail.ids(2) == [first + 1, first + 2]
    assert tail.interrupt() == (0, "")


def test_a_tail_goes_on_behind_its_last_line_when_the_relay_was_killed(stage: Stage, follow: type[Tail]) -> None:
    stage.insert(stage.next_id())  # the table's first row is told with its layout
    stage.system.wait_until_at_rest(stage.database)  # or the tail meets what another test has done
    first = stage.next_id()
    wait_for(lambda: streams(stage) == 0, 60, what="those of before have gone")
    tail = follow(stage, "public.items")
    wait_for(lambda: streams(stage) == 1, 60, what="the tail is connected")
    stage.insert(first)
    assert tail.ids(1) == [first]
    assert stage.system.kill("relay")
    stage.insert(first + 1)
    assert tail.ids(1) == [first + 1]
    stage.insert(first + 2)
    assert tail.ids(1) == [first + 2]
    code, stderr = tail.interrupt()
    assert code == 0
    assert "Traceback" not in stderr


def test_a_bounded_tail_prints_every_change_once_and_ends(stage: Stage) -> None:
    first = stage.next_id()
    stage.insert(first, first + 1)
    stage.database.execute("UPDATE items SET name = 'x' WHERE id = %s", [first])
    stage.database.execute("DELETE FROM items WHERE id = %s", [first + 1])
    stage.system.wait_until_at_rest(stage.database)
    lines = row_changes(stage.system.tail("public.items"))
    assert [(line["op"], line["key"]["id"]) for line in lines][-4:] == [
        ("insert", first), ("insert", first + 1), ("update", first), ("delete", first + 1)
    ]  # fmt: skip
    assert {line["table"] for line in lines} == {"public.items"}


def test_a_tail_begins_with_the_position_that_it_is_given(stage: Stage) -> None:
    first = stage.next_id()
    stage.insert(first, first + 1, first + 2)
    stage.system.wait_until_at_rest(stage.database)
    lines = row_changes(stage.system.tail("public.items"))[-3:]
    middle = lines[1]["position"]
    assert row_changes(stage.system.tail("public.items", "--from", middle)) == lines[1:]
    assert row_changes(stage.system.tail("public.items", "--until", middle))[-2:] == lines[:2]


def test_a_tail_between_two_times_prints_what_was_committed_between_them(stage: Stage) -> None:
    first = stage.next_id()
    stage.insert(first)
    since = stage.database.value("SELECT clock_timestamp()")
    stage.insert(first + 1)
    until = stage.database.value("SELECT clock_timestamp()")
    stage.insert(first + 2)
    stage.system.wait_until_at_rest(stage.database)
    lines = row_changes(stage.system.tail("public.items", "--from", since.isoformat(), "--until", until.isoformat()))
    assert [line["key"]["id"] for line in lines] == [first + 1]


def test_a_tail_until_a_time_to_come_ends_when_it_has_come(stage: Stage) -> None:
    until = datetime.fromtimestamp(time.time() + 1, UTC).isoformat()
    ended = walbus("tail", "--until", until, "-c", str(stage.system.config))
    assert ended.code == 0


def test_a_tail_whose_reader_left_ends_quietly(stage: Stage) -> None:
    first = stage.next_id()
    stage.database.execute(
        "INSERT INTO items SELECT n, repeat('x', 200) FROM generate_series(%s::int, %s::int) n", [first, first + 5000]
    )
    stage.system.wait_until_at_rest(stage.database)
    command = f"exec 2>&1; '{PROGRAM[0]}' -P -m walbus tail --from earliest -c '{stage.system.config}' | head -n 1"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment(),
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert len(done.stdout.splitlines()) == 1


def test_a_start_behind_the_bound_is_told(stage: Stage) -> None:
    ended = walbus("tail", "--from", "9:FFFF/0:1", "--until", "latest", "-c", str(stage.system.config))
    assert ended.code == 2
    assert "--from" in ended.one_line()


def test_status_tells_of_every_room(stage: Stage) -> None:
    stage.system.wait_until_at_rest(stage.database)
    ended = walbus("status", "--json", "-c", str(stage.system.config))
    assert ended.code == 0, ended.stderr
    report = json.loads(ended.stdout)
    rooms = ("source", "capture", "relay", "bootstrap", "supervisor")
    assert {room: report[room]["state"] for room in rooms} == dict.fromkeys(rooms, "up")
    assert report["consumers"]["replica"]["status"]["phase"] == "online"
    assert report["source"]["slot"]["active"] is True
    assert SECRET not in ended.stdout


def test_status_draws_a_table(stage: Stage) -> None:
    ended = walbus("status", "-c", str(stage.system.config))
    rows = [line.split()[:2] for line in ended.stdout.splitlines()[2:]]
    assert [row[0] for row in rows if row] == ["source", "capture", "relay", "bootstrap", "consumer", "supervisor"]


def test_rooms_stop_within_ten_seconds_in_order_and_start_again(stage: Stage) -> None:
    began = time.monotonic()
    assert stage.system.stop() == 0
    assert time.monotonic() - began < 10
    assert_stopped_in_order(stage.system.log(), ["consumer-replica", "bootstrap", "relay", "capture"])
    report = json.loads(walbus("status", "--json", "-c", str(stage.system.config)).stdout)
    assert report["source"]["state"] == "up"
    assert [report[room]["state"] for room in ("capture", "relay", "bootstrap", "supervisor")] == ["down"] * 4
    stage.system.start()
    wait_for(lambda: all(child["pid"] for child in stage.system.children().values()), 60)
    stage.insert(stage.next_id())
    stage.system.wait_until_at_rest(stage.database)


def assert_stopped_in_order(log: str, order: list[str]) -> None:
    """Each room ended behind those that read it, or when the time for these had passed: on a busy machine it may."""
    *_, stop = log.split("event=stopping")
    began = time_of(log[: len(log) - len(stop)].splitlines()[-1])
    ended = {line.split("child=")[1].split()[0]: time_of(line) for line in stop.splitlines() if "event=ended" in line}
    assert sorted(ended) == sorted(order)
    for stage, room in enumerate(order):
        ahead = all(ended[reader] <= ended[room] for reader in order[:stage])
        assert ahead or ended[room] - began >= stage * Timing().stage_time, f"{room} of {ended}, from {began} on"


def time_of(line: str) -> float:
    """When a line was logged, in seconds."""
    return datetime.fromisoformat(line.split("timestamp=")[1].split(maxsplit=1)[0]).timestamp()


def test_a_second_capture_of_the_same_log_says_that_it_is_busy(stage: Stage) -> None:
    ended = walbus("capture", "-c", str(stage.system.config))
    assert ended.code == 1
    assert ended.one_line()


def test_no_secret_is_on_a_command_line_of_a_room(stage: Stage) -> None:
    pids = [child["pid"] for child in stage.system.children().values()]
    commands = [Path(f"/proc/{pid}/cmdline").read_bytes().decode() for pid in pids if Path(f"/proc/{pid}").exists()]
    assert commands or os.uname().sysname != "Linux"
    assert not any(SECRET in command for command in commands)


@pytest.mark.skipif(
    not may_have_slices(), reason="this kernel does not tell slices, or this process is not an ordinary one"
)
def test_capture_alone_is_run_again_at_once(stage: Stage) -> None:
    slices = {name: kernel_slice(Path(f"/proc/{child['pid']}")) for name, child in stage.system.children().items()}
    assert slices.pop("capture") == 100_000
    assert slices
    assert 100_000 not in slices.values()
