"""When a consumer reports: once a second at most, at once when somebody waits, seldom when nothing changes."""

from __future__ import annotations

from walbus.consumer_reports import ConsumerReport
from walbus.consumers.report_schedule import REFRESH_SECONDS, REPORT_SECONDS, ReportSchedule
from walbus.position import Position


def at(lsn: int) -> Position:
    return Position(1, lsn, 1)


def report(lsn: int, *, session: str = "1", begins: bool = False) -> ConsumerReport:
    return ConsumerReport(session, begins, "ab", "online", at(lsn), lsn, 1, whole=True)


def started(now: float = 100.0) -> ReportSchedule:
    """A schedule whose first report was taken."""
    schedule = ReportSchedule()
    schedule.note(report(1, begins=True))
    assert schedule.due() <= now
    schedule.taken(schedule.latest, now)
    return schedule


def test_before_there_is_anything_to_say_nothing_is_due():
    assert ReportSchedule().due() == float("inf")


def test_what_is_new_waits_for_its_second_and_what_is_not_for_half_a_minute():
    schedule = started(100.0)
    assert schedule.due() == 100.0 + REFRESH_SECONDS
    schedule.note(report(2))
    assert schedule.due() == 100.0 + REPORT_SECONDS
    schedule.note(report(3))
    assert schedule.due() == 100.0 + REPORT_SECONDS
    assert schedule.latest.last_done == at(3)


def test_somebody_who_waits_has_it_said_at_once_when_the_consumer_is_there_and_not_before():
    schedule = started(100.0)
    schedule.asked(at(5))
    schedule.note(report(4))
    assert schedule.due() == 100.0 + REPORT_SECONDS
    schedule.note(report(5))
    assert schedule.due() == float("-inf")
    schedule.taken(schedule.latest, 100.1)
    assert schedule.due() == 100.1 + REFRESH_SECONDS


def test_somebody_who_waits_for_what_was_said_already_has_it_said_again():
    schedule = started(100.0)
    schedule.asked(at(1))
    assert schedule.due() == float("-inf")


def test_a_session_begins_until_the_relay_has_taken_it():
    schedule = ReportSchedule()
    schedule.note(report(1, begins=True))
    sent = schedule.latest
    schedule.note(report(2))
    assert schedule.latest.begins
    schedule.failed(100.0)
    assert schedule.due() == 101.0
    schedule.taken(sent, 101.0)  # the answer to the first one comes late
    assert not schedule.latest.begins
    assert schedule.latest.last_done == at(2)
    assert schedule.due() == 101.0 + REPORT_SECONDS


def test_another_session_is_said_at_once():
    schedule = started(100.0)
    schedule.note(report(1, session="2", begins=True))
    assert schedule.due() == float("-inf")
    assert schedule.latest.begins


def test_a_relay_that_does_not_answer_is_asked_less_and_less_whoever_waits():
    schedule, now, pauses = started(100.0), 200.0, []
    schedule.note(report(2))
    schedule.asked(at(2))
    for _ in range(8):
        schedule.failed(now)
        pauses.append(schedule.due() - now)
        now = schedule.due()
    assert pauses == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]
    schedule.failed(now, at_least=60.0)
    assert schedule.due() == now + 60.0
    schedule.taken(schedule.latest, now)
    schedule.note(report(3))
    assert schedule.due() == now + REPORT_SECONDS


def test_a_relay_that_asks_without_end_is_remembered_within_bounds():
    schedule = started(100.0)
    for n in range(10_000):
        schedule.asked(at(1_000_000 + n))
    assert len(schedule._asked) <= 256


def test_the_last_word_is_what_was_not_said_yet():
    schedule = started(100.0)
    assert schedule.last_word() is None
    schedule = started(100.0)
    schedule.note(report(2))
    assert schedule.last_word() == report(2)
    assert schedule.last_word() is None


def test_there_is_no_last_word_to_a_relay_that_does_not_answer():
    schedule = started(100.0)
    schedule.note(report(2))
    schedule.failed(101.0)
    assert schedule.last_word() is None
