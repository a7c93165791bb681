"""A sink that is away when a consumer starts, or takes a part: each new reason is told once."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from walbus.consumers import runner
from walbus.consumers.backoff import Backoff
from walbus.consumers.clock import Clock
from walbus.consumers.progress import ConsumerProgress
from walbus.consumers.sinks import SinkPlace
from walbus.errors import SinkUnavailable


def test_each_new_reason_for_which_a_sink_is_away_at_the_start_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    reasons, stop = ["refused", "refused", "loading its data", "loading its data", "refused"], threading.Event()
    left = list(reasons)

    def away(*_):
        reason = left.pop(0)
        if not left:
            stop.set()
        raise SinkUnavailable(reason, where="redis", mend="start it")

    monkeypatch.setattr(runner, "open_sink", away)
    monkeypatch.setattr(Backoff, "next_delay", lambda _: 0.0)
    progress = ConsumerProgress("cache", "redis", tmp_path / "status.json", Clock())
    with capture_logs() as said:
        opened = runner._open_patiently("redis", {}, SinkPlace("cache", tmp_path, ()), progress, stop, None)
    assert opened is None
    told = [line["reason"] for line in said if line["event"] == "consumer.sink_away"]
    assert [reason.split(" (")[0] for reason in told] == ["refused", "loading its data", "refused"]
