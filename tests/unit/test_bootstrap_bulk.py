"""Rows of chunks past the fold: what is held in memory for it stays small, and no row gets past an event."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from structlog.testing import capture_logs

from support.mvcc_model import PUBLISHED, ModelTable, key_bytes, new_ledger, one_file, row_bytes
from walbus.bootstrap.applier import EventFolder
from walbus.bootstrap.bulk import Bulk
from walbus.bootstrap.entry import pack_prefix, unpack_entry
from walbus.bootstrap.state import ChunkDone
from walbus.bootstrap.visibility import Snapshot

TOUCHED = range(100, 140)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with capture_logs():
        yield


def test_where_events_have_touched_more_keys_than_are_held_the_store_is_asked_for_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As behind a restart late in a long seeding: all keys of the index would not fit into memory."""
    monkeypatch.setattr("walbus.bootstrap.bulk._MOST_TOUCHED", 5)
    ledger = new_ledger()
    run = ledger.start_generation(PUBLISHED, 1, "test")
    assert ledger.plan(run, one_file(), 0)
    table = ModelTable()
    writer = table.begin()
    for key in TOUCHED:
        table.write(writer, key, key, (key, 1), 0)
    table.commit(writer)
    EventFolder(ledger).fold(table.log[0].records())

    read: list[bytes] = []
    changes = ledger.store.changes

    def counted(space: bytes, after_seq: int) -> Iterator[tuple[int, bytes]]:
        for seq, key in changes(space, after_seq):
            read.append(key)
            yield seq, key

    monkeypatch.setattr(ledger.store, "changes", counted)
    origin = ledger.admit(run, Snapshot(5, 5, frozenset()), 0)  # which does not see the writer
    assert origin is not None
    prefix = pack_prefix(run.state.seq_p0, 1, origin)
    keys = sorted(run.space + key_bytes(key) for key in range(90, 200))
    assert Bulk(ledger).take_in(run, origin, keys, [prefix + row_bytes(0, 0) for _ in keys])
    assert run.touched is None and len(read) == 6
    ledger.chunk_done(run, 0, ChunkDone(origin.number, 0, len(keys), 1))
    assert ledger.finish(run)
    for key in range(90, 200):
        value = ledger.store.get(run.space + key_bytes(key))
        assert value is not None
        assert unpack_entry(value, {}).row == (row_bytes(key, 1) if key in TOUCHED else row_bytes(0, 0))
