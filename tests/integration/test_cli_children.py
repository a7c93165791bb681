"""The supervisor's processes, with small programs in the place of rooms: started, heard, stopped, never orphaned."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.processes import alive, exists
from support.waiting import wait_for
from walbus.status import read_status

#: A room: says what it does, and does what its argument names.
ROOM = """
import os, sys, time, threading
from walbus.cli.lifeline import hold_lifeline
from walbus.cli.stopping import stop_event
hold_lifeline()
name, behaviour, *rest = sys.argv[1:]
stop = stop_event()
def say(line): print(line, file=sys.stderr, flush=True)
say(f"{name} runs")
if behaviour == "fails":
    say("walbus: error: the tables are gone; make them")
    sys.exit(int(rest[0]))
if behaviour == "deaf":
    while True: time.sleep(60)
stop.wait()
say(f"{name} stops")
"""

#: The supervisor: children as JSON on the command line.
SUPERVISOR = """
import json, os, sys
from pathlib import Path
from walbus.cli.children import Launch, Output, ProcessGroup
from walbus.cli.supervisor import Child, Supervisor, Timing
from walbus.config import LogConfig
from walbus.diagnostics import configure_logging
room, status, children, timing = sys.argv[1:]
configure_logging(LogConfig(format="logfmt"), room="run")
children = [Child(name, (name, *arguments), stage) for name, stage, arguments in json.loads(children)]
supervisor = Supervisor(children, lambda: 0.5, Timing(**json.loads(timing)))
output = Output(sys.stderr, [child.name for child in children], json_lines=False)
launch = Launch(dict(os.environ), (sys.executable, "-c", room))
sys.exit(ProcessGroup(supervisor, output, launch, Path(status)).run())
"""

#: One whose disk is slow.
SLOW_SUPERVISOR = SUPERVISOR.replace(
    "sys.exit(",
    "import time; write = ProcessGroup._write_status\n"
    "ProcessGroup._write_status = lambda group: (time.sleep(0.7), write(group))\nsys.exit(",
)

Children = list[tuple[str, int, list[str]]]


class Group:
    """A supervisor under test."""

    def __init__(self, folder: Path, children: Children, program: str = SUPERVISOR, **timing: float) -> None:
        self.status_path = folder / "supervisor.json"
        self.log_path = folder / "log"
        arguments = [ROOM, str(self.status_path), json.dumps(children), json.dumps({"first_delay": 0.01, **timing})]
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen([sys.executable, "-c", program, *arguments], stderr=log)
        self.names = [name for name, _, _ in children]

    def children(self) -> dict[str, Any]:
        return (read_status(self.status_path) or {}).get("children", {})

    def pid(self, name: str) -> int:
        return wait_for(lambda: int(self.children()[name]["pid"]), what=f"the status tells the process of {name}")

    def log(self) -> str:
        return self.log_path.read_text()

    def wait_until_all_run(self) -> None:
        wait_for(lambda: all(f"{name} runs" in self.log() for name in self.names), 60, what=f"all run: {self.log()}")

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, float]:
        began = time.monotonic()
        self.process.send_signal(number)
        return self.process.wait(60), time.monotonic() - began


@pytest.fixture
def supervise(tmp_path: Path) -> Iterator[Callable[..., Group]]:
    groups: list[Group] = []

    def make(children: Children, program: str = SUPERVISOR, **timing: float) -> Group:
        groups.append(Group(tmp_path, children, program, **timing))
        return groups[-1]

    yield make
    for group in groups:
        group.process.kill()
        group.process.wait()


def test_children_stop_in_order_and_leave_nothing(supervise: Callable[..., Group]) -> None:
    children: Children = [("capture", 3, ["waits"]), ("relay", 2, ["waits"]), ("cache", 0, ["waits"])]
    group = supervise(children, stage_time=60.0, kill_after=600.0)  # each stage by the end of the one before it
    group.wait_until_all_run()
    pids = [group.pid(name) for name in group.names]
    code, seconds = group.stop()
    assert code == 0
    assert seconds < 10
    stops = [line.split("|")[1].strip() for line in group.log().splitlines() if line.endswith("stops")]
    assert stops == ["cache stops", "relay stops", "capture stops"]
    assert not any(alive(pid) for pid in pids)


def test_lines_carry_the_name_of_their_room(supervise: Callable[..., Group]) -> None:
    group = supervise([("capture", 1, ["waits"]), ("relay", 0, ["waits"])])
    group.wait_until_all_run()
    assert "capture | capture runs\n" in group.log()
    assert "relay   | relay runs\n" in group.log()


def test_a_killed_child_is_started_again_and_reaped(supervise: Callable[..., Group]) -> None:
    group = supervise([("capture", 1, ["waits"]), ("relay", 0, ["waits"])])
    group.wait_until_all_run()
    first = group.pid("relay")
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: group.children()["relay"]["restarts"] == 1)
    wait_for(lambda: group.children()["relay"]["pid"] not in (None, first))
    assert not exists(first)
    wait_for(lambda: group.log().count("relay runs") == 2, 60)
    assert group.stop()[0] == 0


def test_a_child_that_cannot_go_on_ends_everything_with_its_code_and_its_line(
    supervise: Callable[..., Group],
) -> None:
    group = supervise([("capture", 1, ["fails", "2"]), ("relay", 0, ["waits"])])
    assert group.process.wait(60) == 2
    lines = [line for line in group.log().splitlines() if "tables are gone" in line]
    assert lines == ["walbus: error: the tables are gone; make them"]


def test_the_line_of_an_error_that_may_pass_is_a_log_line(supervise: Callable[..., Group]) -> None:
    group = supervise([("capture", 1, ["fails", "75"])])
    wait_for(lambda: group.log().count("capture | walbus: error: the tables") > 2, 60)
    assert group.stop()[0] == 0


def test_a_deaf_child_is_killed_in_time(supervise: Callable[..., Group]) -> None:
    group = supervise([("capture", 1, ["waits"]), ("cache", 0, ["deaf"])], stage_time=0.2, kill_after=4.0)
    group.wait_until_all_run()
    pid = group.pid("cache")
    code, seconds = group.stop()
    assert code == 1
    assert seconds < 10
    assert not alive(pid)
    assert "capture stops" in group.log()


def test_a_stage_whose_time_comes_while_the_status_is_written_is_not_slept_past(
    supervise: Callable[..., Group],
) -> None:
    children: Children = [("capture", 1, ["waits"]), ("cache", 0, ["deaf"])]
    group = supervise(children, SLOW_SUPERVISOR, stage_time=0.5, kill_after=600.0)
    group.wait_until_all_run()
    group.process.send_signal(signal.SIGTERM)
    wait_for(lambda: "capture stops" in group.log(), what="capture to be asked to stop")


def test_a_second_signal_kills_at_once(supervise: Callable[..., Group]) -> None:
    group = supervise([("cache", 0, ["deaf"])], kill_after=600.0)
    group.wait_until_all_run()
    group.process.send_signal(signal.SIGINT)
    wait_for(lambda: "event=stopping" in group.log())
    code, seconds = group.stop(signal.SIGINT)
    assert code == 1
    assert seconds < 60  # one signal would have it killed after ten minutes


@pytest.mark.parametrize("behaviour", ["waits", "deaf"])
def test_children_go_down_with_a_killed_supervisor(supervise: Callable[..., Group], behaviour: str) -> None:
    group = supervise([("capture", 1, [behaviour]), ("relay", 0, [behaviour])])
    group.wait_until_all_run()
    pids = [group.pid(name) for name in group.names]
    group.process.kill()
    wait_for(lambda: not any(alive(pid) for pid in pids), what="the children are gone")


def test_a_signal_to_the_terminals_group_reaches_the_supervisor_alone(supervise: Callable[..., Group]) -> None:
    group = supervise([("capture", 1, ["waits"]), ("relay", 0, ["waits"])])
    group.wait_until_all_run()
    own = os.getpgid(group.process.pid)
    assert all(os.getpgid(group.pid(name)) != own for name in group.names)


def test_an_orphan_ends_in_the_midst_of_its_imports(tmp_path: Path) -> None:
    """On a busy machine they take seconds; who starts Walbus again meanwhile must not find a room of before."""
    (tmp_path / "typer.py").write_text("import time\nprint('imports', flush=True)\ntime.sleep(60)\n")
    reading, writing = os.pipe()
    environment = os.environ | {"WALBUS_LIFELINE": str(reading), "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-P", "-m", "walbus", "capture"]
    with subprocess.Popen(command, env=environment, pass_fds=(reading,), stdout=subprocess.PIPE) as orphan:
        os.close(reading)
        assert orphan.stdout is not None
        assert orphan.stdout.readline() == b"imports\n"
        os.close(writing)
        assert orphan.wait(60) == 128 + signal.SIGKILL
