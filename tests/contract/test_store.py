"""The bootstrap store's promises, on every engine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.memory_store import MemoryStore, places_behind
from walbus.bootstrap.change_index import page_key, pages_of, seq_of_page
from walbus.bootstrap.rocks import RocksStore
from walbus.bootstrap.store import WriteSet, end_of, space_of
from walbus.errors import StoreError

SPACE = space_of(16384, 1)
OTHER = space_of(16384, 2)
NEIGHBOUR = space_of(16385, 1)


@pytest.fixture(params=["memory", "rocks"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    engine = MemoryStore() if request.param == "memory" else RocksStore(tmp_path / "store")
    yield engine
    engine.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"


def fill(store: Any, *keys: bytes) -> None:
    store.write(WriteSet(entries={key: b"value of " + key for key in keys}))


def listed(space: bytes, *places: tuple[int, bytes]) -> dict[bytes, bytes]:
    return pages_of(space, places)


def test_an_entry_is_read_as_it_was_written(store: Any) -> None:
    fill(store, SPACE + b"a")
    assert store.get(SPACE + b"a") == b"value of " + SPACE + b"a"
    assert store.get(SPACE + b"b") is None


def test_many_entries_come_in_the_order_of_their_keys(store: Any) -> None:
    fill(store, SPACE + b"a", SPACE + b"c")
    found = store.get_many([SPACE + b"c", SPACE + b"b", SPACE + b"a"])
    assert found == [b"value of " + SPACE + b"c", None, b"value of " + SPACE + b"a"]
    assert store.get_many([]) == []


def test_an_entry_that_is_written_as_none_is_gone(store: Any) -> None:
    fill(store, SPACE + b"a")
    store.write(WriteSet(entries={SPACE + b"a": None}))
    assert store.get(SPACE + b"a") is None


def test_a_space_is_read_in_bytewise_order_without_its_neighbours(store: Any) -> None:
    fill(store, NEIGHBOUR + b"a", SPACE + b"\xff", SPACE + b"a", SPACE + b"a\0", OTHER + b"a")
    assert [key for key, _ in store.entries(SPACE)] == [SPACE + b"a", SPACE + b"a\0", SPACE + b"\xff"]
    assert [key for key, _ in store.view().entries(SPACE)] == [b"a", b"a\0", b"\xff"]


def test_a_view_goes_on_behind_any_key(store: Any) -> None:
    fill(store, SPACE + b"a", SPACE + b"a\0", SPACE + b"b", OTHER + b"a")
    assert [key for key, _ in store.view().entries(SPACE, b"a")] == [b"a\0", b"b"]
    assert [key for key, _ in store.view().entries(SPACE, b"aa")] == [b"b"]
    assert [key for key, _ in store.view().entries(SPACE, b"b")] == []


def test_a_view_does_not_see_later_writes(store: Any) -> None:
    fill(store, SPACE + b"a")
    store.write(WriteSet(documents={"applied": b"1"}))
    view = store.view()
    store.write(WriteSet(cleared=[SPACE], entries={SPACE + b"b": b""}, documents={"applied": b"2"}))
    assert [key for key, _ in view.entries(SPACE)] == [b"a"]
    assert view.documents("applied") == {"applied": b"1"}


def test_two_readers_of_one_view_do_not_disturb_each_other(store: Any) -> None:
    keys = [SPACE + number.to_bytes(4, "big") for number in range(1200)]
    fill(store, *keys)
    view = store.view()
    both = zip(view.entries(SPACE), view.entries(SPACE, keys[99][8:]), strict=False)
    assert [(left[0], right[0]) for left, right in both] == [
        (key[8:], other[8:]) for key, other in zip(keys, keys[100:], strict=False)
    ]


def test_clearing_comes_before_everything_else_of_a_write(store: Any) -> None:
    fill(store, SPACE + b"a", SPACE + b"b", OTHER + b"a")
    store.write(WriteSet(missing={SPACE + b"a": True}, pages=listed(SPACE, (7, b"a"))))
    store.write(WriteSet(cleared=[SPACE], entries={SPACE + b"b": b"new"}))
    assert list(store.entries(SPACE)) == [(SPACE + b"b", b"new")]
    assert store.missing(SPACE, 10) == []
    assert places_behind(store.view(), SPACE, 0) == []
    assert store.get(OTHER + b"a") is not None


def test_missing_keys_are_those_last_written_so(store: Any) -> None:
    keys = [SPACE + b"a", SPACE + b"b", SPACE + b"c"]
    store.write(WriteSet(missing={**dict.fromkeys(keys, True), NEIGHBOUR + b"a": True}))
    store.write(WriteSet(missing={SPACE + b"b": False}))
    assert store.missing(SPACE, 10) == [SPACE + b"a", SPACE + b"c"]
    assert store.missing(SPACE, 1) == [SPACE + b"a"]


def test_completions_come_by_seq_and_go_up_to_one(store: Any) -> None:
    store.write(WriteSet(completions={seq: b"row %d" % seq for seq in (3, 1, 300, 2, 1 << 40)}))
    assert list(store.completions(2, 300)) == [(2, b"row 2"), (3, b"row 3"), (300, b"row 300")]
    store.write(WriteSet(forgotten=3, completions={2: b"new"}))
    assert list(store.completions(0, 1 << 50)) == [(2, b"new"), (300, b"row 300"), (1 << 40, b"row %d" % (1 << 40))]
    store.write(WriteSet(cleared=[SPACE]))
    assert len(list(store.completions(0, 1 << 50))) == 3


def test_a_view_gives_single_entries_as_they_were(store: Any) -> None:
    fill(store, SPACE + b"a", SPACE + b"c", OTHER + b"b")
    view = store.view()
    store.write(WriteSet(entries={SPACE + b"a": b"new", SPACE + b"b": b"new", SPACE + b"c": None}))
    found = view.get_many(SPACE, [b"c", b"b", b"a"])
    assert found == [b"value of " + SPACE + b"c", None, b"value of " + SPACE + b"a"]
    assert view.get_many(SPACE, []) == []
    assert [key for key, _ in view.entries(SPACE)] == [b"a", b"c"]
    store.write(WriteSet(cleared=[SPACE]))
    store.ingest(store.prepare(bulk(SPACE + b"a", SPACE + b"b")))
    assert view.get_many(SPACE, [b"c", b"b", b"a"]) == found


def test_changes_come_by_seq_behind_a_seq(store: Any) -> None:
    store.write(WriteSet(pages=listed(SPACE, (5, b"b"), (6, b"c"))))
    store.write(WriteSet(pages={**listed(SPACE, (1 << 40, b"a")), **listed(OTHER, (6, b"x"))}))
    assert places_behind(store.view(), SPACE, 5) == [(6, b"c"), (1 << 40, b"a")]
    assert places_behind(store.view(), SPACE, 0)[0] == (5, b"b")


def test_the_change_index_is_read_as_it_is_in_the_middle_of_a_transaction_too(store: Any) -> None:
    store.write(WriteSet(pages=listed(SPACE, (5, b"b"))))
    store.write(WriteSet(pages={**listed(SPACE, (7, b"a")), **listed(NEIGHBOUR, (9, b"c"))}, whole=False))
    assert list(store.changes(SPACE, 0)) == [(5, SPACE + b"b"), (7, SPACE + b"a")]
    assert list(store.changes(SPACE, 5)) == [(7, SPACE + b"a")]
    assert list(store.changes(SPACE, 7)) == []


def test_pages_of_the_change_index_are_replaced_and_removed(store: Any) -> None:
    store.write(WriteSet(pages={**listed(SPACE, (5, b"a"), (6, b"b")), **listed(SPACE, (7, b"c"))}))
    store.write(WriteSet(pages={page_key(SPACE, 6): listed(SPACE, (6, b"b"))[page_key(SPACE, 6)]}))
    store.write(WriteSet(pages={page_key(SPACE, 7): None, page_key(SPACE, 99): None}))
    assert places_behind(store.view(), SPACE, 0) == [(6, b"b")]


def test_pages_come_in_order_a_few_at_a_time(store: Any) -> None:
    pages = {**listed(SPACE, (5, b"a")), **listed(SPACE, (300, b"b")), **listed(SPACE, (7, b"c"))}
    store.write(WriteSet(pages={**pages, **listed(NEIGHBOUR, (6, b"x"))}))
    first = store.pages(SPACE, b"", 2)
    assert [seq_of_page(key) for key, _ in first] == [5, 7]
    assert store.pages(SPACE, first[-1][0], 2) == [(page_key(SPACE, 300), pages[page_key(SPACE, 300)])]
    assert store.pages(OTHER, b"", 2) == []


def test_documents_are_found_by_prefix(store: Any) -> None:
    store.write(WriteSet(documents={"table/1": b"a", "table/2": b"b", "applied": b"c", "tablet": b"d"}))
    store.write(WriteSet(documents={"table/2": None}))
    assert store.documents("table/") == {"table/1": b"a"}
    assert store.document("applied") == b"c"
    assert store.document("nothing") is None


def test_the_middle_of_a_transaction_is_never_shown(store: Any) -> None:
    fill(store, SPACE + b"before")
    store.write(WriteSet(entries={SPACE + b"half": b""}, whole=False))
    store.write(WriteSet(entries={SPACE + b"chunk": b""}))  # of a seeding: leaves the state as it was
    assert [key for key, _ in store.view().entries(SPACE)] == [b"before"]
    assert store.whole
    store.write(WriteSet(entries={SPACE + b"rest": b""}, whole=True))
    assert [key for key, _ in store.view().entries(SPACE)] == [b"before", b"chunk", b"half", b"rest"]


def bulk(*keys: bytes) -> list[tuple[bytes, bytes]]:
    return [(key, b"bulk of " + key) for key in keys]


def test_prepared_entries_are_nowhere_until_they_are_ingested(store: Any) -> None:
    fill(store, SPACE + b"b", NEIGHBOUR + b"a")
    prepared = store.prepare(iter(bulk(SPACE + b"a", SPACE + b"c")))
    assert prepared.count == 2
    assert [key for key, _ in store.entries(SPACE)] == [SPACE + b"b"]
    before = store.view()
    store.ingest(prepared)
    assert [key for key, _ in before.entries(SPACE)] == [b"b"]
    assert before.get_many(SPACE, [b"a", b"b", b"c"]) == [None, b"value of " + SPACE + b"b", None]
    assert list(store.view().entries(SPACE)) == [
        (b"a", b"bulk of " + SPACE + b"a"),
        (b"b", b"value of " + SPACE + b"b"),
        (b"c", b"bulk of " + SPACE + b"c"),
    ]
    assert store.get(NEIGHBOUR + b"a") is not None
    assert prepared.count == 0


def test_what_is_ingested_replaces_what_was_there_and_is_replaced_by_what_comes(store: Any) -> None:
    fill(store, SPACE + b"a", SPACE + b"b")
    store.ingest(store.prepare(bulk(SPACE + b"a", SPACE + b"b")))
    fill(store, SPACE + b"b")
    assert store.get_many([SPACE + b"a", SPACE + b"b"]) == [b"bulk of " + SPACE + b"a", b"value of " + SPACE + b"b"]
    store.write(WriteSet(cleared=[SPACE]))
    assert list(store.entries(SPACE)) == []
    store.ingest(store.prepare(bulk(SPACE + b"a")))
    assert [key for key, _ in store.entries(SPACE)] == [SPACE + b"a"]


def test_ingesting_touches_entries_alone(store: Any) -> None:
    store.write(WriteSet(pages=listed(SPACE, (7, b"a")), missing={SPACE + b"a": True}, documents={"applied": b"1"}))
    store.ingest(store.prepare(bulk(SPACE + b"a")))
    assert places_behind(store.view(), SPACE, 0) == [(7, b"a")]
    assert store.missing(SPACE, 10) == [SPACE + b"a"]
    assert store.documents("") == {"applied": b"1"}


def test_nothing_can_be_prepared_and_what_is_discarded_never_comes(store: Any) -> None:
    store.ingest(store.prepare([]))
    prepared = store.prepare(bulk(SPACE + b"a"))
    prepared.discard()
    prepared.discard()
    store.ingest(prepared)
    assert list(store.entries(SPACE)) == []


@pytest.mark.parametrize("keys", [(b"b", b"a"), (b"a", b"a")])
def test_keys_out_of_order_are_refused(store: Any, keys: tuple[bytes, ...]) -> None:
    with pytest.raises(ValueError, match="does not come behind"):
        store.prepare(bulk(*(SPACE + key for key in keys)))
    assert list(store.entries(SPACE)) == []


def test_the_middle_of_a_transaction_is_not_shown_by_ingesting_either(store: Any) -> None:
    store.write(WriteSet(entries={SPACE + b"half": b""}, whole=False))
    store.ingest(store.prepare(bulk(SPACE + b"a")))
    assert list(store.view().entries(SPACE)) == []
    store.write(WriteSet(whole=True))
    assert [key for key, _ in store.view().entries(SPACE)] == [b"a", b"half"]


def test_spaces_sort() -> None:
    assert SPACE < end_of(SPACE) <= OTHER < NEIGHBOUR


def test_a_store_tells_its_figures(store: Any) -> None:
    fill(store, *(SPACE + b"%d" % number for number in range(100)))
    assert 90 <= store.figures().keys <= 110
    assert not store.figures().slowed


def test_a_store_that_is_opened_again_is_what_it_was(folder: Path) -> None:
    store = RocksStore(folder)
    store.write(WriteSet(entries={SPACE + b"a": b"1"}, documents={"applied": b"2"}, missing={SPACE + b"a": True}))
    store.close()
    again = RocksStore(folder)
    assert (again.get(SPACE + b"a"), again.document("applied"), again.missing(SPACE, 1)) == (
        b"1",
        b"2",
        [SPACE + b"a"],
    )
    again.close()


def test_a_store_opened_in_the_middle_of_a_transaction_shows_nothing_until_its_end(folder: Path) -> None:
    store = RocksStore(folder)
    store.write(WriteSet(entries={SPACE + b"a": b"1"}, whole=False))
    store.close()
    again = RocksStore(folder)
    assert not again.whole
    with pytest.raises(StoreError):
        again.view()
    again.write(WriteSet(whole=True))
    assert [key for key, _ in again.view().entries(SPACE)] == [b"a"]
    again.close()


def test_ingested_entries_and_all_before_them_survive_and_leftovers_do_not(folder: Path) -> None:
    store = RocksStore(folder)
    store.write(WriteSet(documents={"snapshot": b"1"}))
    store.ingest(store.prepare(bulk(SPACE + b"a")))
    left = store.prepare(bulk(SPACE + b"b"))
    store.close()
    again = RocksStore(folder)
    assert [key for key, _ in again.entries(SPACE)] == [SPACE + b"a"]
    assert again.document("snapshot") == b"1"
    assert not left.path.exists()
    again.close()


def test_the_log_of_writes_is_synced_before_a_file_is_moved_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = RocksStore(folder)
    prepared = store.prepare(bulk(SPACE + b"a"))
    seen: list[tuple[str, bool]] = []
    sync = store.sync
    monkeypatch.setattr(store, "sync", lambda: (seen.append(("sync", store.get(SPACE + b"a") is None)), sync()))
    store.ingest(prepared)
    assert seen == [("sync", True)]
    assert store.get(SPACE + b"a") is not None
    store.close()


def test_a_second_process_is_refused_by_name(folder: Path) -> None:
    store = RocksStore(folder)
    with pytest.raises(StoreError, match="another process"):
        RocksStore(folder)
    store.close()
    store.close()  # a second call does nothing
