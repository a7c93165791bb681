"""What is decided before anything is streamed, and what a promotion means to the log. No server."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from support.relay_log import epoch_piece as other_epoch_piece
from support.relay_log import piece, table_schema, transaction
from walbus.capture.epochs import Switch, epoch_piece, last_transaction, lost_transactions, switches_between
from walbus.capture.slot import slot_state
from walbus.capture.timelines import Timelines
from walbus.capture.verification import (
    Continued,
    SlotState,
    SystemIdentity,
    check_kind,
    check_reach,
    check_slot,
    check_system,
    lossy_switch,
)
from walbus.errors import SourceGap, SourceMisconfigured, SourceReplaced
from walbus.log import Bounds, Held, Piece
from walbus.position import ORIGIN, Position
from walbus.records import Flag, Kind, iter_changes, pack_record

SYSTEM = SystemIdentity("7001", 1, 5000, "shop")
SLOT = SlotState("pgoutput", "shop", confirmed_lsn=900, restart_lsn=800, wal_status="reserved")


def bounds(epoch: int = 1, lsn: int = 1000, end_lsn: int | None = None) -> Bounds:
    return Bounds("x", ORIGIN, Position(epoch, lsn, 1), lsn + 8 if end_lsn is None else end_lsn, 1, 1, 1)


EMPTY = replace(bounds(), end=ORIGIN, end_lsn=0)


def record(given: Piece) -> bytes:
    fields = {name: getattr(given, name) for name in given.__slots__}
    return pack_record(fields.pop("kind"), first_seq=1, last_seq=1, **fields)


# The system and its history.


@pytest.mark.parametrize("other", [replace(SYSTEM, system_identifier="7002"), replace(SYSTEM, database="test")])
def test_another_system_or_database_is_another_source(other):
    check_system(SYSTEM, SYSTEM)
    with pytest.raises(SourceReplaced, match="another database answers"):
        check_system(other, SYSTEM)


def test_the_timeline_of_the_log_goes_on():
    assert lossy_switch(bounds(), Timelines(1)) is None
    assert lossy_switch(EMPTY, Timelines(3, ((1, 10), (2, 20)))) is None


def test_a_promotion_behind_the_logs_end_loses_nothing():
    assert lossy_switch(bounds(end_lsn=1008), Timelines(2, ((1, 1008),))) is None


def test_a_promotion_before_the_logs_end_is_told_with_its_switch_point():
    found = lossy_switch(bounds(end_lsn=1008), Timelines(3, ((1, 1000), (2, 2000))))
    assert found == Switch(previous=1, epoch=2, lsn=1000)
    assert found is not None
    assert (found.before, found.position) == (Position(1, 1000, 0), Position(2, 1000, 0))


def test_two_promotions_at_one_place_go_to_the_last_of_them():
    assert lossy_switch(bounds(end_lsn=1008), Timelines(3, ((1, 1000), (2, 1000)))) == Switch(1, 3, 1000)


def test_a_primary_that_was_replaced_is_refused():
    with pytest.raises(SourceReplaced, match="primary that was replaced") as caught:
        lossy_switch(bounds(epoch=2), Timelines(1))
    assert "name the primary that replaced it" in (caught.value.mend or "")


def test_a_history_without_the_logs_timeline_is_refused():
    with pytest.raises(SourceReplaced, match="does not descend from timeline 2"):
        lossy_switch(bounds(epoch=2), Timelines(3, ((1, 900),)))


def test_a_server_whose_wal_ends_before_the_log_was_set_back():
    check_reach(SYSTEM, 5000)
    with pytest.raises(SourceReplaced, match="set back"):
        check_reach(SYSTEM, 5001)


def test_the_switches_between_two_epochs_are_those_of_the_servers_history():
    timelines = Timelines(5, ((1, 10), (3, 30), (4, 40)))
    assert switches_between(timelines, 1, 5) == [Switch(1, 3, 10), Switch(3, 4, 30), Switch(4, 5, 40)]
    assert switches_between(timelines, 3, 4) == [Switch(3, 4, 30)]
    assert switches_between(timelines, 5, 5) == []


# The slot.


def test_a_missing_slot_is_made_for_an_empty_log_alone():
    check_slot("walbus", None, Continued(EMPTY, Timelines(1), None))
    with pytest.raises(SourceGap, match="it is gone"):
        check_slot("walbus", None, Continued(bounds(), Timelines(1), None))


def test_a_slot_that_did_not_survive_a_promotion_is_told_how_it_would():
    with pytest.raises(SourceGap) as caught:
        check_slot("walbus", None, Continued(bounds(), Timelines(2, ((1, 2000),)), None))
    assert "sync_replication_slots" in (caught.value.mend or "")


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ({"wal_status": "lost"}, "max_slot_wal_keep_size"),
        ({"wal_status": "lost", "conflicting": True}, "max_slot_wal_keep_size"),
        ({"wal_status": "reserved", "conflicting": True}, "standby"),
        ({"wal_status": "lost", "invalidation_reason": "wal_removed"}, "max_slot_wal_keep_size"),
        ({"wal_status": "lost", "invalidation_reason": "idle_timeout"}, "idle_replication_slot_timeout"),
        ({"wal_status": "lost", "invalidation_reason": "rows_removed"}, "rows of the catalog"),
        ({"wal_status": "lost", "invalidation_reason": "wal_level_insufficient"}, "wal_level"),
        ({"wal_status": "lost", "invalidation_reason": "of a later version"}, "of a later version"),
    ],
)
def test_a_slot_that_postgresql_gave_up_is_a_gap_with_its_cause(columns, told):
    common = {"plugin": "pgoutput", "database": "shop", "confirmed_flush_lsn": "0/384", "restart_lsn": None}
    state = slot_state({**common, "two_phase": False, **columns})
    with pytest.raises(SourceGap, match="it is lost") as caught:
        check_slot("walbus", state, Continued(bounds(), Timelines(1), None))
    assert told in caught.value.what


def test_a_slot_that_was_invalidated_is_no_beginning_of_a_log_either():
    state = replace(SLOT, invalidation="wal_removed", wal_status="lost")
    with pytest.raises(SourceGap):
        check_slot("walbus", state, Continued(EMPTY, Timelines(1), None))


@pytest.mark.parametrize(("restart", "told"), [(900, "somebody else has read"), (2000, "made again")])
def test_a_slot_confirmed_past_the_log_is_a_gap_that_says_who_moved_it(restart, told):
    state = replace(SLOT, confirmed_lsn=1009, restart_lsn=restart)
    with pytest.raises(SourceGap, match=told):
        check_slot("walbus", state, Continued(bounds(), Timelines(1), None))
    check_slot("walbus", replace(SLOT, confirmed_lsn=1008), Continued(bounds(), Timelines(1), None))


def test_behind_a_lossy_failover_the_slot_may_be_confirmed_to_the_switch_point_at_most():
    switch = Switch(1, 2, 950)
    continued = Continued(bounds(), Timelines(2, ((1, 950),)), switch)
    check_slot("walbus", replace(SLOT, confirmed_lsn=950), continued)
    with pytest.raises(SourceGap):
        check_slot("walbus", replace(SLOT, confirmed_lsn=960), continued)


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (replace(SLOT, plugin="wal2json"), "of plugin wal2json"),
        (replace(SLOT, database="test"), "database test"),
        (replace(SLOT, plugin=None, database=None), "a physical one"),
    ],
)
def test_a_slot_of_another_kind_is_refused(other, told):
    check_kind("walbus", SLOT, "shop")
    with pytest.raises(SourceMisconfigured, match=told):
        check_kind("walbus", other, "shop")


# What a failover lost.


def test_what_was_lost_is_told_by_positions_and_tables():
    records = [
        record(transaction(944)),
        record(piece(960, 1, 2, Flag.BEGIN, table=7)),
        record(piece(960, 3, 1, Flag.END, table=8)),
        record(transaction(992, 2, table=7)),
    ]
    lost = lost_transactions(records, Switch(1, 2, 950))
    assert lost is not None
    assert (lost.first, lost.last, lost.transactions) == (Position(1, 960, 1), Position(1, 992, 2), 2)
    assert lost.tables == {7, 8}
    assert lost_transactions(records[:1], Switch(1, 2, 950)) is None


def test_the_epoch_record_stands_at_the_switch_point_and_names_what_must_be_seeded_again():
    switch = Switch(1, 2, 0x16_0000_0950)
    lost = lost_transactions([record(transaction(0x16_0000_0960, 2, table=16390))], switch)
    made = epoch_piece(switch, lost, [table_schema("orders", 16390)], 17)
    assert (made.kind, made.epoch, made.commit_lsn, made.last_ordinal) == (Kind.EPOCH, 2, 0x16_0000_0950, 0)
    (change,) = iter_changes(made.body)
    assert json.loads(change.after or b"") == {
        "epoch": 2,
        "previous": 1,
        "switch": "16/950",
        "lost": {"first": "1:16/960:1", "last": "1:16/960:2", "transactions": 1},
        "reseed": [{"oid": 16390, "table": "public.orders"}],
    }


def test_the_last_transaction_that_the_server_still_has_is_found_among_those_that_it_lost():
    timelines = Timelines(2, ((1, 950),))
    message = replace(transaction(940), xid=0)
    records = [record(given) for given in (transaction(928), message, transaction(960), other_epoch_piece(950, 2))]
    last = last_transaction(records, timelines)
    assert last is not None
    assert last == Held(928, 936, 58, last.commit_time)
    assert last_transaction(records[1:], timelines) is None
