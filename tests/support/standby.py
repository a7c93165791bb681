"""A streaming standby of a test's own server, to be promoted with or without the last commits.

with standby_of(primary, open_folder / "standby") as standby:
    ... slots, publication ...
    settle_slots(primary, standby, "walbus", "oracle", unread="oracle")
    ... workload ...
    carry_slots(primary, standby, "walbus", "oracle")      # they survive the promotion
    standby.stop()                                         # what commits from here on is lost
    primary.kill()
    promoted(standby)

From PostgreSQL 17 on slots go over by `pg_sync_replication_slots`, as the standby's own worker does it; for older
versions the slot's folder is copied while the standby is down, as failover tools do.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import psycopg

from support.waiting import wait_for
from walbus.demo.postgres import EmbeddedPostgres
from walbus.demo.programs import run_as
from walbus.lsn import parse_lsn

_PHYSICAL = "standby"
#: Seconds between two synchronizations: a slot that is confirmed past what the standby has received is passed over.
_QUIET_SECONDS = 0.4


@contextmanager
def standby_of(primary: EmbeddedPostgres, folder: Path, **settings: str) -> Iterator[EmbeddedPostgres]:
    """A running standby that streams from the primary through a physical slot of its own.

    Args:
        primary: running.
        folder: that every user can reach.
        settings: run-time parameters over the primary's.
    """
    conninfo = f"host=127.0.0.1 port={primary.port} user=postgres dbname=postgres password={_password(primary)}"
    following = {"primary_conninfo": conninfo, "primary_slot_name": _PHYSICAL, "hot_standby_feedback": "on"}
    standby = EmbeddedPostgres(
        folder, bin_dir=primary.program("postgres").parent, settings={**primary.settings, **following, **settings}
    )
    with primary.connect() as session:
        session.execute("SELECT pg_create_physical_replication_slot(%s, true)", [_PHYSICAL])
    folder.mkdir()
    shutil.copy2(primary.folder / "password", folder / "password")
    if standby.account is not None:
        for path in (folder, folder / "password"):
            shutil.chown(path, standby.account.uid, standby.account.gid)
    backup = [str(primary.program("pg_basebackup")), "-d", primary.dsn(), "-D", str(standby.data), "-X", "stream"]
    result = run_as(standby.account, [*backup, "-c", "fast", "--no-sync"])
    assert result.returncode == 0, result.stderr
    (standby.data / "standby.signal").touch()
    try:
        standby.start()
        yield standby
    finally:
        standby.remove()


def has_replayed(standby: EmbeddedPostgres, lsn: int, deadline: float = 60) -> None:
    """Waits until the standby has replayed the WAL up to an LSN."""
    with standby.connect() as session:
        wait_for(lambda: _lsn(session, "pg_last_wal_replay_lsn()") >= lsn, deadline, what="the standby has replayed")


def settle_slots(primary: EmbeddedPostgres, standby: EmbeddedPostgres, *slots: str, unread: str) -> None:
    """Makes the standby's copies of new slots lasting ones; does nothing before PostgreSQL 17.

    A copy is a temporary one until the slot has moved past what the standby still knows of the catalog, so a slot that
    nobody reads is advanced here, before the workload.
    """
    with primary.connect() as session:
        if session.info.server_version < 170_000:
            return

    def settled() -> bool:
        if _synchronized(primary, standby, slots):
            return True
        with primary.connect() as session:
            session.execute("SELECT pg_log_standby_snapshot()")
            session.execute("SELECT pg_replication_slot_advance(%s, pg_current_wal_flush_lsn())", [unread])
        return False

    wait_for(settled, 60, what="the slots are synchronized", every=_QUIET_SECONDS)


def carry_slots(primary: EmbeddedPostgres, standby: EmbeddedPostgres, *slots: str, with_snapshots: bool = True) -> None:
    """Brings the standby's copies of slots to where the slots are now; restarts it before PostgreSQL 17."""
    with primary.connect() as session:
        version = session.info.server_version
        end = _lsn(session, "pg_current_wal_flush_lsn()")
    has_replayed(standby, end)
    if version >= 170_000:
        synchronized = partial(_synchronized, primary, standby, slots)
        wait_for(synchronized, 60, what="the slots are synchronized", every=_QUIET_SECONDS)
        return
    with primary.connect() as session:
        session.execute("CHECKPOINT")  # writes the slots' state
    standby.stop()
    for slot in slots:
        wait_for(partial(_copy_slot, primary, standby, slot, with_snapshots), what=f"slot {slot} is copied")
    standby.start()


def _copy_slot(primary: EmbeddedPostgres, standby: EmbeddedPostgres, slot: str, with_snapshots: bool) -> bool:
    """Copies a slot's folder, and the snapshots that it begins from; fails where the primary replaces a file meanwhile.

    Without the snapshot at its `restart_lsn` a slot decodes nothing before the server has once had no transaction that
    ran there, and passes over what commits until then.
    """
    for part in (Path("pg_replslot") / slot, *[Path("pg_logical/snapshots")] * with_snapshots):
        copy = standby.data / part
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(primary.data / part, copy)
        if standby.account is not None:
            for path in (copy, *copy.iterdir()):
                shutil.chown(path, standby.account.uid, standby.account.gid)
    return True


def promoted(standby: EmbeddedPostgres) -> EmbeddedPostgres:
    """Promotes it and waits until it can be written to."""
    with standby.connect() as session:
        session.execute("SELECT pg_promote(true, 60)")
        wait_for(lambda: _value(session, "NOT pg_is_in_recovery()"), 60, what="the standby is a primary")
    return standby


def _synchronized(primary: EmbeddedPostgres, standby: EmbeddedPostgres, slots: tuple[str, ...]) -> bool:
    """One synchronization; whether the standby's slots are lasting ones and as far as the primary's were before it."""
    query = "SELECT slot_name, confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = ANY (%s)"
    with primary.connect() as session:
        wanted = dict(session.execute(query, [list(slots)]).fetchall())
    with standby.connect() as session:
        session.execute("SELECT pg_sync_replication_slots()")
        found = dict(session.execute(query + " AND synced AND NOT temporary", [list(slots)]).fetchall())
    return len(found) == len(slots) and all(parse_lsn(found[slot]) >= parse_lsn(wanted[slot]) for slot in slots)


def _password(server: EmbeddedPostgres) -> str:
    return (server.folder / "password").read_text()


def _lsn(session: psycopg.Connection, expression: str) -> int:
    return parse_lsn(_value(session, expression) or "0/0")


def _value(session: psycopg.Connection, expression: str) -> str:
    row = session.execute(f"SELECT {expression}").fetchone()  # type: ignore[arg-type]
    assert row is not None
    value: str = row[0]
    return value
