"""Faults 12, 13 and 14: a standby is promoted, with and without lost commits; a volume is restored.

Capture reaches the source through a proxy that is pointed at the new primary, as a virtual address is.
"""

from __future__ import annotations

import json
from contextlib import closing

import psycopg
import pytest

from support.bootstrap_rig import BootstrapRig
from support.capturing import CaptureThread, captured, file_log, source_of, spool_of
from support.compare import assert_sinks_equal
from support.database import Database
from support.log_view import log_records
from support.oracle import assert_same_transactions
from support.pair import Pair
from support.standby import promoted, standby_of
from support.tcp_proxy import TcpProxy
from support.waiting import wait_for
from support.whole_system import WholeSystem, make_marker
from walbus.capture.slot import FAILOVER_VERSION
from walbus.errors import SourceGap, SourceReplaced
from walbus.position import Position
from walbus.records import Kind, body_of, iter_changes
from walbus.relay import open_reader
from walbus.status import read_status

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def pair(own_pg_server, open_folder):
    primary = own_pg_server(max_prepared_transactions="20")
    with standby_of(primary, open_folder / "standby") as standby, TcpProxy(primary.port) as proxy:
        made = Pair(primary, standby, proxy, open_folder / "relay")
        made.execute("CREATE TABLE t (id int PRIMARY KEY, a text)")
        made.execute("CREATE TABLE other (id int PRIMARY KEY)")
        yield made


def epochs_in(folder):
    """(position, document) of the log's EPOCH records."""
    with closing(open_reader(folder)) as reader:
        return [
            (header.last, json.loads(next(iter_changes(body_of(record, header))).after))
            for header, record in log_records(reader)
            if header.kind == Kind.EPOCH
        ]


def switch_point(server):
    """Where the server's timeline 2 began."""
    (history,) = (server.data / "pg_wal").glob("00000002.history")
    high, low = history.read_text().split()[1].split("/")
    return int(high, 16) << 32 | int(low, 16)


def ended_on(pair, **options):
    """What capture ends with on the log as it is."""
    source = source_of(pair.dsn, **options)
    with closing(file_log(pair.folder, source)) as log:
        return CaptureThread(source, log, spool_dir=spool_of(pair.folder)).ended()


@pytest.mark.parametrize("with_snapshots", [True, False])
def test_a_slot_that_was_copied_without_its_snapshot_is_a_gap_and_one_with_it_is_none(pair, with_snapshots):
    """Tools copy slots by their files, before 17; a transaction runs where the slot begins."""
    if pair.execute("SHOW server_version_num")[0][0] >= "170000":
        pytest.skip("PostgreSQL copies slots itself from 17 on")
    with pair.capture() as capture:
        truth = pair.oracle()
        with psycopg.connect(pair.dsn) as held:
            held.execute("SELECT pg_current_xact_id()")
            for number in range(4):
                pair.execute("CHECKPOINT")
                pair.fill(number, number + 1)
                capture.caught_up()
            pair.carry_slots(with_snapshots=with_snapshots)
    pair.primary.kill()
    pair.go_over()
    pair.fill(100, 120)
    if with_snapshots:
        with pair.capture() as capture:
            capture.caught_up()
        assert_same_transactions(captured(pair.folder), truth.transactions())
        return
    pair.execute("INSERT INTO t SELECT i, repeat('x', 500) FROM generate_series(1000, 9000) i")
    for options in ({}, {}, {"catch_up_step_bytes": 1 << 20}):  # and it stays one: nothing is confirmed
        error = ended_on(pair, **options)
        assert isinstance(error, SourceGap)
        assert "lacks the snapshot" in str(error)
        assert "--reconcile" in str(error)


def test_a_promotion_without_lost_commits_is_gone_through_and_every_commit_is_kept_once(pair):
    with pair.capture() as capture:
        truth = pair.oracle()
        pair.fill(0, 20)
        capture.caught_up()
    pair.carry_slots()
    with pair.capture() as capture:
        pair.fill(20, 40)  # in the log, and not yet in the standby's slot
        capture.caught_up()
    pair.fill(40, 60)  # in neither
    pair.standby_has_all()
    pair.primary.stop("fast")
    pair.go_over()
    with pair.capture() as capture:
        pair.fill(60, 80)
        capture.caught_up()
        assert capture.log.bounds().end.epoch == 2
    assert captured(pair.folder) == truth.transactions()
    switch = switch_point(pair.standby)
    ((at, told),) = epochs_in(pair.folder)
    assert at == Position(2, switch, 0)
    assert (told["epoch"], told["previous"], told["lost"], told["reseed"]) == (2, 1, None, [])
    with closing(open_reader(pair.folder)) as reader:
        for header, _ in log_records(reader):
            assert header.epoch == (1 if header.commit_lsn < switch else 2)


