"""A spool that cannot be used is told before anything is made at the source."""

from __future__ import annotations

import threading

import pytest

from support.capturing import source_of
from support.memory_log import MemoryLog
from walbus.capture import run_capture
from walbus.errors import ConfigError


def test_a_spool_folder_that_cannot_be_used_is_told_before_a_slot_is_made(database, tmp_path):
    spool = tmp_path / "spool"
    spool.write_text("a file")
    with pytest.raises(ConfigError, match=r"the spool's folder cannot be used: File exists .*data_dir"):
        run_capture(source_of(database.dsn), MemoryLog(), spool_dir=spool, stop=threading.Event())
    assert database.execute("SELECT slot_name FROM pg_replication_slots WHERE database = current_database()") == []
    assert database.execute("SELECT pubname FROM pg_publication") == []
