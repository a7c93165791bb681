"""Capture running for a test: in a thread on any log, or as a process that can be killed.

with capturing(database, folder) as capture:        # a log of the file engine in `folder`
    ... workload ...
    capture.caught_up()
transactions = captured(folder)                     # in the oracle's form
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg

from support.database import Database
from support.log_view import log_transactions
from support.oracle import OracleTransaction
from support.waiting import wait_for
from walbus.capture import CATALOG_FILE, identify, run_capture
from walbus.config import SourceConfig
from walbus.errors import WalbusError
from walbus.log import LogWriter
from walbus.lsn import parse_lsn
from walbus.relay import open_reader, open_writer

_TESTS = Path(__file__).parents[1]


def source_of(dsn: str, **options: Any) -> SourceConfig:
    """`[source]` of a test; all tables of schema public unless told otherwise."""
    return SourceConfig(dsn=dsn, **{"tables": ("public.*",), **options})


def spool_of(folder: Path) -> Path:
    """Where the spool of a log in `folder` lies."""
    return folder.parent / f"{folder.name}.spool"


def file_log(folder: Path, source: SourceConfig, *, segment_bytes: int = 1 << 20) -> LogWriter:
    """The log of the file engine in `folder`, opened for writing."""
    return open_writer(folder, identify(source), segment_bytes=segment_bytes, retention_hours=24, retention_bytes=None)


class CaptureThread:
    """`run_capture` in a thread.

    Attributes:
        error: what ended it, if it was not `stop`.
        status_path: of its status file.
    """

    def __init__(
        self,
        source: SourceConfig,
        log: LogWriter,
        status_path: Path | None = None,
        *,
        spool_dir: Path | None = None,  # by default one that goes with the thread
        catalog_path: Path | None = None,  # by default what is altered while nobody looks goes unnoticed
        differences_dir: Path | None = None,
    ) -> None:
        self.source = source
        self.log = log
        self.status_path = status_path
        self._spool_dir = spool_dir
        self._catalog_path = catalog_path
        self._differences_dir = differences_dir
        self.error: BaseException | None = None
        self._begun = time.time()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with tempfile.TemporaryDirectory(prefix="walbus-spool-") as own:
            self._capture(self._spool_dir or Path(own))

    def _capture(self, spool_dir: Path) -> None:
        try:
            run_capture(
                self.source,
                self.log,
                spool_dir=spool_dir,
                stop=self._stop,
                status_path=self.status_path,
                catalog_path=self._catalog_path,
                differences_dir=self._differences_dir,
            )
        except BaseException as error:  # the test looks at it
            self.error = error

    def stop(self) -> None:
        """Ends it; raises what ended it before."""
        self._stop.set()
        self._thread.join(60)
        assert not self._thread.is_alive(), "capture does not end"
        if self.error is not None:
            raise self.error

    def ended(self, deadline: float = 60) -> BaseException:
        """Waits until it has ended by itself; why."""
        wait_for(lambda: not self._thread.is_alive(), deadline, what="capture ends by itself")
        assert self.error is not None
        return self.error

    def durable_to(self, lsn: int, deadline: float = 60) -> None:
        """Waits until the log holds everything that commits before an LSN."""
        self._wait(lambda: self.log.bounds().end_lsn >= lsn, deadline, "the log has caught up")

    def caught_up(self, deadline: float = 60) -> None:
        """Waits until the log holds everything that is committed now."""
        self.durable_to(flushed_lsn(self.source), deadline)

    def streaming(self, deadline: float = 60) -> None:
        """Waits until the slot is streamed from, and not by what a capture before this one left for a moment."""
        with closing(SlotLooks(self.source)) as looks:
            self._wait(lambda: looks.is_active(self._begun), deadline, "capture streams")

    def _wait(self, condition: Callable[[], bool], deadline: float, what: str) -> None:
        wait_for(lambda: self.error is not None or condition(), deadline, what=what)
        if self.error is not None:
            raise self.error


def flushed_lsn(source: SourceConfig) -> int:
    """Where the WAL ends now, made durable and readable by a commit of our own.

    A server may just begin to crash, and a hostile database may end the session: then it is asked again.
    """
    return wait_for(lambda: _flushed_lsn(source), what="the server answers", every=0.1)


def _flushed_lsn(source: SourceConfig) -> int:
    with psycopg.connect(source.dsn.get_secret_value(), autocommit=True) as session:
        session.execute("SELECT pg_logical_emit_message(true, 'test', 'everything before this')")
        row = session.execute("SELECT pg_current_wal_flush_lsn()").fetchone()
    assert row is not None
    return parse_lsn(row[0])


class SlotLooks:
    """Looks at a slot on one session, since each new one costs the server a process; a broken one is replaced."""

    def __init__(self, source: SourceConfig) -> None:
        self._source = source
        self._session: psycopg.Connection | None = None

    def is_active(self, since: float) -> bool:
        """Whether a session streams from the slot that began at a time (Unix seconds) or behind it."""
        if self._session is None or self._session.closed:
            self._session = psycopg.connect(self._source.dsn.get_secret_value(), autocommit=True)
        query = (
            "SELECT FROM pg_stat_replication r JOIN pg_replication_slots s ON s.active_pid = r.pid"
            " WHERE s.slot_name = %s AND coalesce(r.state, '') <> 'startup' AND r.backend_start >= to_timestamp(%s)"
        )
        return self._session.execute(query, [self._source.slot, since]).fetchone() is not None

    def close(self) -> None:
        if self._session is not None:
            self._session.close()


@contextmanager
def capturing(dsn: str, folder: Path, **options: Any) -> Iterator[CaptureThread]:
    """Capture of a database into a log of the file engine, streaming; an error of it fails the test."""
    source = source_of(dsn, **options)
    with closing(file_log(folder, source)) as log:
        capture = CaptureThread(
            source,
            log,
            spool_dir=spool_of(folder),
            catalog_path=folder / CATALOG_FILE,
            differences_dir=folder / "differences",
        )
        try:
            capture.streaming()
            yield capture
        finally:
            capture.stop()


def captured(folder: Path, *, messages: bool = False) -> list[OracleTransaction]:
    """The log's transactions in the oracle's form."""
    with closing(open_reader(folder)) as reader:
        return log_transactions(reader, messages=messages)


def filled(database: Database, folder: Path) -> None:
    """A table `t` and a log in `folder` that holds its one row; capture has ended, and the slot is free."""
    database.execute("CREATE TABLE t (id int PRIMARY KEY)")
    with capturing(database.dsn, folder) as capture:
        database.execute("INSERT INTO t VALUES (1)")
        capture.caught_up()
    query = "SELECT active FROM pg_replication_slots WHERE slot_name = 'walbus'"
    wait_for(lambda: database.value(query) is False, what="the walsender has noticed")


def refusal(dsn: str, folder: Path) -> BaseException:
    """What capture ends with when it is started on the log in `folder`."""
    source = source_of(dsn)
    with closing(file_log(folder, source)) as log:
        return CaptureThread(source, log).ended()


class CaptureProcess:
    """Capture as a process of its own, into a log of the file engine.

    Args:
        dsn: of the database.
        folder: of the log.
        prefix: a command to run it under, such as strace.
        segment_bytes: size from which a segment is rolled.
        options: of `[source]`, over those of `source_of`.
    """

    def __init__(
        self, dsn: str, folder: Path, *, prefix: tuple[str, ...] = (), segment_bytes: int = 1 << 20, **options: Any
    ) -> None:
        arguments = [dsn, str(folder), json.dumps(options), str(segment_bytes)]
        command = [*prefix, sys.executable, "-P", "-m", "support.capturing", *arguments]
        path = os.pathsep.join([str(_TESTS), str(_TESTS.parent)])
        self._output = folder.parent / f"{folder.name}.out"
        with self._output.open("ab") as output:
            environment = {**os.environ, "PYTHONPATH": path}
            self._process = subprocess.Popen(
                command, env=environment, stderr=output, stdout=output, start_new_session=True
            )

    @property
    def output(self) -> str:
        """What it and those before it on this log have printed."""
        return self._output.read_text()

    @property
    def running(self) -> bool:
        """Whether it lives."""
        return self._process.poll() is None

    def wait(self, deadline: float = 60) -> int:
        """Waits for its end; its exit code."""
        return self._process.wait(deadline)

    def kill(self) -> None:
        """SIGKILL, to the prefix too."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def pause(self) -> None:
        """SIGSTOP."""
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        self._process.send_signal(signal.SIGCONT)

    def terminate(self) -> int:
        """SIGTERM; its exit code."""
        self._process.terminate()
        return self._process.wait(60)


def main() -> int:
    """The process that `CaptureProcess` starts."""
    source, folder = source_of(sys.argv[1], **json.loads(sys.argv[3])), Path(sys.argv[2])
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        with closing(file_log(folder, source, segment_bytes=int(sys.argv[4]))) as log:
            status = folder.parent / "capture.json"
            catalog = folder / CATALOG_FILE
            run_capture(
                source,
                log,
                spool_dir=spool_of(folder),
                stop=stop,
                status_path=status,
                catalog_path=catalog,
                differences_dir=folder / "differences",
            )
    except WalbusError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