def test_a_promotion_that_lost_commits_is_told_by_an_epoch_record_and_capture_goes_on(pair):
    with pair.capture() as capture:
        truth = pair.oracle()
        pair.fill(0, 20)
        capture.caught_up()
    pair.carry_slots()
    pair.standby.stop()
    with pair.capture() as capture:
        pair.fill(20, 60)
        capture.caught_up()
        first = truth.transactions()
        lost_from = first[20].commit_lsn
        pair.primary.kill()
        pair.standby.start()
        pair.go_over()
        capture.streaming()
        switch = switch_point(pair.standby)
        assert switch <= lost_from
        pair.fill(100, 120)
        capture.caught_up()
        wait_for(lambda: _confirmed(pair) >= switch, 60, what="the new slot is confirmed")
        confirmed = _confirmed(pair)  # and both move on where the new primary writes something
        assert confirmed <= capture.log.bounds().end_lsn
    second = [t for t in truth.transactions() if t.commit_lsn >= switch]
    assert [t.changes[0].key for t in second] == [(str(n),) for n in range(100, 120)]
    assert captured(pair.folder) == first + second
    ((at, told),) = epochs_in(pair.folder)
    assert at == Position(2, switch, 0)
    assert told["lost"]["transactions"] == 41  # a message too
    assert told["lost"]["first"] == str(Position(1, lost_from, 1))
    assert [table["table"] for table in told["reseed"]] == ["public.t"]
    with pair.capture() as capture:  # and what is sent again behind the switch is known again
        pair.fill(120, 130)
        capture.caught_up()
    assert len(captured(pair.folder)) == 60 + 30
    assert len(epochs_in(pair.folder)) == 1


def _confirmed(pair):
    rows = pair.execute(
        "SELECT confirmed_flush_lsn - '0/0'::pg_lsn FROM pg_replication_slots WHERE slot_name = 'walbus'"
    )
    return int(rows[0][0])


def test_a_slot_that_did_not_come_along_is_a_gap(pair):
    with pair.capture() as capture:
        pair.fill(0, 5)
        capture.caught_up()
    pair.standby_has_all()
    pair.primary.stop("fast")
    pair.go_over()
    error = ended_on(pair)
    assert isinstance(error, SourceGap)
    assert "it is gone" in error.what
    assert "sync_replication_slots" in (error.mend or "")
    assert pair.execute("SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'walbus'")[0][0] == 0


@pytest.fixture
def two_phase(pair):
    if pair.execute("SHOW server_version_num")[0][0] < "150000":
        pytest.skip("prepared transactions at their PREPARE take PostgreSQL 15")
    pair.source = source_of(pair.dsn, two_phase=True)
    return pair


def test_a_prepared_transaction_that_a_failover_lost_leaves_the_spool_without_a_restart(two_phase):
    """Nothing that the new primary sends names it, and its xid is used again by another one that is prepared."""
    pair = two_phase
    with pair.capture():
        pair.oracle()
    pair.carry_slots()
    pair.standby.stop()
    with pair.capture() as capture:
        pair.prepare("lost", 1)
        wait_for(lambda: pair.spooled() == ["lost"], 60, what="it is spooled")
        pair.primary.kill()
        pair.standby.start()
        pair.go_over()
        capture.streaming()
        assert pair.spooled() == ["lost"]
        pair.prepare("kept", 2)
        wait_for(lambda: "kept" in pair.spooled(), 60, what="the new one is spooled")
        pair.fill(10, 12)
        wait_for(lambda: pair.spooled() == ["kept"], 60, what="the lost one is gone")
        pair.execute("COMMIT PREPARED 'kept'")
        capture.caught_up()
        wait_for(lambda: pair.spooled() == [], 60, what="nothing is kept")
    assert [each.changes[0].key for each in captured(pair.folder)] == [("10",), ("11",), ("2",)]


@pytest.mark.long
def test_the_old_primary_is_refused_once_the_log_follows_the_new_one(pair):
    with pair.capture() as capture:
        pair.oracle()
        pair.fill(0, 5)
        capture.caught_up()
    pair.carry_slots()
    pair.standby.stop()
    pair.standby.start()
    pair.go_over()
    with pair.capture() as capture:
        pair.fill(5, 10)
        capture.caught_up()
    pair._proxy.target = pair.primary.port
    pair._proxy.reset()
    error = ended_on(pair)
    assert isinstance(error, SourceReplaced)
    assert "a primary that was replaced" in error.what


