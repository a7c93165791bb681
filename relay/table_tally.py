"""What has come into the log of each table since the relay started: for /metrics.

The log is read once more behind its end, about once a second, from the page cache and by the native core: headers are
looked at and no row is. A relay that falls behind (it was stopped) reads on in steps; what retention took away
meanwhile is missing in the figures, and nothing else is touched by that.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import defaultdict
from concurrent.futures import Future, ThreadPoolExecutor

import structlog

from walbus.errors import DamagedRecord, PositionTrimmed, WalbusError
from walbus.native import tally_changes
from walbus.position import Position
from walbus.relay.cursor import FileCursor
from walbus.relay.gauges import LabelledFigures
from walbus.relay.reader import FileLogReader

_log = structlog.get_logger(__name__)

_BLOCK_BYTES = 1 << 20
_STEP_BLOCKS = 16
_REST_SECONDS = 1.0  # between two times of counting what is new

#: Tables that have figures of their own: those with the most changes, if there are more. The rest is one of this name.
_IN_METRICS = 500
OTHERS = "(others)"


class TableTally:
    """Counts changes and bytes by table. One thread counts at a time; closing waits for it.

    Args:
        reader: the log; from its end as of now.
    """

    def __init__(self, reader: FileLogReader) -> None:
        self._reader = reader
        self._lock = threading.Lock()  # keeps a step and the closing apart
        self._cursor: FileCursor | None = reader.cursor(reader.bounds().end)
        self._counts: dict[int, tuple[int, int]] = {}  # by relation OID

    def step(self) -> bool:
        """Counts some of what is new; whether there may be more."""
        with self._lock:
            if self._cursor is None:
                return False
            try:
                try:
                    return self._read(self._cursor)
                except PositionTrimmed:
                    self._begin_again(self._cursor)
            except (PositionTrimmed, DamagedRecord, OSError) as error:  # streams meet it themselves
                _log.error("relay_counts_no_more", error=str(error), note="the figures by table stand still")
                self._free()
            return False

    def figures(self) -> LabelledFigures:
        """Changes and bytes so far, by table's name."""
        names = {schema.oid: f"{schema.namespace}.{schema.name}" for schema in self._reader.schemas.all()}
        largest = sorted(self._counts.copy().items(), key=lambda item: item[1], reverse=True)
        changes: defaultdict[str, float] = defaultdict(float)
        total: defaultdict[str, float] = defaultdict(float)
        for rank, (oid, (count, size)) in enumerate(largest):
            name = names.get(oid) if rank < _IN_METRICS else None
            changes[name or OTHERS] += count
            total[name or OTHERS] += size
        return {"walbus_log_table_changes_total": dict(changes), "walbus_log_table_bytes_total": dict(total)}

    def close(self) -> None:
        """Closes the file, behind a step that is under way; the figures stand."""
        with self._lock:
            self._free()

    def _free(self) -> None:
        if self._cursor is not None:
            self._cursor.close()
            self._cursor = None

    def _read(self, cursor: FileCursor) -> bool:
        for _ in range(_STEP_BLOCKS):
            block = cursor.read_bytes(_BLOCK_BYTES)
            if block is None:
                return False
            tally_changes(block[0], self._counts)
        return True

    def _begin_again(self, lost: FileCursor) -> None:
        lost.close()
        self._cursor = None
        end: Position = self._reader.bounds().end
        _log.warning("relay_counts_have_a_gap", up_to=str(end), why="retention was faster than the relay")
        self._cursor = self._reader.cursor(end)


class TableFigures:
    """The figures of one server; none before its log is there. Belongs to the event loop."""

    def __init__(self) -> None:
        self._tally: TableTally | None = None

    def now(self) -> LabelledFigures:
        """As of the last second."""
        return {} if self._tally is None else self._tally.figures()

    async def run(self, reader: FileLogReader, stopping: asyncio.Event, threads: ThreadPoolExecutor) -> None:
        """Counts from the log's end on until the server stops."""
        loop = asyncio.get_running_loop()
        made = threads.submit(TableTally, reader)
        try:
            tally = self._tally = await asyncio.wrap_future(made)
        except asyncio.CancelledError:
            made.add_done_callback(_close_unwanted)
            raise
        except (WalbusError, OSError) as error:
            _log.error("relay_counts_no_more", error=str(error), note="there are no figures by table")
            return
        try:
            while not stopping.is_set():
                if not await loop.run_in_executor(threads, tally.step):
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(stopping.wait(), _REST_SECONDS)
        finally:
            threads.submit(tally.close)  # which waits for the thread that counts, if one does


def _close_unwanted(made: Future[TableTally]) -> None:
    if not made.cancelled() and made.exception() is None:
        made.result().close()
