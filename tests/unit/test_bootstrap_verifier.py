"""A request to verify never ends the bootstrap, nor holds its end up."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from unittest import mock

import pytest
from structlog.testing import capture_logs

from support.memory_store import MemoryStore
from support.waiting import wait_for
from walbus.bootstrap.handing import Handing
from walbus.bootstrap.judging import logged_changes
from walbus.bootstrap.ledger import Ledger
from walbus.bootstrap.state import Applied
from walbus.bootstrap.verify_requests import Verifier, VerifyFolder
from walbus.bootstrap.verifying import Verification
from walbus.config import SourceConfig
from walbus.errors import LogMissing, SourceUnavailable
from walbus.log import LogReader
from walbus.position import Position
from walbus.records import Flag, Kind, Op, pack_change, pack_record


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with capture_logs():
        yield


def no_log() -> LogReader:
    raise LogMissing("there is no log yet", mend="start `walbus capture`")


def test_a_request_without_a_log_is_answered_and_the_next_one_too(tmp_path: Path) -> None:
    folder, stop = VerifyFolder(tmp_path), threading.Event()
    source = SourceConfig(dsn="postgresql://127.0.0.1:1/nowhere")
    verifier = Verifier(tmp_path, Ledger(MemoryStore()), source, no_log, Handing(None), stop=stop)
    thread = threading.Thread(target=verifier.run, daemon=True)
    thread.start()
    for _ in range(2):
        request = folder.ask([], repair=False)
        wait_for(lambda request=request: folder.status(request) is not None, what="there is an answer")
        status = folder.status(request)
        assert status is not None and (status["state"], status["tables"]) == ("failed", [])
        assert "there is no log yet" in status["error"]
        folder.withdraw(request)
    assert thread.is_alive()
    stop.set()
    thread.join(60)
    assert not thread.is_alive()


def test_nothing_is_left_of_a_request_that_is_withdrawn_while_it_is_dealt_with(tmp_path: Path) -> None:
    folder, stop = VerifyFolder(tmp_path), threading.Event()
    request = folder.ask([], repair=False)

    def withdrawn() -> LogReader:
        folder.withdraw(request)
        stop.set()
        return no_log()

    source = SourceConfig(dsn="postgresql://127.0.0.1:1/nowhere")
    Verifier(tmp_path, Ledger(MemoryStore()), source, withdrawn, Handing(None), stop=stop).run()
    assert list(tmp_path.iterdir()) == []


def test_a_difference_that_no_capture_takes_is_not_waited_for_behind_the_end(tmp_path: Path) -> None:
    handing = Handing(tmp_path)
    number, _ = handing.give(Applied("log"), "public.t", 16400, [], schemas=[], reason="repaired")
    reader, connect = mock.create_autospec(LogReader), mock.Mock()  # neither is asked
    verification = Verification(Ledger(MemoryStore()), "walbus", reader, connect, handing, repair=True)
    verification.give_up()
    with pytest.raises(SourceUnavailable):
        verification._wait_taken([number], 16400)


def test_the_log_is_read_up_to_where_the_source_was_asked_however_fast_it_grows() -> None:
    def records() -> Iterator[bytes]:
        for lsn in count(0x100):
            assert lsn < 0x200, "it is read on and on"
            change = pack_change(Op.DELETE, table=7, schema_id=1, seq_delta=0, ordinal_delta=0, key=b"k")
            yield pack_record(
                Kind.TRANSACTION, flags=Flag.BEGIN | Flag.END, epoch=1, commit_lsn=lsn, first_ordinal=1, last_ordinal=1,
                first_seq=lsn, last_seq=lsn, xid=lsn, commit_time=0, count=1, tables=1 << 7, body=change,
            )  # fmt: skip

    seen = [(xid, len(list(changes))) for xid, changes in logged_changes(records(), 7, Position(1, 0x100, 1), 0x102)]
    assert seen == [(0x100, 0), (0x101, 1), (0x102, 1)]