@pytest.mark.long
def test_a_standby_is_waited_for_until_it_is_promoted_and_its_own_worker_brings_the_slot(own_pg_server, open_folder):
    primary = own_pg_server()
    with primary.connect() as session:
        if session.info.server_version < FAILOVER_VERSION:
            pytest.skip("standbys synchronize slots from PostgreSQL 17 on")
    standby = standby_of(primary, open_folder / "standby", sync_replication_slots="on")
    with standby as standby, TcpProxy(primary.port) as proxy:
        pair, status = Pair(primary, standby, proxy, open_folder / "relay"), open_folder / "capture.json"
        pair.execute("CREATE TABLE t (id int PRIMARY KEY, a text)")
        with closing(file_log(pair.folder, pair.source)) as log:
            capture = CaptureThread(pair.source, log, status)
            capture.streaming()
            wait_for(lambda: _is_copied(pair), 60, what="the standby's worker has the slot", every=0.5)
            pair.fill(0, 20)
            capture.caught_up()
            primary.stop("fast")
            proxy.target = standby.port
            wait_for(lambda: "is a standby" in str((read_status(status) or {}).get("error")), 60, what="capture waits")
            promoted(standby)
            capture.streaming()
            pair.fill(20, 30)
            capture.caught_up()
            capture.stop()
    assert len(captured(pair.folder)) == 30


def _is_copied(pair):
    """Whether the standby's slot is a lasting one; it becomes one when the primary's has moved."""
    with pair.primary.connect() as session:
        session.execute("SELECT pg_log_standby_snapshot()")
    with pair.standby.connect() as session:
        query = "SELECT synced AND NOT temporary FROM pg_replication_slots WHERE slot_name = 'walbus'"
        return session.execute(query).fetchone() == (True,)


@pytest.mark.long
@pytest.mark.timeout(300)
def test_the_bootstrap_seeds_again_what_a_failover_lost_and_equals_the_new_primary(pair, open_folder):
    database = Database(pair.primary, "postgres")
    database.dsn = pair.dsn
    (open_folder / "rig").mkdir()
    with closing(database), BootstrapRig(open_folder / "rig", database) as rig:
        rig.start()
        rig.wait_consistent("public.t", "public.other")
        pair.oracle()
        pair.execute("INSERT INTO other SELECT generate_series(1, 50)")
        pair.fill(0, 20)
        rig.wait_applied()
        pair.carry_slots()
        pair.standby.stop()
        pair.fill(20, 60)
        pair.execute("DELETE FROM t WHERE id < 10")
        rig.wait_applied()
        generation = rig.tables()["public.other"]["generation"]
        pair.primary.kill()
        pair.standby.start()
        pair.go_over()
        database.close()
        pair.fill(100, 120)
        wait_for(lambda: rig.tables()["public.t"]["generation"] > 1, 60, what="the table is seeded again", every=0.1)
        rig.wait_consistent("public.t", "public.other")
        rig.assert_equals_source("public.t", "public.other")
        assert rig.tables()["public.other"]["generation"] == generation
        assert "a failover lost transactions" in rig.log()


@pytest.mark.long
@pytest.mark.timeout(400)
def test_a_replica_equals_the_new_primary_after_a_failover_that_lost_commits(pair, open_folder):
    folder = open_folder / "system"
    folder.mkdir()
    database = Database(pair.primary, "postgres")
    database.dsn = pair.dsn
    make_marker(database)
    with closing(database), WholeSystem(folder, pair.dsn, {"cache": {"sink": "sqlite"}}) as system:
        system.start()
        system.wait_until_streaming()
        pair.oracle()
        pair.fill(0, 20)
        system.wait_until_at_rest(database)
        pair.carry_slots()
        pair.standby.stop()
        pair.fill(20, 60)
        pair.execute("DELETE FROM t WHERE id < 10")
        system.wait_until_at_rest(database)
        pair.primary.kill()
        pair.standby.start()
        pair.go_over()
        database.close()
        pair.fill(100, 120)

        def equal():
            assert_sinks_equal(pair.dsn, cache=system.data_dir / "consumers" / "cache" / "cache.sqlite")
            return True

        system.wait_until_at_rest(database)
        wait_for(equal, 60, what="the replica has lost what the source has lost", every=0.5)
        assert any(line["op"] == "epoch" for line in system.tail())
