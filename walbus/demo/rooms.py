"""The rooms of a demo: `walbus run` as a process, heard through its status files and the relay's `/v1/info`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from walbus.demo.folder import DemoFolder
from walbus.errors import WalbusError
from walbus.status import read_status

#: Seconds that `walbus run` may take to stop; it promises 10.
_STOP_TIME = 15.0


class RoomFailed(WalbusError):  # noqa: N818 (named after what is wrong, as in walbus.errors)
    """`walbus run` ended, or one of its processes died or stood still without having been killed."""


@dataclass(frozen=True)
class RoomsView:
    """What the rooms say of themselves at one moment; a part is empty where nothing is known yet.

    Attributes:
        capture, bootstrap: their status files.
        consumers: status files by consumer.
        relay: the answer of `/v1/info`.
        restarts: how often each process was started again.
    """

    capture: Mapping[str, Any] = field(default_factory=dict)
    bootstrap: Mapping[str, Any] = field(default_factory=dict)
    consumers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    relay: Mapping[str, Any] = field(default_factory=dict)
    restarts: Mapping[str, int] = field(default_factory=dict)


class Rooms:
    """All processes of one configuration.

    Args:
        folder: where configuration, log and data lie.
        relay_url: where its relay listens.
        consumers: names of its consumers.
    """

    def __init__(self, folder: DemoFolder, relay_url: str, consumers: tuple[str, ...]) -> None:
        self._config = folder.config
        self._status = folder.data / "status"
        self._log_path = folder.log
        self._consumers = consumers
        self._process: subprocess.Popen[bytes] | None = None
        self._http = httpx.Client(base_url=relay_url, timeout=2, trust_env=False)
        self._kills: Counter[str] = Counter()

    def start(self) -> None:
        """Starts `walbus run`; its log goes into `walbus.log`."""
        with self._log_path.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603  (our own program, no shell)
                [sys.executable, "-P", "-m", "walbus", "run", "-c", str(self._config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=_environment(),
                start_new_session=True,  # Ctrl-C is the demo's to handle, which stops the rooms in order
            )

    def stop(self) -> int:
        """Stops everything in order; the exit code of `walbus run`, 0 if it was never started."""
        self._http.close()
        if self._process is None:
            return 0
        pids = [child["pid"] for child in self._children().values() if child["pid"]]
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(_STOP_TIME)
        except subprocess.TimeoutExpired:
            for pid in (self._process.pid, *pids):
                _kill(pid)
            return self._process.wait()

    def kill(self, name: str) -> int | None:
        """SIGKILL to a room; its process id, or None if it does not run at this moment."""
        pid = self._children().get(name, {}).get("pid")
        if not pid or not _kill(int(pid)):
            return None
        self._kills[name] += 1
        return int(pid)

    def running(self) -> list[str]:
        """Names of the processes that run now."""
        return [name for name, child in self._children().items() if child["pid"]]

    def view(self) -> RoomsView:
        """What the rooms say now."""
        files = {name: read_status(self._status / f"consumer-{name}.json") or {} for name in self._consumers}
        return RoomsView(
            capture=read_status(self._status / "capture.json") or {},
            bootstrap=read_status(self._status / "bootstrap.json") or {},
            consumers=files,
            relay=self._relay_info(),
            restarts={name: child["restarts"] for name, child in self._children().items()},
        )

    def check(self) -> None:
        """Makes sure that nothing died that was not killed.

        Raises:
            RoomFailed: something did; the last lines of the log are in the message.
        """
        if self._process is not None and self._process.poll() is not None:
            raise RoomFailed(f"walbus run ended with code {self._process.returncode}", where=str(self._log_path))
        for name, child in self._children().items():
            if child["restarts"] > self._kills[name]:
                raise RoomFailed(f"the process {name} died by itself", where=str(self._log_path))

    def _children(self) -> dict[str, dict[str, Any]]:
        status = read_status(self._status / "supervisor.json") or {}
        children: dict[str, dict[str, Any]] = status.get("children", {})
        return children

    def _relay_info(self) -> dict[str, Any]:
        try:
            answer = self._http.get("/v1/info")
        except httpx.HTTPError:
            return {}  # not up yet, or killed a moment ago
        document: dict[str, Any] = answer.json() if answer.status_code == httpx.codes.OK else {}
        return document


def log_tail(path: Path, lines: int = 20) -> str:
    """The last lines of a log."""
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
    except OSError:
        return ""


def _kill(pid: int) -> bool:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def _environment() -> dict[str, str]:
    """Ours, without the variables that would override the demo's configuration."""
    return {
        name: value
        for name, value in os.environ.items()
        if not (name.startswith("WALBUS_") and ("__" in name or name == "WALBUS_DATA_DIR"))
    } | {"WALBUS_LOG__FORMAT": "logfmt"}
