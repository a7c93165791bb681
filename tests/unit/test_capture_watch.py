"""The catalog's watch when its connection ends while a look hangs."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import SecretStr

from walbus.capture import watch as module
from walbus.capture.watch import CatalogWatch
from walbus.config import SourceConfig


class Remembered:
    """Notes what is kept."""

    state = None

    def __init__(self) -> None:
        self.kept: list[object] = []

    def keep(self, state: object) -> None:
        self.kept.append(state)


@pytest.mark.parametrize(("patience", "kept"), [(60.0, 1), (0.01, 0)], ids=["it ends in time", "it is left alone"])
def test_what_a_look_sees_that_was_left_alone_is_not_remembered(
    monkeypatch: pytest.MonkeyPatch, patience: float, kept: int
) -> None:
    """The next connection has a watch of its own, and what it has remembered since is newer."""
    hangs, goes_on, remembered = threading.Event(), threading.Event(), Remembered()
    nothing = SimpleNamespace(look=lambda *_: None, complete=lambda *_: None)

    def read_state(*_: Any) -> SimpleNamespace:
        hangs.set()
        assert goes_on.wait(60)
        return SimpleNamespace(tables={})

    moment = SimpleNamespace(publication=1, xmax=1, lsn=1, snapshot="1:1:", quiet=False)
    for name, value in {
        "CLOSE_SECONDS": patience,
        "_open": lambda *_: SimpleNamespace(close=lambda: None),
        "read_moment": lambda *_: moment,
        "fingerprint": lambda *_: "one",
        "matched_tables": lambda *_: [],
        "read_state": read_state,
    }.items():
        monkeypatch.setattr(module, name, value)
    source = SourceConfig(dsn=SecretStr("postgresql://h/d"))
    watch = CatalogWatch(source, (), remembered, {}, nothing, nothing, nothing)  # type: ignore[arg-type]
    watch.start()
    assert hangs.wait(60)
    if patience > 1:
        goes_on.set()
    watch.close()
    goes_on.set()
    watch._thread.join(60)
    assert not watch._thread.is_alive()
    assert len(remembered.kept) == kept
