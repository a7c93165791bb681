"""Processes of `walbus` that begin as copies of one that has loaded it.

Loading is nearly all that a start costs, one to two seconds of a processor, and the tests start hundreds. A *template*
(`template_process.py`) loads every room once; asked for a process, it forks one, which then is what `python -P -m
walbus` would be: arguments, environment, folder, descriptors 0 to 2, session, signals, exit code, end of the
interpreter. Where the environment is to be another one the start is for real: what is read while modules load would be
the template's. So is that of the rooms of `walbus run`, which starts them itself.

    tests ── socket: arguments, with the descriptors ──► template ── fork ──► process
    tests ◄── its number; later how it ended ───────────────┘
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

_PROGRAM = Path(__file__).with_name("template_process.py")
_MESSAGE = 1 << 16
_TURN = 0.02  # seconds for which one thread listens before others may


class Template:
    """The process that is copied, seen from the tests.

    Args:
        environment: its own, and that of every copy.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.environment = dict(environment)
        self._lock = threading.Lock()
        self._ended: dict[int, int] = {}
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", str(_PROGRAM), str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                env=self.environment,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )

    def start(
        self,
        arguments: Sequence[str],
        *,
        folder: Path,
        descriptors: tuple[int, int, int],
        constants: Mapping[str, float],
    ) -> Copy:
        """A process with arguments of `walbus`, in a session of its own; with other values of constants."""
        with self._lock:
            request = json.dumps([list(arguments), str(folder), dict(constants)]).encode()
            socket.send_fds(self._socket, [request], list(descriptors))
            while (number := self._hear(None)) is None:
                pass
        return Copy(self, number)

    def ended(self, number: int, until: float) -> int | None:
        """How a copy ended, told once; None if it has not by then (`time.monotonic`)."""
        while True:
            with self._lock:
                if number in self._ended:
                    return self._ended.pop(number)
                left = until - time.monotonic()
                self._hear(max(0.0, min(left, _TURN)))  # others may wait for copies of theirs
                if number in self._ended:
                    return self._ended.pop(number)
            if left <= 0:
                return None

    def _hear(self, seconds: float | None) -> int | None:
        """Reads one message; the number of the process that it says is started."""
        self._socket.settimeout(seconds if seconds != 0 else 1e-6)
        try:
            said = self._socket.recv(_MESSAGE)
        except TimeoutError:
            return None
        assert said, f"the template of walbus's processes ended with {self._process.wait(60)}"
        kind, number, code = json.loads(said)
        if kind == "started":
            self._ended.pop(number, None)  # of one that had the number before, and whose end nobody asked for
            return int(number)
        self._ended[number] = code
        return None


class Copy:
    """One of its copies, as `subprocess.Popen` shows a process.

    Attributes:
        pid: its number.
        returncode: its exit code, minus the number of a signal that ended it; None as long as nobody has seen its end.
    """

    def __init__(self, template: Template, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._template = template
        self._handle: int | None = None  # of this very process: the template has its number freed when it ends
        with suppress(ProcessLookupError):
            self._handle = os.pidfd_open(pid)

    def poll(self) -> int | None:
        """Its exit code if it is gone."""
        return self._end(0.0)

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, once it is gone.

        Raises:
            subprocess.TimeoutExpired: it is not.
        """
        code = self._end(float("inf") if timeout is None else timeout)
        if code is None:
            raise subprocess.TimeoutExpired("walbus", timeout or 0.0)
        return code

    def send_signal(self, number: int) -> None:
        """Sends it a signal, unless it is gone."""
        if self.poll() is None and self._handle is not None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._handle, number)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def _end(self, seconds: float) -> int | None:
        if self.returncode is None:
            self.returncode = self._template.ended(self.pid, time.monotonic() + seconds)
            if self.returncode is not None and self._handle is not None:
                os.close(self._handle)
                self._handle = None
        return self.returncode
