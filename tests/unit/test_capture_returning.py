"""When a stream makes way for steps: for what the log does not have yet, however old the last look at the slot is."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
from pydantic import SecretStr

from walbus.capture.catchup import CatchUp
from walbus.capture.confirming import Confirming
from walbus.capture.report import Report
from walbus.capture.retention import Retention, RetentionWatch
from walbus.capture.steps import FAR_BEHIND, Pauses
from walbus.config import SourceConfig
from walbus.log import StandbyBound

MIB = 1 << 20
BEGUN = 1000


@dataclass
class Log:
    """The end of one."""

    end_lsn: int = BEGUN

    def bounds(self) -> SimpleNamespace:
        return SimpleNamespace(end_lsn=self.end_lsn)


def catch_up(log: Log, held: StandbyBound | None = None) -> CatchUp:
    """Of a slot whose WAL could be read up to `FAR_BEHIND` first steps beyond the log, when it was looked at."""
    report = Report(None, lambda: 0.0, {}, RetentionWatch("walbus"))
    report.retention.last = Retention(0, None, "reserved", BEGUN + FAR_BEHIND * MIB)
    confirming = Confirming(None if held is None else lambda: held, lambda: 0.0)
    confirming.begin(BEGUN)
    source = SourceConfig(dsn=SecretStr("postgresql://h/d"), catch_up_step_bytes=MIB)
    return CatchUp(
        source,
        log,  # type: ignore[arg-type]
        report,
        confirming,
        stop=threading.Event(),
        clock=lambda: 0.0,
        monotonic=lambda: 1.0,
        pauses=Pauses(),
    )


def test_a_stream_far_behind_makes_way() -> None:
    assert catch_up(Log()).should_return()


@pytest.mark.parametrize("read", [1, FAR_BEHIND * MIB])
def test_what_was_read_since_the_last_look_is_not_left_to_read(read: int) -> None:
    """Steps may have come to the tail since: a stream that left again at once would only lose a connection."""
    assert not catch_up(Log(BEGUN + read)).should_return()


@pytest.mark.parametrize("read", [0, 1])
def test_what_a_standby_holds_back_was_read_all_the_same(read: int) -> None:
    assert catch_up(Log(BEGUN + read), StandbyBound(BEGUN, ())).should_return() is (read == 0)


def test_a_slot_that_may_not_be_moved_is_not_left() -> None:
    assert not catch_up(Log(), StandbyBound(BEGUN - 1, ())).should_return()
    assert not catch_up(Log(), StandbyBound(BEGUN, ("relay-b",))).should_return()
