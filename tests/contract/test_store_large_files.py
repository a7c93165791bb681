"""What a row costs to find in a file of many small rows, whose index and filter are larger than a part of the cache.

RocksDB cuts its cache of 64 MiB into shards of 1 MiB. A filter of 1,200,000 keys has 1.5 MiB, which none of them takes:
it was read, checked and uncompressed again for every row.
"""

from __future__ import annotations

import random
from contextlib import closing
from pathlib import Path

from walbus.bootstrap.rocks import RocksStore
from walbus.bootstrap.store import space_of

SPACE = space_of(16384, 1)
ROWS = 1_200_000


def bytes_read() -> int:
    """By this process, from files, whether they were in memory or not."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["rchar"])


def test_a_row_is_found_by_reading_little_however_many_rows_its_file_has(tmp_path: Path) -> None:
    with closing(RocksStore(tmp_path / "store")) as store:
        store.ingest(store.prepare((SPACE + b"%08d" % number, b"row %d" % number) for number in range(ROWS)))
        (file,) = (tmp_path / "store").glob("*.sst")
        assert file.stat().st_size > 8 << 20
        numbers = random.Random(7).sample(range(ROWS), 400)
        assert store.get(SPACE + b"%08d" % numbers[0]) == b"row %d" % numbers[0]
        before = bytes_read()
        for number in numbers:
            assert store.get(SPACE + b"%08d" % number) == b"row %d" % number
        assert bytes_read() - before < len(numbers) * (64 << 10)
