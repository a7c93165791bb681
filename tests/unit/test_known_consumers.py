"""What the relay takes a consumer's word for, and what it does not; names and bytes are bounded. Time is passed in."""

from __future__ import annotations

import dataclasses

import pytest

from walbus.consumer_reports import ConsumerReport
from walbus.position import Position
from walbus.relay.known_consumers import (
    MAX_CONSUMERS,
    SILENT_SECONDS,
    STALE_SECONDS,
    KnownConsumers,
    StoredConsumer,
    TooManyConsumers,
)
from walbus.relay.peer import Peer

LOG, OTHER_LOG = "a" * 32, "b" * 32
PEER = Peer("127.0.0.1", "test")


def at(lsn: int) -> Position:
    return Position(1, lsn, 1)


def report(lsn: int | None, *, session: str = "1", begins: bool = False, **more: object) -> ConsumerReport:
    plain = ConsumerReport(
        session, begins, LOG, "online", None if lsn is None else at(lsn), lsn or 0, 7, whole=True,
        tables=("public.orders",), sink="sqlite",
    )  # fmt: skip
    return dataclasses.replace(plain, **more)  # type: ignore[arg-type]


def told(consumers: KnownConsumers, one: ConsumerReport, now: float = 100.0) -> bool:
    return consumers.report("cache", one, PEER, now)[1]


@pytest.fixture
def consumers() -> KnownConsumers:
    return KnownConsumers()


def place(consumers: KnownConsumers) -> Position | None:
    known = consumers.get("cache")
    assert known is not None
    return known.last_done


def test_a_consumer_is_where_it_says_that_it_is(consumers):
    assert told(consumers, report(10, begins=True), now=5.0)
    assert told(consumers, report(20), now=9.0)
    known = consumers.get("cache")
    assert (known.last_done, known.first_seen, known.last_seen, known.reported_at) == (at(20), 5.0, 9.0, 9.0)
    assert (known.tables, known.peer, known.report.sink) == (("public.orders",), PEER, "sqlite")


def test_a_late_report_of_the_same_session_does_not_take_it_back(consumers):
    told(consumers, report(20, begins=True))
    assert not told(consumers, report(10))
    assert place(consumers) == at(20)


def test_a_consumer_that_was_reset_is_taken_at_its_word(consumers):
    told(consumers, report(20, begins=True))
    assert told(consumers, report(10, session="2", begins=True))
    assert place(consumers) == at(10)
    assert told(consumers, report(None, session="3", begins=True))
    assert place(consumers) is None


def test_a_zombie_that_is_ahead_of_the_consumer_that_was_reset_is_not_believed(consumers):
    told(consumers, report(90, session="1", begins=True))
    told(consumers, report(10, session="2", begins=True))
    assert not told(consumers, report(95, session="1"))
    assert place(consumers) == at(10)


def test_where_the_newer_of_two_processes_falls_silent_the_other_counts_again(consumers):
    told(consumers, report(50, session="1", begins=True), now=0.0)
    told(consumers, report(50, session="2", begins=True), now=1.0)
    assert not told(consumers, report(60, session="1"), now=1.0 + SILENT_SECONDS)
    assert told(consumers, report(60, session="1"), now=1.1 + SILENT_SECONDS)


def test_a_new_snapshot_may_begin_at_an_earlier_place(consumers):
    told(consumers, report(50, begins=True))
    assert told(consumers, report(40, generation=8))
    assert not told(consumers, report(45, generation=7))
    assert place(consumers) == at(40)


def test_another_log_is_another_order(consumers):
    told(consumers, report(50, begins=True))
    assert told(consumers, report(3, log_id=OTHER_LOG))
    assert consumers.get("cache").proves(LOG) is None
    assert consumers.get("cache").proves(OTHER_LOG) == at(3)


def test_rows_that_a_snapshot_has_not_brought_yet_prove_nothing(consumers):
    told(consumers, report(50, begins=True, phase="snapshot", whole=False))
    assert consumers.get("cache").proves(LOG) is None


def restarted(consumers: KnownConsumers) -> KnownConsumers:
    again = KnownConsumers()
    again.load(consumers.dump())
    return again


def test_after_a_restart_everything_is_shown_and_nothing_is_proved_until_it_is_told_again(consumers):
    told(consumers, report(50, begins=True), now=5.0)
    consumers.closed("cache", at(60), 6.0)
    again = restarted(consumers)
    known = again.get("cache")
    assert (known.last_done, known.sent, known.first_seen, known.last_seen) == (at(50), at(60), 5.0, 6.0)
    assert known.proves(LOG) is None
    assert told(again, report(51))
    assert again.get("cache").proves(LOG) == at(51)


def test_after_a_restart_a_session_that_was_not_written_any_more_goes_on(consumers):
    told(consumers, report(50, session="1", begins=True), now=5.0)
    again = restarted(consumers)
    assert told(again, report(30, session="2"), now=6.0)  # its beginning was told to the relay that was killed
    assert place(again) == at(30)


def test_a_stream_makes_a_name_known_without_a_place(consumers):
    consumers.opened("tail", ["public.*"], PEER, 3.0)
    known = consumers.get("tail")
    assert (known.last_done, known.tables, known.last_seen) == (None, ("public.*",), 3.0)


def test_names_are_bounded_and_those_that_are_there_are_not_driven_out(consumers):
    for n in range(MAX_CONSUMERS):
        consumers.opened(f"n{n}", (), PEER, 1000.0)
    with pytest.raises(TooManyConsumers):
        consumers.opened("one-more", (), PEER, 1000.0 + STALE_SECONDS - 1)
    assert len(consumers) == MAX_CONSUMERS


def test_a_name_that_was_not_seen_for_an_hour_makes_room(consumers):
    consumers.opened("old", (), PEER, 0.0)
    for n in range(MAX_CONSUMERS - 1):
        consumers.opened(f"n{n}", (), PEER, 10.0)
    consumers.opened("new", (), PEER, STALE_SECONDS + 1)
    assert consumers.get("old") is None
    assert len(consumers) == MAX_CONSUMERS


def test_a_name_that_is_too_old_expires_and_one_that_is_connected_does_not(consumers):
    consumers.opened("gone", (), PEER, 0.0)
    consumers.opened("here", (), PEER, 0.0)
    consumers.seen(["here"], 100.0)
    assert consumers.expire(50.0) == ["gone"]
    assert [known.name for known in consumers] == ["here"]


def test_a_name_is_forgotten_once(consumers):
    told(consumers, report(1))
    assert consumers.forget("cache")
    assert not consumers.forget("cache")


def test_what_was_stored_is_not_trusted_with_names_that_cannot_be(consumers):
    with pytest.raises(ValueError, match="name"):
        consumers.load([StoredConsumer("../../etc", 0.0, 0.0, "", "", (), None, None)])
    with pytest.raises(ValueError, match="name"):
        consumers.load([StoredConsumer(f"n{n}", 0.0, 0.0, "", "", (), None, None) for n in range(MAX_CONSUMERS + 1)])


def test_a_peer_cannot_call_itself_more_than_a_few_words():
    assert len(Peer.told("x" * 10_000, "y" * 10_000).agent) == 120
    assert Peer.told(None, None) == Peer("", "")
