"""Behind a lost slot capture goes on with a new one, by consent, and says in the log what it lacks."""

from __future__ import annotations

import json
from contextlib import closing

import pytest

from support.capturing import CaptureThread, capturing, file_log, filled, refusal, source_of, spool_of
from support.folding import folded
from support.log_view import log_records, raw_changes
from support.waiting import wait_for
from walbus.capture import CATALOG_FILE
from walbus.capture.reconciling import CONSENT_FILE, find_gap, write_consent
from walbus.errors import SourceGap
from walbus.keys import key_texts
from walbus.lsn import parse_lsn
from walbus.records import Kind
from walbus.relay import open_reader


@pytest.fixture
def folder(open_folder):
    return open_folder / "relay"


def consent(database, folder):
    """As the command gives it: for the log's end as it is, and only if there is a gap."""
    with closing(open_reader(folder)) as reader:
        bounds = reader.bounds()
    why = find_gap(source_of(database.dsn), bounds)
    assert why is not None
    write_consent(folder, bounds, why)


def gaps(folder):
    """(record's position, document) of each gap in the log."""
    found = []
    with closing(open_reader(folder)) as reader:
        for header, record in log_records(reader):
            if header.kind == Kind.EPOCH:
                found += [(header.last, json.loads(one.after)) for one in raw_changes(header, record)]
    return [(at, document) for at, document in found if "gap" in document]


def keys(folder):
    return sorted(int(key_texts(key)[0]) for table in folded(folder).values() for key in table.keyed)


def lose_slot(database):
    wait_for(
        lambda: database.value("SELECT active FROM pg_replication_slots WHERE slot_name = 'walbus'") is False,
        what="the slot is free",
    )
    database.drop_slot("walbus")


def test_a_log_goes_on_behind_a_gap_that_somebody_consents_to(database, folder):
    filled(database, folder)
    lose_slot(database)
    database.execute("INSERT INTO t VALUES (2)")
    with closing(open_reader(folder)) as reader:
        end_lsn = reader.bounds().end_lsn
    consent(database, folder)
    with capturing(database.dsn, folder) as capture:
        database.execute("INSERT INTO t VALUES (3)")
        capture.caught_up()
    assert keys(folder) == [1, 3]
    ((at, document),) = gaps(folder)
    assert parse_lsn(document["gap"]["after"]) == end_lsn
    assert parse_lsn(document["gap"]["before"]) == at.commit_lsn > end_lsn
    assert "it is gone" in document["gap"]["why"]
    assert [table["table"] for table in document["reseed"]] == ["public.t"]
    assert document["lost"] is None
    assert not (folder / CONSENT_FILE).exists()


@pytest.mark.parametrize("how", ["made again", "read by somebody else"])
def test_a_slot_that_is_there_and_of_no_use_is_made_anew(database, folder, how):
    filled(database, folder)
    wait_for(lambda: database.value("SELECT active FROM pg_replication_slots") is False, what="the slot is free")
    database.execute("INSERT INTO t VALUES (2)")
    if how == "made again":
        database.drop_slot("walbus")
        database.execute("SELECT pg_create_logical_replication_slot('walbus', 'pgoutput')")
    else:
        database.execute("SELECT pg_replication_slot_advance('walbus', pg_current_wal_lsn())")
    consent(database, folder)
    with capturing(database.dsn, folder) as capture:
        database.execute("INSERT INTO t VALUES (3)")
        capture.caught_up()
    assert keys(folder) == [1, 3]
    assert len(gaps(folder)) == 1


def test_without_consent_capture_stops_and_names_the_command(database, folder):
    filled(database, folder)
    lose_slot(database)
    error = refusal(database.dsn, folder)
    assert isinstance(error, SourceGap)
    assert "walbus snapshot --reconcile" in error.mend


def test_a_consent_is_for_one_gap(database, folder):
    filled(database, folder)
    lose_slot(database)
    consent(database, folder)
    kept = (folder / CONSENT_FILE).read_bytes()
    with capturing(database.dsn, folder) as capture:
        database.execute("INSERT INTO t VALUES (3)")
        capture.caught_up()
    lose_slot(database)
    (folder / CONSENT_FILE).write_bytes(kept)
    source = source_of(database.dsn)
    with closing(file_log(folder, source)) as log:
        capture = CaptureThread(source, log, spool_dir=spool_of(folder), differences_dir=folder / "differences")
        assert isinstance(capture.ended(), SourceGap)
    assert len(gaps(folder)) == 1


def test_a_good_slot_needs_no_reconciling(database, folder):
    filled(database, folder)
    with closing(open_reader(folder)) as reader:
        assert find_gap(source_of(database.dsn), reader.bounds()) is None


def test_a_crash_before_the_record_begins_again(database, folder, monkeypatch):
    filled(database, folder)
    lose_slot(database)
    consent(database, folder)
    source = source_of(database.dsn)

    def fails(*_):
        raise SourceGap("crashed")

    with monkeypatch.context() as patched:
        patched.setattr("walbus.capture.reconciling.Reconciling.record", fails)
        with closing(file_log(folder, source)) as log:
            capture = CaptureThread(source, log, spool_dir=spool_of(folder), differences_dir=folder / "differences")
            assert "crashed" in str(capture.ended())
    assert database.value("SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'walbus'") == 1
    assert gaps(folder) == []
    with capturing(database.dsn, folder) as capture:
        database.execute("INSERT INTO t VALUES (3)")
        capture.caught_up()
    assert len(gaps(folder)) == 1
    assert keys(folder) == [1, 3]


def test_a_publication_that_was_lost_is_made_again(database, folder):
    filled(database, folder)
    lose_slot(database)
    database.execute("DROP PUBLICATION walbus")
    consent(database, folder)
    with capturing(database.dsn, folder) as capture:
        wait_for((folder / CATALOG_FILE).exists, what="the catalog is remembered")
        database.execute("INSERT INTO t VALUES (3)")
        capture.caught_up()
    assert keys(folder) == [1, 3]
