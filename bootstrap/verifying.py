"""Comparing the store with the source, by ranges of keys, while both are written to.

    range       a thousand keys of the store, in key order; ten of them at a time
    checksum    the source's, in one short read-only transaction; then, once the log has been applied up to it, the
                store's
    rows        of a range whose checksums differ: both in key order, side by side
    judge       the keys that differ: by what the log says that the source must have shown (`walbus.bootstrap.judging`)

Under load most ranges that differ do so because the store has gone on; the judge tells those from what is wrong.
Nothing is written to the source, and no transaction at it outlives a range.

What is wrong can be mended: the net difference of those keys is handed to capture, and comes back by the log, to the
store as to every sink.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import groupby
from typing import Any, Final

import psycopg
import structlog

from walbus.bootstrap.catalog import SourceMoment
from walbus.bootstrap.entry import Entry, unpack_entry
from walbus.bootstrap.handing import Handing
from walbus.bootstrap.judging import Found, Judge, TableMoved
from walbus.bootstrap.key_ranges import Checksum, KeyRange, has_cheap_ranges, read_checksum, read_range
from walbus.bootstrap.ledger import Ledger
from walbus.bootstrap.runs import TableRun
from walbus.bootstrap.state import Phase
from walbus.errors import SourceUnavailable, StoreError
from walbus.keys import key_json
from walbus.log import LogReader
from walbus.records import Op

log = structlog.get_logger(__name__)

PART_ROWS: Final = 1_000
#: Ranges of a table that are compared in one snapshot.
RANGE_PARTS: Final = 10
#: A table whose ranges have no index is cut into so many.
_DEAR_RANGES: Final = 8
#: Keys that are named of one table; the others are counted.
NAMED_KEYS: Final = 100
#: Of what is wrong: so many keys, or bytes of rows, are mended together. What is found of one range beyond the most is
#: counted, and not mended: whoever verifies again finds it again.
_MENDED_AT_ONCE: Final = 10_000
_MENDED_BYTES: Final = 8 << 20
_MOST_BYTES: Final = 64 << 20
_JUDGED_AT_ONCE: Final = 3_000
_TAKEN_SECONDS: Final = 60.0
_CANCEL_SECONDS: Final = 1.0
_KINDS = {Op.INSERT: "missing", Op.UPDATE: "different", Op.DELETE: "extra"}

Connection = psycopg.Connection[Any]


@dataclass(slots=True)
class TableResult:
    """What is known of one table.

    Attributes:
        table: its name.
        state: `waiting`, `running`, `done`, or `skipped`.
        reason: why it was skipped.
        rows: rows of the store that have been compared.
        rows_estimated: rows that it has, an estimate.
        differing: keys that differ.
        keys: the first of them: `key` (by column), `kind` (missing, different, extra).
        undecided: keys that could not be judged.
        mended: keys that differed and do not any more, where mending was asked for.
    """

    table: str
    state: str = "waiting"
    reason: str = ""
    rows: int = 0
    rows_estimated: int = 0
    differing: int = 0
    keys: list[dict[str, object]] = field(default_factory=list)
    undecided: int = 0
    mended: int = 0

    def document(self) -> dict[str, object]:
        """For the status file."""
        return asdict(self)


class Verification:
    """One comparison of some tables.

    Args:
        ledger: the store.
        publication: that publishes them.
        reader: of the log.
        connect: opens a session at the source with the shared settings.
        handing: where net differences go.
        repair: whether to mend what is wrong.
    """

    def __init__(  # noqa: PLR0913  (both sides, and what to do)
        self,
        ledger: Ledger,
        publication: str,
        reader: LogReader,
        connect: Callable[[], Connection],
        handing: Handing,
        *,
        repair: bool,
    ) -> None:
        self._ledger = ledger
        self._publication = publication
        self._reader = reader
        self._connect = connect
        self._handing = handing
        self._repair = repair
        self._stop = threading.Event()
        self._sessions: tuple[Connection, ...] = ()
        self.results: list[TableResult] = []

    def run(self, tables: Sequence[str]) -> None:
        """Compares tables one after the other; `results` grow meanwhile.

        Raises:
            SourceError, StoreError, LogError: it cannot go on.
        """
        runs = {run.state.table: run for run in list(self._ledger.tables.values())}
        names = list(tables) or sorted(runs)
        self.results = [TableResult(name) for name in names]
        with self._connect() as comparing, self._connect() as judging:
            self._sessions = (comparing, judging)
            for result in self.results:
                run = runs.get(result.table)
                why = "it is not published" if run is None else _not_comparable(self._ledger, run)
                if run is None or why:
                    result.state, result.reason = "skipped", why
                    continue
                result.state, result.rows_estimated = "running", run.rows
                judge = Judge(self._ledger, run, self._publication, self._reader, self._stop, mends=self._repair)
                mend = self._mend if self._repair else None
                try:
                    _TableVerification(self._ledger, run, judge, result, comparing, judging, mend).run()
                except TableMoved:
                    result.state, result.reason = "skipped", "it changed, and is seeded again"
                else:
                    result.state = "done"

    def give_up(self) -> None:
        """Ends it soon, in any thread: also a statement that reads a large range."""
        self._stop.set()
        for session in self._sessions:
            with suppress(psycopg.Error):
                session.cancel_safe(timeout=_CANCEL_SECONDS)

    def _mend(self, judge: Judge, found: list[Found], result: TableResult, judging: Connection) -> None:
        """Hands over what makes wrong keys right, and looks at them again once that has come by the log."""
        if not self._handing.possible:
            raise StoreError(
                "nothing can be mended here: no capture takes what would mend it",
                mend="run it beside `walbus capture`; of a copied log, beside the relay that is copied",
            )
        numbers = [
            self._handing.give(
                applied,
                judge.table.table,
                judge.table.oid,
                [one.difference for one in some],
                schemas=[one.difference.schema_id for one in some],
                reason="repaired",
            )[0]
            for applied, some in _by_position(found)
        ]
        self._wait_taken(numbers, judge.table.oid)
        judge.wait_applied(self._reader.bounds().end.commit_lsn)
        wrong = judge.judge(judging, [one.difference.key for one in found])
        result.mended += len(found) - len(wrong.found) - len(wrong.undecided)

    def _wait_taken(self, numbers: Sequence[int], oid: int) -> None:
        deadline = time.monotonic() + _TAKEN_SECONDS
        while any(self._handing.waits(number, oid) for number in numbers):
            if time.monotonic() > deadline:
                raise StoreError(
                    "no capture takes what was handed over",
                    mend="start `walbus capture`: it puts the differences into the log as soon as it streams",
                )
            if self._stop.wait(0.05):
                raise SourceUnavailable("stopped")


def _by_position(found: list[Found]) -> Iterator[tuple[Any, list[Found]]]:
    for applied, some in groupby(found, key=lambda one: one.applied):
        if applied is not None:
            yield applied, list(some)


def _not_comparable(ledger: Ledger, run: TableRun) -> str:
    state = run.state
    if state.phase is Phase.REFUSED:
        return state.reason
    if state.phase is not Phase.CONSISTENT or any(other is not run for other in ledger.runs_of(state.oid)):
        return "it is being seeded"
    return "it is about to be seeded again" if state.stale else ""


class _TableVerification:
    """The comparison of one table."""

    def __init__(  # noqa: PLR0913, PLR0917  (parts of the verification)
        self,
        ledger: Ledger,
        run: TableRun,
        judge: Judge,
        result: TableResult,
        comparing: Connection,
        judging: Connection,
        mend: Callable[[Judge, list[Found], TableResult, Connection], None] | None,
    ) -> None:
        self._ledger = ledger
        self._run = run
        self._judge = judge
        self._result = result
        self._comparing, self._judging = comparing, judging
        self._mend = mend
        self._doubtful: list[bytes] = []
        self._found: list[Found] = []  # what is still to be mended
        self._bytes = 0  # of its rows
        row = comparing.execute("SHOW server_encoding").fetchone()
        self._sums = row is not None and row[0] != "SQL_ASCII"  # there a text may be none that can be hashed as UTF-8

    def run(self) -> None:
        """Compares all of it."""
        cheap = has_cheap_ranges(self._judge.schema)
        rows, count = PART_ROWS, RANGE_PARTS
        if not cheap:
            rows, count = max(rows * count, self._run.rows // _DEAR_RANGES), 1
        after: bytes | None = b""
        while after is not None:
            parts = self._parts(after, rows, count)
            self._compare(parts)
            if len(self._found) >= _MENDED_AT_ONCE or self._bytes >= _MENDED_BYTES:
                self._mend_found()
            after = parts[-1].upto
        self._decide()
        self._mend_found()

    def _mend_found(self) -> None:
        """Mends what was found. No transaction is open at the source."""
        found, self._found, self._bytes = self._found, [], 0
        if self._mend is not None and found:
            self._mend(self._judge, found, self._result, self._judging)

    def _parts(self, after: bytes, rows: int, count: int) -> list[KeyRange]:
        """The next ranges of the store, of so many rows each, tombstones among them; the last one of all has no end."""
        parts: list[KeyRange] = []
        for number, (key, _) in enumerate(self._ledger.store.view().entries(self._run.space, after), 1):
            if number % rows == 0:
                parts.append(KeyRange(after, key))
                after = key
                if len(parts) == count:
                    return parts
        return [*parts, KeyRange(after, None)]

    def _entries(self, keys: KeyRange) -> Iterator[tuple[bytes, Entry]]:
        """The store's rows of a range, as of one instant."""
        for key, value in self._ledger.store.view().entries(self._run.space, keys.after):
            if keys.upto is not None and key > keys.upto:
                return
            entry = unpack_entry(value, {})
            if entry.row is not None:
                yield key, entry

    def _compare(self, parts: list[KeyRange]) -> None:
        """Compares ranges: their checksums, in one snapshot, then the rows of those that differ."""
        if self._sums:
            parts = [part for part, theirs in self._their_checksums(parts) if self._checksum(part) != theirs]
        if parts:
            self._compare_rows(parts)

    def _checksum(self, keys: KeyRange) -> Checksum:
        mine = Checksum(0, 0)
        for _, entry in self._entries(keys):
            mine = mine.plus(self._judge.texts_of(entry))
        self._result.rows += mine.rows
        return mine

    def _their_checksums(self, parts: Sequence[KeyRange]) -> list[tuple[KeyRange, Checksum]]:
        """The source's checksums; by the time that they are given the store has what they were computed of."""
        told: list[tuple[KeyRange, Checksum]] = []
        moments: list[SourceMoment] = []

        def read(moment: SourceMoment) -> None:
            moments.append(moment)
            table, schema = self._judge.table, self._judge.schema
            told.extend((part, read_checksum(self._comparing, table, schema, part)) for part in parts)

        self._judge.in_snapshot(self._comparing, read)
        self._judge.wait_applied(moments[0].w)
        return told

    def _compare_rows(self, parts: Sequence[KeyRange]) -> None:
        """Puts the keys that differ among those in doubt; a key that is out of order on one side is one of them."""

        def read(moment: SourceMoment) -> None:
            self._judge.wait_applied(moment.w)
            for part in parts:
                self._compare_part(part)

        self._judge.in_snapshot(self._comparing, read)
        if len(self._doubtful) >= _JUDGED_AT_ONCE:
            self._decide()

    def _compare_part(self, keys: KeyRange) -> None:
        mine = self._entries(keys)
        entry = next(mine, None)
        for texts in read_range(self._comparing, self._judge.table, self._judge.schema, keys):
            key = self._judge.key_of(texts)
            while entry is not None and entry[0] < key:
                self._doubt(entry[0])
                entry = next(mine, None)
            if entry is None or entry[0] != key:
                self._doubt(key)
                continue
            if self._judge.texts_of(entry[1]) != list(texts):
                self._doubt(key)
            entry = next(mine, None)
        while entry is not None:
            self._doubt(entry[0])
            entry = next(mine, None)

    def _doubt(self, key: bytes) -> None:
        self._doubtful.append(key)
        most = 10 * _JUDGED_AT_ONCE if self._mend is None else _JUDGED_AT_ONCE  # to mend a key takes its row
        if len(self._doubtful) >= most:  # within one range: it is judged in the middle of it
            self._decide()

    def _decide(self) -> None:
        doubtful, self._doubtful = self._doubtful, []
        verdict = self._judge.judge(self._judging, doubtful)
        result, schema = self._result, self._judge.schema
        result.undecided += len(verdict.undecided)
        result.differing += len(verdict.found)
        for one in verdict.found[: max(0, NAMED_KEYS - len(result.keys))]:
            key = key_json(schema, one.difference.key)
            result.keys.append({"key": key, "kind": _KINDS[one.difference.op]})
        for one in verdict.found if self._mend is not None else ():
            size = len(one.difference.key) + len(one.difference.row or b"")
            if not self._found or self._bytes + size <= _MOST_BYTES:
                self._found.append(one)
                self._bytes += size
