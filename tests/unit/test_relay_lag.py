"""Changes behind the end are counted without the gaps that new writers leave in the seqs."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.relay_log import FileEngine, read_all, transaction
from walbus.position import ORIGIN
from walbus.records import Kind, RecordHeader
from walbus.relay import seq_gaps
from walbus.relay.fs import Files
from walbus.relay.lag import KeptFor, LagMeter, Place
from walbus.relay.lease import Clock
from walbus.relay.reader import FileLogReader

_SIZE = 20


class _Counted(Files):
    """Counts the files that are opened for reading."""

    def __init__(self) -> None:
        self.opened = 0

    def open_for_reading(self, path: Path) -> int:
        self.opened += 1
        return super().open_for_reading(path)


@pytest.fixture(params=[0, 1 << 20], ids=["halved", "whole"], autouse=True)
def _halving(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seq_gaps, "_READ_WHOLE", request.param)


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[FileEngine]:
    made = FileEngine(tmp_path, segment_bytes=200 << 10)
    yield made
    made.close()


class _Log:
    """Writes with one writer after another."""

    def __init__(self, engine: FileEngine) -> None:
        self._engine, self._lsn, self._ahead = engine, 0, 0
        engine.clock = Clock(now=lambda: time.time() + self._ahead)

    def write(self, transactions: int, *, changes: int = 2, killed: bool = False) -> None:
        """What one writer appends; an hour lies between two writers."""
        writer = self._engine.open_writer()
        for _ in range(transactions):
            self._lsn += 16
            writer.append(transaction(self._lsn, changes, size=_SIZE))
            if self._lsn % 160 == 0:
                writer.sync()
        writer.sync()
        if killed:
            self._engine.kill(writer)
        else:
            writer.close()
        self._ahead += 3600


def _count(reader: FileLogReader, meter: LagMeter) -> None:
    """Every place's changes are those that lie behind it."""
    headers = [one for one in read_all(reader, reader.view().manifest.trimmed) if one.kind == Kind.TRANSACTION]
    places = [Place(one.last, one.last_seq) for one in headers]
    picked = random.Random(7).sample(range(len(places)), min(40, len(places)))
    lags = meter.lags([places[at] for at in picked], 2e9)
    for at in picked:
        assert lags[places[at]].changes == _changes(headers[at + 1 :]), at
        assert not lags[places[at]].gone


def _changes(headers: list[RecordHeader]) -> int:
    return sum(one.count for one in headers)


def _meter(reader: FileLogReader) -> LagMeter:
    return LagMeter(reader, KeptFor(1.0, None))


@pytest.mark.parametrize("killed", [False, True], ids=["stopped", "killed"])
def test_the_gaps_of_new_writers_do_not_count(engine: FileEngine, killed: bool) -> None:
    log = _Log(engine)
    for transactions in (700, 3, 1, 900, 2, 2000, 40):  # some within one segment, some over several
        log.write(transactions, killed=killed)
    reader = engine.open_reader()
    assert len(engine.segments()) > 3
    _count(reader, _meter(reader))


def test_gaps_are_found_as_the_log_grows(engine: FileEngine) -> None:
    log = _Log(engine)
    log.write(5)
    reader = engine.open_reader()
    meter = _meter(reader)
    for transactions in (2, 300, 1, 900, 1):
        log.write(transactions)
        _count(reader, meter)


def test_gaps_count_neither_where_the_oldest_segments_were_dropped(engine: FileEngine) -> None:
    log = _Log(engine)
    for transactions in (900, 900, 5, 900, 10):
        log.write(transactions)
    reader = engine.open_reader()
    meter = _meter(reader)
    _count(reader, meter)
    writer = engine.open_writer()
    trimmed = writer.trim(4e9)
    writer.close()
    assert trimmed > ORIGIN
    _count(reader, meter)
    _count(reader, _meter(reader))


def test_compressed_changes_are_no_gap(engine: FileEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seq_gaps, "_BYTES_A_CHANGE", 16)
    engine.compression_level = 3
    log = _Log(engine)
    for transactions in (50, 1, 100):
        log.write(transactions, changes=500)
    reader = engine.open_reader()
    assert reader.bounds().bytes < 151 * 500 * 16  # denser than what is taken for sparse
    _count(reader, _meter(reader))


def test_what_was_looked_into_is_not_read_again(engine: FileEngine) -> None:
    log = _Log(engine)
    for transactions in (900, 900, 900):
        log.write(transactions)
    files = _Counted()
    reader = FileLogReader(engine.folder, files)
    meter = _meter(reader)
    first = read_all(reader)[0]
    place = Place(first.last, first.last_seq)
    told = meter.lags([place], 2e9)
    before = files.opened
    assert meter.lags([place], 2e9) == told
    assert files.opened == before
    assert told[place].changes == 2 * 2700 - 2
    reader.close()


def test_what_is_read_for_one_answer_is_bounded_and_all_gaps_are_found_by_and_by(
    engine: FileEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seq_gaps, "_PORTION", 1)
    log = _Log(engine)
    for transactions in (700, 3, 900, 2, 2000, 40):
        log.write(transactions)
    files = _Counted()
    reader = FileLogReader(engine.folder, files)
    meter, first = _meter(reader), read_all(reader)[0]
    place, told = Place(first.last, first.last_seq), []
    for _ in range(200):
        before = files.opened
        told.append(meter.lags([place], 2e9)[place].changes)
        if files.opened == before:  # nothing is left to be looked at
            break
    assert told[-1] == 2 * 3645 - 2
    assert told == sorted(told, reverse=True) and len(told) > 2
    reader.close()


def test_nobody_waits_for_whoever_reads_the_log_for_gaps(engine: FileEngine) -> None:
    log = _Log(engine)
    for transactions in (700, 3, 900):
        log.write(transactions)
    files = _Held()
    reader = FileLogReader(engine.folder, files)
    first = read_all(reader)[0]
    gaps = reader.seq_gaps()
    view = reader.view()
    files.holds.set()
    with ThreadPoolExecutor(1) as one:
        looking = one.submit(gaps.above, view, first.last_seq)
        assert files.reading.wait(60)
        assert gaps.above(view, first.last_seq) == []  # what is known by now
        files.holds.clear()
        files.goes_on.set()
        assert len(looking.result(60)) == 2
    assert len(gaps.above(view, first.last_seq)) == 2
    reader.close()


class _Held(Files):
    """Reading stands still until it may go on."""

    def __init__(self) -> None:
        self.holds, self.reading, self.goes_on = threading.Event(), threading.Event(), threading.Event()

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        if self.holds.is_set():
            self.reading.set()
            self.goes_on.wait(60)
        return super().pread(fd, size, offset)
