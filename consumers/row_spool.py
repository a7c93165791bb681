"""Two sides of one table on their way to a comparison: what a sink should hold, and what it holds.

Both go as digests by key into a database that SQLite keeps in a temporary file, of which a bounded part is in memory.
So neither side has to come in an order, and a table may be of any size.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from itertools import islice

from walbus.consumers.sinks.base import HeldRow

_TABLES = """
CREATE TABLE expected (key TEXT PRIMARY KEY, digest BLOB, seq INTEGER) WITHOUT ROWID;
CREATE TABLE held (key TEXT PRIMARY KEY, digest BLOB, seq INTEGER) WITHOUT ROWID;
"""
_CACHE_KIB = 32 << 10
_BATCH = 2_000

_DIFFERENCES = """
SELECT 'missing', e.key FROM expected e WHERE NOT EXISTS (SELECT 1 FROM held h WHERE h.key = e.key)
UNION ALL
SELECT CASE WHEN h.seq IS NULL THEN 'foreign' ELSE 'ghost' END, h.key
FROM held h WHERE NOT EXISTS (SELECT 1 FROM expected e WHERE e.key = h.key)
UNION ALL
SELECT CASE WHEN h.seq < e.seq THEN 'stale' ELSE 'different' END, e.key
FROM expected e JOIN held h ON h.key = e.key WHERE h.digest <> e.digest
"""


class RowSpool:
    """One table's two sides. Closed by its owner; its file goes with it."""

    def __init__(self) -> None:
        self._database = sqlite3.connect("", isolation_level=None)  # without a name: a temporary file
        self._database.execute("PRAGMA journal_mode = OFF")
        self._database.execute("PRAGMA synchronous = OFF")
        self._database.execute(f"PRAGMA cache_size = {-_CACHE_KIB}")
        self._database.executescript(_TABLES)

    def expect(self, rows: Iterable[HeldRow]) -> int:
        """Takes rows that the sink should hold; how many they were."""
        return self._add("INSERT OR REPLACE INTO expected VALUES (?, ?, ?)", rows)

    def hold(self, rows: Iterable[HeldRow]) -> int:
        """Takes rows that it holds; how many they were."""
        return self._add("INSERT OR REPLACE INTO held VALUES (?, ?, ?)", rows)

    def differences(self) -> Iterator[tuple[str, list[str]]]:
        """What differs, and the key's texts.

        Yields: first `missing`, `ghost`, `foreign` (a ghost that the sink did not write), `stale` (an older version) or
            `different`.
        """
        for kind, key in self._database.execute(_DIFFERENCES):
            yield kind, json.loads(key)

    def close(self) -> None:
        """Frees the file."""
        self._database.close()

    def _add(self, statement: str, rows: Iterable[HeldRow]) -> int:
        count, given = 0, iter(rows)
        while batch := [(json.dumps(row.key), _digest(row), row.seq) for row in islice(given, _BATCH)]:
            self._database.execute("BEGIN")
            self._database.executemany(statement, batch)
            self._database.execute("COMMIT")
            count += len(batch)
        return count


def _digest(row: HeldRow) -> bytes:
    return blake2b(repr(row.values).encode(errors="surrogatepass"), digest_size=16).digest()
