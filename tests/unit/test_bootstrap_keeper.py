"""What is done once a second goes on by itself where something about it failed."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

from support.mvcc_model import new_ledger
from walbus.bootstrap.file_hold import FileHold
from walbus.bootstrap.keeper import Keeper
from walbus.bootstrap.report import Report
from walbus.bootstrap.upkeep import IndexUpkeep, Retention
from walbus.errors import LogError
from walbus.log import LogReader


def test_a_reader_whose_log_failed_is_not_asked_again(tmp_path: Path) -> None:
    """The log may have been replaced, and a reader of the one before it would fail for ever."""
    ledger = new_ledger()
    failing, sound = mock.create_autospec(LogReader, instance=True), mock.create_autospec(LogReader, instance=True)
    failing.bounds.side_effect = LogError("a segment is gone")
    sound.bounds.return_value.end.commit_lsn = 0x700
    readers = iter([failing, sound])
    report = Report(ledger, lambda: 0.0, {})
    upkeep = IndexUpkeep(ledger, lambda: 0.0, lambda: 0.0, Retention(3600, 10))
    keeper = Keeper(ledger, report, upkeep, lambda: next(readers), hold=FileHold(tmp_path), status_path=None)
    keeper.keep()
    failing.close.assert_called_once_with()
    keeper.keep()
    keeper.keep()
    assert report.status()["walbus_bootstrap_lag_bytes"] == 0x700
