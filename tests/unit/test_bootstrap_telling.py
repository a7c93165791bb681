"""What is told of two generations is their difference at one position, and nothing else, whatever happens meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from support.mvcc_model import PUBLISHED, ModelTable, key_bytes, new_ledger, one_file, row_bytes
from support.waiting import wait_for
from walbus.bootstrap.applier import EventFolder
from walbus.bootstrap.entry import Entry, FromEvent, pack_entry
from walbus.bootstrap.handing import Handing
from walbus.bootstrap.ledger import Ledger
from walbus.bootstrap.runs import TableRun
from walbus.bootstrap.state import ChunkDone
from walbus.bootstrap.store import View
from walbus.bootstrap.telling import Telling
from walbus.bootstrap.visibility import Snapshot
from walbus.capture.difference_file import DifferenceFile, waiting
from walbus.records import Op

SNAPSHOT = Snapshot(5, 5, frozenset())


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with capture_logs():
        yield


@pytest.fixture
def ledger() -> Ledger:
    return new_ledger()


@dataclass
class Teller:
    """`Telling` on a clock that passes every pause."""

    telling: Telling
    now: list[float]

    def told(self, run: TableRun) -> bool:
        self.now[0] += 10
        return self.telling.told(run)


@pytest.fixture
def teller(ledger: Ledger, tmp_path: Path) -> Iterator[Teller]:
    now = [0.0]
    telling = Telling(ledger, Handing(tmp_path), lambda: now[0])
    yield Teller(telling, now)
    telling.close()


@pytest.fixture
def views(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> list[View]:
    """The views that are taken of the store."""
    taken: list[View] = []
    view = ledger.store.view

    def noted() -> View:
        taken.append(view())
        return taken[-1]

    monkeypatch.setattr(ledger.store, "view", noted)
    return taken


def begun(ledger: Ledger, blocks: int = 1) -> TableRun:
    run = ledger.start_generation(PUBLISHED, 1, "test")
    assert ledger.plan(run, one_file(blocks=blocks), 0)
    return run


def read(ledger: Ledger, run: TableRun, block: int, rows: dict[int, bytes]) -> None:
    """A chunk of one block is in."""
    origin = ledger.admit(run, SNAPSHOT, 0)
    assert origin is not None
    assert ledger.fold_rows(run, origin, [(key_bytes(key), row) for key, row in rows.items()])
    ledger.chunk_done(run, block, ChunkDone(origin.number, 0, len(rows), block + 1))


def differences(folder: Path) -> list[tuple[Op, bytes | None]]:
    return [(Op(one.op), one.key) for path in waiting(folder) for one in DifferenceFile(path).changes()]


def successor(ledger: Ledger, rows: dict[int, bytes], blocks: int = 1) -> TableRun:
    """A generation with one chunk, beside one that is served with two rows."""
    served = begun(ledger)
    read(ledger, served, 0, {1: row_bytes(1, 1), 2: row_bytes(2, 2)})
    assert ledger.finish(served)
    ledger.outdate(served, "asked for")
    run = begun(ledger, blocks)
    read(ledger, run, 0, rows)
    return run


def test_a_generation_whose_last_chunk_came_in_the_middle_of_a_transaction_is_compared_behind_it(
    ledger: Ledger, teller: Teller, views: list[View], tmp_path: Path
) -> None:
    """Until then, readers are shown the state before the transaction, which does not have the chunk's rows."""
    run = successor(ledger, {1: row_bytes(9, 9)}, blocks=2)
    table = ModelTable(first_lsn=5000)
    writer = table.begin()
    table.write(writer, 7, 7, (7, 7), 0)
    table.write(writer, 8, 8, (8, 8), 0)
    table.commit(writer)
    first, second = table.log[0].records(1)
    EventFolder(ledger).fold([first])
    read(ledger, run, 1, {2: row_bytes(2, 2)})
    wait_for(lambda: teller.told(run) or len(views) > 2, what="it was looked at twice")
    assert waiting(tmp_path) == []
    EventFolder(ledger).fold([second])
    wait_for(lambda: teller.told(run), what="the difference is told")
    assert differences(tmp_path) == [(Op.UPDATE, key_bytes(1))]


def test_a_generation_that_is_over_before_it_is_compared_is_not_told(
    ledger: Ledger, teller: Teller, tmp_path: Path
) -> None:
    """Its rows are gone: compared with none, every row that is served would be deleted in the log."""
    run = successor(ledger, {1: row_bytes(1, 1), 2: row_bytes(2, 2)})
    with ledger.lock:
        assert not teller.told(run)
        begun(ledger)
    teller.telling.close()  # which waits for what is under way
    assert waiting(tmp_path) == []


class EndlessView:
    """Two generations that are the same, without an end."""

    def __init__(self, view: View) -> None:
        self.documents = view.documents
        self.read = threading.Event()

    def entries(self, space: bytes) -> Iterator[tuple[bytes, bytes]]:
        del space
        self.read.set()
        entry = pack_entry(Entry(1, 1, b"a row", FromEvent(7)))
        return ((b"%020d" % number, entry) for number in count())


def test_comparing_generations_that_are_the_same_ends_when_it_is_stopped(
    ledger: Ledger, teller: Teller, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run, view = successor(ledger, {}), EndlessView(ledger.store.view())
    monkeypatch.setattr(ledger.store, "view", lambda: view)
    assert not teller.told(run)
    assert view.read.wait(60)
    teller.telling.close()
    assert list(tmp_path.iterdir()) == []


def test_a_generation_that_is_over_is_not_compared_to_its_end(
    ledger: Ledger, teller: Teller, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run, view = successor(ledger, {}), EndlessView(ledger.store.view())
    with monkeypatch.context() as patched:
        patched.setattr(ledger.store, "view", lambda: view)
        assert not teller.told(run)
        assert view.read.wait(60)
    again = begun(ledger)
    read(ledger, again, 0, {1: row_bytes(1, 1)})
    wait_for(lambda: teller.told(again), what="the next generation is compared")
    assert differences(tmp_path) == [(Op.DELETE, key_bytes(2))]


def test_of_a_generation_whose_difference_was_refused_before_it_was_served_nobody_waits_for_that(
    ledger: Ledger, teller: Teller
) -> None:
    """It is in no log, so who waited for it would have the rows as they were for ever."""
    run = successor(ledger, {1: row_bytes(9, 9)})
    wait_for(lambda: teller.told(run), what="it is told")
    served = ledger.tables[run.state.oid]
    ledger.break_chain(served, "its net difference was refused")
    assert ledger.finish(run)
    assert run.state.net_told == run.state.net_since > served.state.p0
