"""The load of the `pgbench` that PostgreSQL ships: one short transaction on four tables, as fast as the rate says.

pgbench_history has no key by itself, and a table without one can be streamed but not bootstrapped. It gets a
bigserial primary key; pgbench names its columns when it inserts, and does not notice.
"""

from __future__ import annotations

import os
import re
import subprocess
import threading
from pathlib import Path

import psycopg
from psycopg.conninfo import conninfo_to_dict

from walbus.errors import SourceUnavailable

_CLIENTS = 4
_SCALE = 1  # 100,000 accounts
_NEVER = 24 * 3600  # seconds; `stop` ends it
_PROGRESS = re.compile(r"progress: [\d.]+ s, ([\d.]+) tps")


class PgbenchLoad:
    """pgbench's tables and its standard script.

    Args:
        program: where pgbench is.
        dsn: of an empty database.
        rate: transactions a second, all clients together.
        seed: pgbench's random seed.
    """

    def __init__(self, program: Path, dsn: str, *, rate: float, seed: int) -> None:
        self._program = str(program)
        self._dsn = dsn
        self._rate = rate
        self._seed = seed
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._done = 0.0
        self._lines: list[str] = []

    @property
    def transactions(self) -> int:
        """Transactions that committed so far, by pgbench's progress report of each second."""
        return round(self._done)

    def prepare(self, rows: int) -> None:
        """Makes the tables and fills them with 100,000 accounts."""
        command = [self._program, "--initialize", "--quiet", f"--scale={_SCALE}"]
        result = subprocess.run(command, env=self._environment(), capture_output=True, text=True, check=False)  # noqa: S603
        if result.returncode != 0:
            raise SourceUnavailable(f"pgbench could not fill its tables: {result.stderr.strip()}")
        with psycopg.connect(self._dsn, autocommit=True) as connection:
            connection.execute("ALTER TABLE pgbench_history ADD COLUMN id bigserial PRIMARY KEY")

    def start(self) -> None:
        """Starts pgbench."""
        command = [self._program, "--no-vacuum", f"--client={_CLIENTS}", "--jobs=1", f"--time={_NEVER}"]
        command += [f"--rate={self._rate}", f"--random-seed={self._seed}", "--progress=1"]
        self._process = subprocess.Popen(  # noqa: S603  (our own program, no shell)
            command,
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is the demo's to handle
        )
        self._reader = threading.Thread(target=self._read_progress, name="pgbench", daemon=True)
        self._reader.start()

    def stop(self) -> None:
        """Ends pgbench; transactions under way are rolled back by the server.

        Raises:
            SourceUnavailable: it had ended by itself.
        """
        if self._process is None or self._reader is None:
            return
        ended = self._process.poll()
        self._process.kill()
        self._process.wait()
        self._reader.join(10)
        if self._process.stderr is not None:
            self._process.stderr.close()
        self._process = None
        if ended is not None:
            raise SourceUnavailable(f"pgbench ended with code {ended}: {' '.join(self._lines[-3:])}")

    def _read_progress(self) -> None:
        assert self._process is not None and self._process.stderr is not None  # noqa: S101 (given PIPE)
        for line in self._process.stderr:
            match = _PROGRESS.match(line)
            if match:
                self._done += float(match[1])
            else:
                self._lines.append(line.strip())

    def _environment(self) -> dict[str, str]:
        """The connection as libpq's variables: a password has no place on a command line."""
        parts = conninfo_to_dict(self._dsn)
        names = {"host": "PGHOST", "port": "PGPORT", "user": "PGUSER", "password": "PGPASSWORD", "dbname": "PGDATABASE"}
        return {**os.environ, **{names[key]: str(value) for key, value in parts.items() if key in names}}
