"""Fault 2 for the bootstrap store: after a power loss it is an earlier state of itself, not before what was synced."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.memory_store import places_behind
from support.mounted_disk import MountedDisk, mounted_disk
from walbus.bootstrap.change_index import pages_of
from walbus.bootstrap.rocks import RocksStore
from walbus.bootstrap.store import WriteSet, space_of
from walbus.errors import StoreDamaged, WalbusError

pytestmark = pytest.mark.one_version

SPACE, BULK = space_of(16384, 1), space_of(16385, 1)
WRITES = 24
INGESTS = {5: 1, 11: 2, 17: 3}  # how many ingests there were behind a write


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[MountedDisk]:
    with mounted_disk(tmp_path) as mounted:
        yield mounted


def write(store: RocksStore, number: int) -> None:
    """Write `number` replaces one of three hot keys, adds one, lists both, and says that it was."""
    hot, new = b"hot%d" % (number % 3), b"new%02d" % number
    entries: dict[bytes, bytes | None] = {SPACE + hot: b"%d" % number, SPACE + new: b"x" * 500}
    pages: dict[bytes, bytes | None] = {**pages_of(SPACE, [(number * 2, hot), (number * 2 + 1, new)])}
    store.write(WriteSet(entries=entries, pages=pages, documents={"applied": b"%d" % number}))


def live_through(disk: MountedDisk) -> None:
    """The life of a store: filled, synced now and then, ingested into, closed, opened again, left open."""
    number = 0
    for ending in (WRITES // 2, WRITES):
        store = RocksStore(disk.path / "store")
        while number < ending:
            number += 1
            write(store, number)
            if number % 3 == 0:
                store.sync()
                disk.say_confirmed(number)
            if number in INGESTS:
                part = INGESTS[number]
                store.ingest(store.prepare([(BULK + b"%d-%d" % (part, i), b"bulk") for i in range(5)]))
                disk.say_confirmed(number)
                store.write(WriteSet(documents={f"chunk/{part}": b"done"}))
        store.close()
        disk.say_confirmed(number)


def what_is_wrong(folder: Path, confirmed: int, *, whole: bool) -> str:  # noqa: PLR0911  # as many things can be
    """Opens what is left; says what is not as it has to be."""
    try:
        store = RocksStore(folder / "store")
    except StoreDamaged as error:
        return str(error) if whole else ""  # it is noticed, and another one is seeded
    try:
        applied = int(store.document("applied") or 0)
        if applied < confirmed:
            return f"write {confirmed} was synced, and {applied} is the last one"
        writes = range(1, applied + 1)
        hot = {b"hot%d" % (number % 3): b"%d" % number for number in writes}
        expected = {**hot, **{b"new%02d" % number: b"x" * 500 for number in writes}}
        view = store.view()
        if dict(view.entries(SPACE)) != expected:
            return f"behind write {applied} the entries are others"
        if [seq for seq, _ in places_behind(view, SPACE, 0)] != [seq for n in writes for seq in (2 * n, 2 * n + 1)]:
            return f"behind write {applied} the change index is another"
        parts = {int(key[:1]) for key, _ in view.entries(BULK)}
        if len(list(view.entries(BULK))) != 5 * len(parts):
            return f"of a file that was ingested there is a part: {parts}"
        chunks = {int(name.rpartition("/")[2]) for name in view.documents("chunk/")}
        if not chunks <= parts or any(write not in writes for write, part in INGESTS.items() if part in parts):
            return f"parts {parts}, chunks {chunks}, and write {applied} is the last one"
        write(store, applied + 1)
        store.sync()
    except WalbusError as error:
        return f"{type(error).__name__}: {error}"
    finally:
        store.close()
    return ""


@pytest.mark.timeout(600)
def test_whenever_the_power_fails_the_store_is_an_earlier_state_of_itself(disk: MountedDisk) -> None:
    live_through(disk)
    disk.unmount()
    moments = disk.moments()
    assert len(moments) > 100
    wrong = {
        place.name: what
        for place, confirmed in moments
        if (what := what_is_wrong(place, confirmed, whole=place.name.endswith("forgets")))
    }
    assert not wrong


def test_this_disk_would_show_a_sync_that_is_missing(disk: MountedDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RocksStore, "sync", lambda self: None)
    live_through(disk)
    disk.unmount()
    assert any(
        what_is_wrong(place, confirmed, whole=True)
        for place, confirmed in disk.moments()
        if place.name.endswith("forgets")
    )
