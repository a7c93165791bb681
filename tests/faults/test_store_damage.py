"""Fault 4 for the bootstrap store: files that are damaged or gone are noticed, set aside, and seeded again."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from support.bootstrap_rig import ITEMS, BootstrapRig
from support.database import Database
from support.seed import announced_seed
from support.waiting import wait_for
from walbus.bootstrap.change_index import page_key
from walbus.bootstrap.rocks import RocksStore
from walbus.bootstrap.store import WriteSet, space_of
from walbus.bootstrap.store_folder import FORMAT, open_store, set_aside
from walbus.errors import StoreDamaged, StoreError
from walbus.native.folding import PLACE

pytestmark = pytest.mark.one_version

SPACE = space_of(16384, 1)
KEYS = [SPACE + b"%05d" % number for number in range(20_000)]


@pytest.fixture
def dice() -> random.Random:
    return random.Random(announced_seed("what files are garbled with"))


def filled(folder: Path) -> None:
    """A store with a table file, and a write-ahead log with more."""
    store = open_store(folder)
    rows = random.Random(1)
    store.ingest(store.prepare([(key, rows.randbytes(100)) for key in KEYS]))
    store.write(WriteSet(entries=dict.fromkeys(KEYS[:100], b"again"), documents={"applied": b"1"}))
    store.close()


def garble(path: Path, dice: random.Random) -> None:
    """Overwrites the middle of a file."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(size // 3)
        file.write(dice.randbytes(size // 3))


def largest(folder: Path, pattern: str) -> Path:
    return max(folder.glob(pattern), key=lambda path: path.stat().st_size)


def read_everything(folder: Path) -> None:
    store = open_store(folder)
    try:
        assert len(list(store.view().entries(SPACE))) == len(KEYS)
        assert None not in store.get_many(KEYS)
    finally:
        store.close()


def cut(path: Path, _: random.Random) -> None:
    os.truncate(path, path.stat().st_size // 2)


def remove(path: Path, _: random.Random) -> None:
    path.unlink()


@pytest.mark.parametrize(
    ("pattern", "harm"),
    [(pattern, harm) for pattern in ("*.sst", "CURRENT", "MANIFEST-*") for harm in (garble, cut, remove)],
)
def test_a_file_that_is_harmed_is_noticed(
    tmp_path: Path, pattern: str, harm: Callable[[Path, random.Random], None], dice: random.Random
) -> None:
    filled(tmp_path)
    harm(largest(tmp_path, pattern), dice)
    with pytest.raises(StoreDamaged):
        read_everything(tmp_path)


@pytest.mark.parametrize(
    "name", [b"", b"\n", b"MANIF\0ST-000005\n", b"MANIF\xff\xff\xff-000005\n", b"/../../000005\n", b"M" * 5000]
)
def test_a_current_that_names_no_file_is_noticed(tmp_path: Path, name: bytes) -> None:
    filled(tmp_path)
    (tmp_path / "CURRENT").write_bytes(name)
    with pytest.raises(StoreDamaged):
        read_everything(tmp_path)


def test_a_manifest_that_is_cut_anywhere_is_noticed_although_it_looks_like_a_crash(tmp_path: Path) -> None:
    """RocksDB would go on without the table files whose listing is gone, which nothing replays."""
    store = open_store(tmp_path / "store")
    for part in range(3):
        keys = KEYS[part * 10 : part * 10 + 10]
        store.ingest(store.prepare([(key, b"row") for key in keys]))
        store.write(WriteSet(documents={f"chunk/{part}": b"done"}))
    store.sync()
    shutil.copytree(tmp_path / "store", tmp_path / "killed")  # as a SIGKILL leaves it
    store.close()
    manifest = largest(tmp_path / "killed", "MANIFEST-*").name
    size = (tmp_path / "killed" / manifest).stat().st_size
    for length in [*range(0, size, size // 40), size - 1]:
        folder = tmp_path / f"cut-{length}"
        shutil.copytree(tmp_path / "killed", folder)
        os.truncate(folder / manifest, length)
        with pytest.raises(StoreDamaged):
            open_store(folder)
    whole = open_store(tmp_path / "killed")
    assert len(list(whole.entries(SPACE))) == 30
    whole.close()


def test_damage_that_a_reader_meets_is_told_by_the_next_sync(tmp_path: Path, dice: random.Random) -> None:
    filled(tmp_path)
    garble(largest(tmp_path, "*.sst"), dice)
    store = RocksStore(tmp_path)
    with pytest.raises(StoreDamaged):
        list(store.view().entries(SPACE))
    with pytest.raises(StoreDamaged):
        store.sync()
    with pytest.raises(StoreDamaged):
        store.close()


SEQS = range(1, 20_001)
READINGS: dict[str, tuple[Callable[[random.Random], WriteSet], Callable[[RocksStore], Iterable[object]]]] = {
    "entries": (
        lambda rows: WriteSet(entries={key: rows.randbytes(100) for key in KEYS}),
        lambda store: store.entries(SPACE),
    ),
    "changes": (
        lambda rows: WriteSet(pages={page_key(SPACE, seq): PLACE.pack(seq, 99) + rows.randbytes(99) for seq in SEQS}),
        lambda store: store.changes(SPACE, 0),
    ),
    "missing": (
        lambda rows: WriteSet(missing={SPACE + rows.randbytes(100): True for _ in SEQS}),
        lambda store: store.missing(SPACE, len(SEQS)),
    ),
    "completions": (
        lambda rows: WriteSet(completions={seq: rows.randbytes(100) for seq in SEQS}),
        lambda store: store.completions(1, len(SEQS)),
    ),
    "documents": (
        lambda rows: WriteSet(documents={f"chunk/{seq}": rows.randbytes(100) for seq in SEQS}),
        lambda store: store.documents("chunk/"),
    ),
}


@pytest.mark.parametrize(("written", "read"), READINGS.values(), ids=READINGS)
def test_nothing_that_is_read_in_order_ends_early_at_damage(
    tmp_path: Path,
    dice: random.Random,
    written: Callable[[random.Random], WriteSet],
    read: Callable[[RocksStore], Iterable[object]],
) -> None:
    store = open_store(tmp_path)
    store.write(written(random.Random(1)))
    for family in (store._db, *store._families.values()):
        family.flush()
    assert len(list(read(store))) == len(SEQS)
    store.close()
    garble(largest(tmp_path, "*.sst"), dice)
    store = RocksStore(tmp_path)
    with pytest.raises(StoreDamaged):
        list(read(store))
    with pytest.raises(StoreDamaged):
        store.close()


def test_a_damaged_store_is_moved_aside_and_not_for_ever(tmp_path: Path) -> None:
    for number in range(1, 4):
        filled(tmp_path)
        files = {path.name for path in tmp_path.iterdir() if path.is_file()}
        aside = set_aside(tmp_path)
        assert aside == tmp_path / f"damaged-{number}"
        assert {path.name for path in aside.iterdir() if path.is_file()} == files
        assert not [path for path in tmp_path.iterdir() if path.is_file()]
    filled(tmp_path)
    with pytest.raises(StoreError, match="damaged 4 times"):
        set_aside(tmp_path)


def test_a_store_in_an_older_form_is_emptied_and_one_in_a_newer_form_refused(tmp_path: Path) -> None:
    filled(tmp_path)
    store = open_store(tmp_path)
    store.write(WriteSet(documents={"format": b"1"}))
    store.close()
    again = open_store(tmp_path)
    assert again.documents("") == {"format": b"%d" % FORMAT}
    assert list(again.entries(SPACE)) == []
    again.write(WriteSet(documents={"format": b"%d" % (FORMAT + 1)}))
    again.close()
    with pytest.raises(StoreError, match="run the Walbus that wrote it"):
        open_store(tmp_path)
    old = RocksStore(tmp_path / "old")  # of a Walbus that told no format
    old.write(WriteSet(documents={"applied": b"1"}))
    old.close()
    empty = open_store(tmp_path / "old")
    assert empty.document("applied") is None
    empty.close()


def test_a_store_damaged_while_it_stood_still_or_is_read_is_seeded_again(database: Database, tmp_path: Path) -> None:
    database.execute(ITEMS)
    database.execute("INSERT INTO public.items SELECT i, i, md5(i::text) FROM generate_series(1, 3000) i")
    with BootstrapRig(tmp_path, database) as rig:
        rig.start()
        rig.assert_equals_source("public.items")
        folder = rig.data_dir / "bootstrap"
        rig.kill_bootstrap()
        largest(folder, "MANIFEST-*").unlink()
        rig.start_bootstrap()
        wait_for(lambda: "store_damaged" in rig.log(), 60, what="the damage is told")
        rig.assert_equals_source("public.items")
        assert [path.name for path in folder.glob("damaged-*")] == ["damaged-1"]
        assert rig.bootstrap is not None and rig.bootstrap.stop() == 0
        rig.start_bootstrap()  # what was in its log is flushed into table files now, or at the next start
        rig.assert_equals_source("public.items")
