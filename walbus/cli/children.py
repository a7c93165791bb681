"""The processes of `walbus run`: started, heard, reaped. All decisions are `walbus.cli.supervisor`'s.

One thread waits for everything at once: lines of the children, SIGCHLD, SIGTERM and SIGINT (through the wake-up
descriptor), and the supervisor's own clock. Children stand in process groups of their own, so that Ctrl-C in a
terminal reaches the supervisor alone and the order of stopping holds.

A child's log lines come through its stderr, and go out with its name before them (JSON lines carry the name
themselves, and stay as they are). Lines that tell the child's error are held back until its fate is known: when it
is started again they are log lines too; when it ends everything, they are the supervisor's own last words.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import structlog

from walbus.cli.failures import ERROR_PREFIX, TRY_AGAIN
from walbus.cli.lifeline import LIFELINE
from walbus.cli.supervisor import PERMANENT, Action, Child, Kill, Start, Supervisor, Terminate
from walbus.status import StatusFile

#: What a child's arguments are given to: this very program, and nothing that lies in the current folder.
WALBUS = (sys.executable, "-P", "-m", "walbus")

_LONGEST_LINE = 1 << 20
_CHUNK = 1 << 16

log = structlog.get_logger(__name__)


class Output:
    """Where children's lines go.

    Args:
        stream: takes the lines.
        names: of all children; the longest sets the width of the prefix.
        json_lines: whether the children log JSON.
    """

    def __init__(self, stream: TextIO, names: Iterable[str], *, json_lines: bool) -> None:
        self._stream = stream
        self._width = max(map(len, names), default=0)
        self._json = json_lines

    def line(self, name: str, line: str) -> None:
        """Passes a child's line on."""
        if not self._json:
            text = f"{name:<{self._width}} | {line}"
        elif line.startswith("{"):
            text = line
        else:
            text = json.dumps({"room": name, "event": line})
        self.plain(text)

    def plain(self, text: str) -> None:
        """A line of the supervisor's own; lost without a word if nobody can read it any more."""
        try:
            print(text, file=self._stream, flush=True)
        except OSError:
            return


@dataclass(frozen=True, slots=True)
class Launch:
    """How children are started.

    Attributes:
        environment: of each child.
        program: what gets a child's arguments.
    """

    environment: Mapping[str, str]
    program: Sequence[str] = WALBUS


class ChildProcess:
    """One running child.

    Attributes:
        errors: the lines that tell its error, held back.
    """

    def __init__(self, child: Child, launch: Launch, lifeline: int, output: Output) -> None:
        self.child = child
        self.errors: list[str] = []
        self._output = output
        self._partial = b""
        self._process = subprocess.Popen(  # noqa: S603 - our own program
            [*launch.program, *child.arguments],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={**launch.environment, LIFELINE: str(lifeline)},
            pass_fds=(lifeline,),
            process_group=0,
        )
        assert self._process.stderr is not None  # noqa: S101 - given PIPE
        self.stderr = self._process.stderr
        os.set_blocking(self.stderr.fileno(), False)

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    def exit_code(self) -> int | None:
        """Its exit code once it is gone (and reaped), minus the signal's number if one ended it."""
        return self._process.poll()

    def send(self, number: signal.Signals) -> None:
        """Sends a signal; nothing happens to a process that is gone."""
        self._process.send_signal(number)

    def hear(self) -> bool:
        """Passes on the lines that are there; False once there will be no more."""
        while True:
            try:
                data = os.read(self.stderr.fileno(), _CHUNK)
            except BlockingIOError:
                return True
            if not data:
                self._tell(self._partial)
                self._partial = b""
                return False
            *lines, self._partial = (self._partial + data).split(b"\n")
            for line in lines:
                self._tell(line)
            if len(self._partial) > _LONGEST_LINE:
                self._tell(self._partial)
                self._partial = b""

    def close(self) -> None:
        """Hears the last lines and frees the pipe."""
        self.hear()
        self.stderr.close()

    def _tell(self, line: bytes) -> None:
        text = line.decode(errors="replace").rstrip()
        if text.startswith(ERROR_PREFIX):
            self.errors.append(text)
        elif text:
            self._output.line(self.child.name, text)


