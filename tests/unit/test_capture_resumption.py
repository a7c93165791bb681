"""What a start writes before anything else, and what it waits for, by the log alone. No server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

import pytest
from pydantic import SecretStr

from support.memory_log import MemoryLog
from support.relay_log import epoch_piece, progress, table_schema, transaction
from walbus.capture.resumption import Resumption
from walbus.capture.timelines import Timelines
from walbus.capture.verification import Continued, SlotState, lossy_switch
from walbus.config import SourceConfig
from walbus.errors import PositionTrimmed
from walbus.log import Bounds, Held, Piece
from walbus.position import Position
from walbus.records import Kind, body_of, iter_changes, read_header

SWITCHED = Timelines(2, ((1, 950),))
CLOCK = 2_000.0


class Trimmed(MemoryLog):
    """A log whose retention has passed its first transaction."""

    def bounds(self) -> Bounds:
        return replace(super().bounds(), trimmed=read_header(self.durable[0]).last)

    def records_after(self, after: Position) -> Iterator[bytes]:
        if after < self.bounds().trimmed:
            raise PositionTrimmed("gone", where=str(after))
        return super().records_after(after)


def log_of(*pieces: Piece, kind: type[MemoryLog] = MemoryLog) -> MemoryLog:
    log = kind()
    for oid, name in ((7, "orders"), (8, "lines"), (9, "quiet")):
        log.schemas.register(table_schema(name, oid))
    log.write(list(pieces))
    log.sync()
    return log


def resumption(log: MemoryLog) -> Resumption:
    return Resumption(SourceConfig(dsn=SecretStr("postgresql://h/d")), log, lambda: CLOCK)


def begin(log: MemoryLog, timelines: Timelines, confirmed: int) -> None:
    bounds = log.bounds()
    resumption(log).begin(Continued(bounds, timelines, lossy_switch(bounds, timelines)), confirmed)


def last_record(log: MemoryLog) -> tuple[Kind, Position, int, dict[str, object]]:
    """Kind, position, time, and what an EPOCH record tells."""
    header = read_header(log.durable[-1])
    told = [json.loads(change.after or b"") for change in iter_changes(body_of(log.durable[-1], header))]
    return Kind(header.kind), header.last, header.commit_time, *(told or [{}])


def test_an_empty_log_begins_with_a_record_at_the_slots_place_in_that_places_epoch():
    for confirmed, epoch in ((900, 1), (950, 2)):
        log = log_of()
        begin(log, SWITCHED, confirmed)
        assert last_record(log) == (Kind.PROGRESS, Position(epoch, confirmed, 0), 2_000_000_000, {})
        assert log.bounds().end_lsn == confirmed


def test_a_log_that_goes_on_gets_no_record():
    log = log_of(transaction(928))
    begin(log, SWITCHED, 900)
    assert len(log.durable) == 1


def test_what_a_failover_lost_is_told_first_and_names_the_tables_that_it_touched():
    log = log_of(transaction(928, table=7), transaction(960, table=8))
    begin(log, SWITCHED, 900)
    kind, at, _, told = last_record(log)
    assert (kind, at) == (Kind.EPOCH, Position(2, 950, 0))
    assert told["lost"] == {"first": "1:0/3C0:1", "last": "1:0/3C0:1", "transactions": 1}
    assert told["reseed"] == [{"oid": 8, "table": "public.lines"}]
    assert log.bounds().end_lsn == 950


def test_where_nobody_can_say_any_more_what_was_lost_every_table_is_seeded_again():
    log = log_of(transaction(960, table=7), transaction(992, table=8), kind=Trimmed)
    begin(log, SWITCHED, 900)
    *_, told = last_record(log)
    assert told["lost"] is None
    assert [table["oid"] for table in told["reseed"]] == [7, 8, 9]  # type: ignore[attr-defined]


def test_the_record_of_a_failover_is_not_older_than_what_stands_before_it():
    late = replace(transaction(960), commit_time=9_000_000_000)
    log = log_of(late)
    begin(log, SWITCHED, 900)
    assert last_record(log)[2] == late.commit_time


@pytest.mark.parametrize(
    ("confirmed", "behind", "owed"),
    [
        (900, [], 960),  # the slot begins before the log's last transaction
        (968, [], None),  # and behind it
        (900, [progress(1000)], 960),  # the log's last record is none
        (1000, [progress(1000)], None),
        (961, [progress(1000)], None),  # nothing but progress comes behind the slot's place
    ],
)
def test_the_logs_last_transaction_is_owed_where_the_slot_begins_before_it(confirmed, behind, owed):
    log = log_of(transaction(928), transaction(960), *behind)
    found = resumption(log).owed(SlotState("pgoutput", "d", confirmed), Timelines(1))
    assert (found and found.commit_lsn) == owed


def test_what_the_log_has_forgotten_is_not_looked_at_for_what_is_owed():
    log = log_of(transaction(928), transaction(960), progress(1000), kind=Trimmed)
    found = resumption(log).owed(SlotState("pgoutput", "d", 900), Timelines(1))
    assert isinstance(found, Held)
    assert found.commit_lsn == 960


def test_behind_a_failover_what_the_source_still_has_is_owed():
    log = log_of(transaction(928), transaction(960), epoch_piece(950, 2))
    found = resumption(log).owed(SlotState("pgoutput", "d", 900), SWITCHED)
    assert isinstance(found, Held)
    assert found.commit_lsn == 928


def test_without_a_slot_nothing_is_owed():
    assert resumption(log_of(transaction(928))).owed(None, Timelines(1)) is None
