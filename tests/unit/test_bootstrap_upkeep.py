"""The change index stays in proportion to the rows, and loses nothing that a delta needs."""

from __future__ import annotations

from structlog.testing import capture_logs

from support.memory_store import MemoryStore
from support.mvcc_model import FIRST_SEQ, OID, ModelTable, fill, one_file
from walbus.bootstrap.applier import EventFolder
from walbus.bootstrap.entry import seq_of
from walbus.bootstrap.ledger import Ledger
from walbus.bootstrap.state import Applied, Phase, PublishedTable
from walbus.bootstrap.unseen import UnseenCommits
from walbus.bootstrap.upkeep import IndexUpkeep
from walbus.position import ORIGIN


def test_only_places_that_say_nothing_any_more_are_dropped() -> None:
    store = MemoryStore()
    ledger = Ledger(store, fill)
    ledger.begin(Applied("log", *ORIGIN, FIRST_SEQ - 1, 0), UnseenCommits())
    ledger.resume([])
    with capture_logs():
        run = ledger.start_generation(PublishedTable(OID, "public", "t", "r", "d", (), None, 0), 1, "test")
    ledger.plan(run, one_file(blocks=0), 0)
    assert ledger.finish(run) and run.state.phase is Phase.CONSISTENT
    table = ModelTable()
    for value in range(30):
        writer = table.begin()
        table.write(writer, value % 3, value % 3, (value, value), 0)
        if value == 29:
            table.delete(writer, 0)
        table.commit(writer)
        table.end(writer)
    folder = EventFolder(ledger)
    for logged in table.log:
        folder.fold(logged.records())
    before = list(store.view().changes(run.space, 0))
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += 0.001
        return now

    upkeep = IndexUpkeep(ledger, clock)
    assert upkeep.work(1.0) == len(before) - 3
    latest = {(seq_of(value), key) for key, value in store.view().entries(run.space)}
    assert set(store.view().changes(run.space, 0)) == latest
    assert upkeep.work(1.0) == 0