class ProcessGroup:
    """Runs what a `Supervisor` decides, until it is done.

    Args:
        supervisor: decides.
        output: takes the children's lines.
        launch: how children are started.
        status_path: the file that tells each child's state and process number.
    """

    def __init__(self, supervisor: Supervisor, output: Output, launch: Launch, status_path: Path) -> None:
        self._supervisor = supervisor
        self._output = output
        self._launch = launch
        self._status = StatusFile(status_path, "what runs goes on")
        self._running: dict[str, ChildProcess] = {}
        self._selector = selectors.DefaultSelector()
        self._lifeline = os.pipe()
        self._asked_to_stop = 0
        self._last_words: list[str] = []

    def run(self) -> int:
        """Blocks until every child is gone; the exit code. SIGTERM or SIGINT stops in order, a second one at once."""
        wake, woken = socket.socketpair()
        for end in (wake, woken):
            end.setblocking(False)
        self._selector.register(woken, selectors.EVENT_READ)
        with _signals_to(wake, self._on_stop_signal):
            while not self._supervisor.done:
                self._turn(woken)
        self._write_status()
        for line in self._last_words:
            self._output.plain(line)
        for end in (wake, woken):
            end.close()
        self._selector.close()
        for descriptor in self._lifeline:
            os.close(descriptor)
        return self._supervisor.exit_code

    def _on_stop_signal(self) -> None:
        self._asked_to_stop += 1

    def _turn(self, woken: socket.socket) -> None:
        if self._asked_to_stop and not self._supervisor.stopping:
            log.info("stopping")
            self._supervisor.stop(time.monotonic())
        if self._asked_to_stop > 1:
            self._kill_all()
        now = time.monotonic()
        actions = self._supervisor.actions(now)
        for action in actions:
            self._do(action)
        if actions:
            self._write_status()
        self._wait(woken, now)
        self._reap()

    def _do(self, action: Action) -> None:
        match action:
            case Start(child):
                self._start(child)
            case Terminate(name):
                self._running[name].send(signal.SIGTERM)
            case Kill(name):
                log.warning("killed because it did not stop in time", child=name)
                self._running[name].send(signal.SIGKILL)

    def _start(self, child: Child) -> None:
        self._supervisor.started(child.name, time.monotonic())
        try:
            process = ChildProcess(child, self._launch, self._lifeline[0], self._output)
        except OSError as error:  # no memory or descriptors left: a state that passes
            delay = self._supervisor.exited(child.name, TRY_AGAIN, time.monotonic())
            log.warning("cannot start a process", child=child.name, error=error.strerror, seconds=delay)
            return
        self._running[child.name] = process
        self._selector.register(process.stderr, selectors.EVENT_READ, process)
        log.info("started", child=child.name, pid=process.pid)

    def _kill_all(self) -> None:
        for process in self._running.values():
            process.send(signal.SIGKILL)

    def _wait(self, woken: socket.socket, acted: float) -> None:
        """Waits for anything; what has come due since the time that actions were asked for is not waited past."""
        if self._supervisor.done:
            return
        wake_at = self._supervisor.wake_at(acted)
        for key, _ in self._selector.select(None if wake_at is None else max(0.0, wake_at - time.monotonic())):
            if key.fileobj is woken:
                _drain(woken)
            elif not key.data.hear():
                self._selector.unregister(key.fileobj)

    def _reap(self) -> None:
        for name, process in list(self._running.items()):
            code = process.exit_code()
            if code is not None:
                del self._running[name]
                self._forget(process)
                self._tell_end(process, code)

    def _forget(self, process: ChildProcess) -> None:
        if process.stderr in self._selector.get_map():
            self._selector.unregister(process.stderr)
        process.close()

    def _tell_end(self, process: ChildProcess, code: int) -> None:
        name = process.child.name
        delay = self._supervisor.exited(name, code, time.monotonic())
        if code in PERMANENT and self._supervisor.stopping and not self._last_words:
            self._last_words = process.errors
        else:
            for line in process.errors:
                self._output.line(name, line)
        if delay is None and not self._supervisor.stopping:
            log.error("ended for good; the others go on without it", child=name, code=code)
        elif delay is None:
            log.info("ended", child=name, code=code)
        else:
            log.warning("died; it will be started again", child=name, code=code, seconds=round(delay, 2))
        self._write_status()

    def _write_status(self) -> None:
        children = {
            one.child.name: {
                "state": one.phase.value,
                "restarts": one.restarts,
                "pid": self._running[one.child.name].pid if one.child.name in self._running else None,
            }
            for one in self._supervisor.progress
        }
        self._status.write({"pid": os.getpid(), "time": time.time(), "children": children})


class _signals_to:  # noqa: N801 - a context manager, used as a function
    """Routes SIGCHLD, SIGTERM and SIGINT into the select loop while it runs."""

    def __init__(self, wake: socket.socket, on_stop: Callable[[], None]) -> None:
        self._wake = wake
        self._on_stop = on_stop
        self._earlier: dict[signal.Signals, object] = {}

    def __enter__(self) -> None:
        signal.set_wakeup_fd(self._wake.fileno(), warn_on_full_buffer=False)
        self._earlier[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in (signal.SIGTERM, signal.SIGINT):
            self._earlier[number] = signal.signal(number, lambda *_: self._on_stop())

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(-1)
        for number, handler in self._earlier.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal.signal gave is what it takes


def _drain(woken: socket.socket) -> None:
    try:
        while woken.recv(4096):
            pass
    except BlockingIOError:
        return
