"""The store's folder: opened in the form that this Walbus writes, set aside if damaged, and the room beside it.

What a store holds can always be had again: from the log, and from the source where the log does not reach. So a store
in an older form is emptied, and a damaged one is moved into a folder inside its own (`damaged-1` and so on, for whoever
wants to know what happened); both are said aloud, and every table is seeded again. Only a disk that damages one store
after the other needs somebody to look at it.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import structlog

from walbus.bootstrap.rocks import RocksStore
from walbus.bootstrap.store import WriteSet
from walbus.errors import StoreDamaged, StoreError

log = structlog.get_logger(__name__)

#: Form of keys, entries and change index. 1 (which no document told) had an index of single places.
FORMAT = 2
_FORMAT_DOCUMENT = "format"
_ASIDE = "damaged-"
_MOST_ASIDE = 3
#: Room that there should be before a store is opened on a disk that was full: what it flushes then.
_ROOM_BYTES = 128 << 20


def open_store(folder: Path) -> RocksStore:
    """The store in a folder, empty if it was in an older form.

    Raises:
        StoreDamaged: as of `RocksStore`.
        StoreFull: likewise.
        StoreError: likewise; or a later Walbus wrote it.
    """
    store = RocksStore(folder)
    try:
        found = _format_of(store)
        if found is None:
            store.write(WriteSet(documents={_FORMAT_DOCUMENT: b"%d" % FORMAT}))
            found = FORMAT
        if found > FORMAT:
            raise StoreError(
                f"the store has format {found}, and this Walbus knows {FORMAT}",
                where=str(folder),
                mend="run the Walbus that wrote it, or remove the folder: it is seeded again",
            )
    except BaseException:
        store.close()
        raise
    if found == FORMAT:
        return store
    store.close()
    log.warning("store_of_an_older_format", folder=str(folder), found=found, now=FORMAT, mend="it is seeded again")
    for path in _content(folder):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return open_store(folder)


def set_aside(folder: Path) -> Path:
    """Moves a damaged store out of the way; where to.

    Raises:
        StoreError: this has happened too often.
    """
    numbers = [int(path.name.removeprefix(_ASIDE)) for path in folder.glob(f"{_ASIDE}*")]
    if len(numbers) >= _MOST_ASIDE:
        raise StoreError(
            f"the store was damaged {len(numbers) + 1} times",
            where=str(folder),
            mend=f"check the disk, remove {folder}/{_ASIDE}*, and start again: it is seeded anew",
        )
    aside = folder / f"{_ASIDE}{max(numbers, default=0) + 1}"
    content = _content(folder)
    aside.mkdir()
    for path in content:
        path.rename(aside / path.name)
    return aside


def has_room(folder: Path) -> bool:
    """Whether the disk has room enough for a store to go on."""
    usage = shutil.disk_usage(folder)
    return usage.free >= min(_ROOM_BYTES, usage.total // 4)


def _format_of(store: RocksStore) -> int | None:
    """None if nothing was ever written."""
    content = store.document(_FORMAT_DOCUMENT)
    if content is None:
        return 1 if store.documents("") else None
    if not content.isdigit():
        raise StoreDamaged("the document that says the store's format does not parse")
    return int(content)


def _content(folder: Path) -> list[Path]:
    """What belongs to the store itself."""
    return [path for path in folder.iterdir() if not path.name.startswith(_ASIDE)]
