"""A primary with its standby, and the way of capture to whichever is the primary: a proxy, as a virtual address is.

with standby_of(primary, folder / "standby") as standby, TcpProxy(primary.port) as proxy:
    pair = Pair(primary, standby, proxy, folder / "relay")
    pair.fill(0, 20)                      # table t (id int PRIMARY KEY, a text)
    pair.go_over()
"""

from __future__ import annotations

from contextlib import closing, contextmanager

import psycopg

from support.capturing import CaptureThread, file_log, source_of, spool_of
from support.oracle import Oracle
from support.standby import carry_slots, has_replayed, promoted, settle_slots
from walbus.capture.prepared import PREPARED_SUFFIX
from walbus.lsn import parse_lsn

GIDS = b"lost", b"kept"


class Pair:
    """A primary with its standby, and capture's way to whichever is the primary."""

    def __init__(self, primary, standby, proxy, folder):
        self.primary = primary
        self.standby = standby
        self.folder = folder
        self._proxy = proxy
        self.dsn = primary.dsn().replace(f":{primary.port}/", f":{proxy.port}/")
        self.source = source_of(self.dsn)

    def execute(self, query, *parameters):
        with psycopg.connect(self.dsn, autocommit=True) as session:
            cursor = session.execute(query, parameters)
            return cursor.fetchall() if cursor.description else []

    def fill(self, first, last):
        """One transaction a row."""
        with psycopg.connect(self.dsn, autocommit=True) as session:
            for number in range(first, last):
                session.execute("INSERT INTO t VALUES (%s, repeat('x', 50))", [number])

    @contextmanager
    def capture(self):
        with closing(file_log(self.folder, self.source)) as log:
            capture = CaptureThread(self.source, log, spool_dir=spool_of(self.folder))
            try:
                capture.streaming()
                yield capture
            finally:
                capture.stop()

    def oracle(self):
        failover = self.execute("SHOW server_version_num")[0][0] >= "170000"
        made = Oracle(self.dsn, "walbus", failover=failover)
        settle_slots(self.primary, self.standby, "walbus", "oracle", unread="oracle")
        return made

    def prepare(self, gid, number):
        """One row, prepared."""
        with psycopg.connect(self.dsn) as session:
            session.execute("INSERT INTO t VALUES (%s)", [number])
            session.execute(f"PREPARE TRANSACTION '{gid}'")

    def spooled(self):
        """The gids of prepared transactions that wait in the spool."""
        paths = [path for path in spool_of(self.folder).iterdir() if path.name.endswith(PREPARED_SUFFIX)]
        return sorted(gid.decode() for path in paths for gid in GIDS if gid.hex().encode() in path.read_bytes())

    def standby_has_all(self):
        """Waits until the standby has replayed what was committed: one that just started may not even be connected."""
        has_replayed(self.standby, parse_lsn(self.execute("SELECT pg_current_wal_flush_lsn()")[0][0]))

    def carry_slots(self, *, with_snapshots=True):
        carry_slots(self.primary, self.standby, "walbus", "oracle", with_snapshots=with_snapshots)

    def go_over(self):
        """Promotes the standby, and leads whoever connects from now on there."""
        promoted(self.standby)
        self._proxy.target = self.standby.port
        self._proxy.reset()
