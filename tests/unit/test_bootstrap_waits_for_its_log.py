"""A log that is away, or held by somebody else, is waited for; each reason is said once, and is in the status file."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pytest
from structlog.testing import capture_logs

from support.mvcc_model import new_ledger
from support.waiting import wait_for
from walbus.bootstrap.applier import Applier
from walbus.bootstrap.file_hold import FileHold
from walbus.bootstrap.handing import Handing
from walbus.bootstrap.keeper import Keeper
from walbus.bootstrap.report import Report
from walbus.bootstrap.upkeep import IndexUpkeep, Retention
from walbus.errors import LogBusy, LogError, LogUnreachable
from walbus.log import LogReader, RetentionHold
from walbus.position import Position
from walbus.status import read_status


class Hold:
    """A hold that is refused for each of some reasons, and then had."""

    def __init__(self, *reasons: LogError) -> None:
        self.reasons = list(reasons)
        self.asked = 0

    def require(self) -> None:
        self.asked += 1
        if self.reasons:
            raise self.reasons.pop(0)

    def move(self, log_id: str, last_done: Position) -> None:
        raise AssertionError

    def close(self) -> None:
        raise AssertionError


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("walbus.bootstrap.applier._SHORTEST_PAUSE", 0.01)
    monkeypatch.setattr("walbus.bootstrap.applier._LONGEST_PAUSE", 0.01)
    yield


def idle_log() -> mock.Mock:
    """A log without records."""
    reader = mock.create_autospec(LogReader, instance=True)
    ledger = new_ledger()
    assert ledger.applied is not None
    reader.bounds.return_value.log_id = ledger.applied.log_id
    reader.cursor.return_value.read.return_value = []
    reader.wait.side_effect = lambda seen, timeout: not threading.Event().wait(0.01)
    return reader


def followed(hold: RetentionHold, until: Callable[[list[str | None]], bool]) -> tuple[list[str | None], list[str]]:
    """What an applier tells, and its events, until a condition holds of the former."""
    told: list[str | None] = []
    stop = threading.Event()
    applier = Applier(new_ledger(), idle_log, hold, stop=stop, tell=told.append, jitter=lambda: 0.5)
    with capture_logs() as logs:
        thread = threading.Thread(target=applier.run)
        thread.start()
        try:
            wait_for(lambda: until(told), what="the applier tells")
        finally:
            stop.set()
            thread.join(60)
    return told, [log["event"] for log in logs]


def test_each_reason_is_said_once_and_the_status_has_the_last_one(no_pauses: None) -> None:
    away = [LogUnreachable(f"no answer (after {n} ms)", where="k:9092") for n in range(4)]
    taken = [LogBusy("another process holds this log: b")] * 3
    told, events = followed(Hold(*away, *taken), lambda told: told[-1:] == [None])
    assert told[:7] == [str(error) for error in (*away, *taken)]
    assert set(told[7:]) == {None}
    assert [event for event in events if event.startswith("log_")] == [
        "log_not_readable", "log_not_readable", "log_readable",
    ]  # fmt: skip


def test_a_hold_that_is_lost_is_noticed_while_the_log_is_followed(no_pauses: None) -> None:
    hold, lost = Hold(), [LogBusy("it went to another process")]

    def took_it(told: list[str | None]) -> bool:
        if len(told) >= 5 and lost:
            hold.reasons.append(lost.pop())
        return "it went to another process" in told and told[-1] is None

    told, events = followed(hold, took_it)
    assert events.count("log_not_readable") == events.count("log_readable") == 1
    assert told.count("it went to another process") == 1


def test_a_reason_that_only_an_operator_can_mend_ends_the_applier() -> None:
    applier = Applier(
        new_ledger(), idle_log, Hold(LogError("this process may not")), stop=threading.Event(), tell=lambda _: None
    )
    with pytest.raises(LogError, match="may not"):
        applier.run()


def test_the_status_tells_why_the_log_is_not_read() -> None:
    report = Report(new_ledger(), lambda: 0.0, {})
    assert "state" not in report.status()
    report.log_problem = "the cluster is away"
    assert (report.status()["state"], report.status()["error"]) == ("waits_for_log", "the cluster is away")


def test_a_cluster_that_does_not_answer_is_not_asked_each_second_for_its_end(tmp_path: Path) -> None:
    """An answer may be long in coming, and the store is to be synced meanwhile."""
    ledger, now = new_ledger(), [0.0]
    reader = mock.create_autospec(LogReader, instance=True)
    reader.bounds.side_effect = LogUnreachable("no answer")
    opened: list[None] = []

    def opening() -> LogReader:
        opened.append(None)
        return reader  # type: ignore[no-any-return]

    keeper = Keeper(
        ledger,
        Report(ledger, lambda: 0.0, {}),
        IndexUpkeep(ledger, lambda: 0.0, lambda: 0.0, Retention(3600, 10)),
        opening,
        hold=FileHold(tmp_path),
        status_path=None,
        clock=lambda: now[0],
    )
    for second in range(10):
        now[0] = second
        keeper.keep()
    assert len(opened) == 2


def test_the_hold_beside_a_log_is_its_file(tmp_path: Path) -> None:
    hold = FileHold(tmp_path)
    hold.require()
    hold.move("log", Position(1, 16, 2))
    assert read_status(tmp_path / "bootstrap.json") == {"last_done": "1:0/10:2"}
    hold.close()
    assert (tmp_path / "bootstrap.json").exists()


def test_a_difference_is_not_handed_to_a_capture_that_runs_elsewhere(tmp_path: Path) -> None:
    here = [False]
    handing = Handing(tmp_path, lambda: here[0])
    assert not handing.possible
    here[0] = True
    assert handing.possible
    assert not Handing(None).possible
