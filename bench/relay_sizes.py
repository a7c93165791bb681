"""What a log's size costs: opening it, finding a place in it, appending to it, waking a reader, at 1, 10 and 100 GB.

The logs are sparse: valid to the last byte, with real manifests, control files, segments and indexes, but each record's
row is a megabyte of zeros that the file system does not keep (the checksums are over those zeros). 100 GB take about
half a gigabyte of disk and ten seconds to make.

Places are sought at random by position, seq and time, each with a reader that has just been opened, so that no index
is in its memory; the bytes and calls are those that it asks of the file system. The reference is the same at the
smallest size.
"""

from __future__ import annotations

import dataclasses
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import google_crc32c

from report import Report
from walbus.log import Piece, SourceIdentity
from walbus.position import ORIGIN, Position
from walbus.records import CHANGE_HEADER_SIZE, HEADER_SIZE, Flag, Kind, Op, pack_change, pack_record, read_header
from walbus.relay.control import ControlFile, Mark, control_path
from walbus.relay.engine import open_writer
from walbus.relay.fs import Files
from walbus.relay.index import SegmentIndex, pack_index_header
from walbus.relay.manifest import ActiveSegment, Manifest, SealedSegment, write_manifest
from walbus.relay.reader import FileLogReader
from walbus.relay.retention import holds_folder
from walbus.relay.schemas import schemas_folder
from walbus.relay.segment import HEADER_SIZE as SEGMENT_HEADER_SIZE
from walbus.relay.segment import SegmentHeader, index_path, segment_path, segments_folder
from walbus.relay.tip import EMPTY_TIP, Tip
from walbus.relay.writer import FileLogWriter

SOURCE = SourceIdentity("1", "bench", "bench")
_LOG_ID = "5" * 32
_ROW_BYTES = 1 << 20
_SEGMENT_RECORDS = 64  # of a megabyte, in a segment of 64 MiB
_SEEKS = 60
_FIRST_TIME = 1_700_000_000_000_000
_STEP_LSN = 64
_ZEROS = bytes(_ROW_BYTES)


class CountingFiles(Files):
    """Counts what is read."""

    def __init__(self) -> None:
        self.calls = self.bytes = 0

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        """As the real one."""
        data = super().pread(fd, size, offset)
        self.calls += 1
        self.bytes += len(data)
        return data


def run(gigabytes: int) -> Report:
    """Measures a log of this size, and those of a tenth and a hundredth of it."""
    report = Report(
        "relay-sizes",
        "Size of the log",
        ("log", "segments", "on disk", "open to read", "open to write", "open after a kill", "seek position",
         "seek seq", "seek time", "read a seek", "append and sync", "roll", "wake-up", "trim of nothing"),
        notes=["Medians. Sparse logs of records of a megabyte: valid, but for rows that are zeros on no disk."],
    )  # fmt: skip
    figures = []
    for size in sorted({max(gigabytes // 100, 1), max(gigabytes // 10, 1), gigabytes}):
        with tempfile.TemporaryDirectory(prefix="walbus-bench-") as folder:
            figures.append(_measure(Path(folder) / "log", size, report))
    for name in ("open to read", "open after a kill", "seek position", "seek seq", "seek time", "wake-up"):
        report.ratio(f"log-of-{gigabytes}-GB/smallest {name}", figures[-1][name] / figures[0][name])
    report.ratio(f"log-of-{gigabytes}-GB/a-second open", figures[-1]["open after a kill"])
    return report


def sparse_log(folder: Path, gigabytes: int) -> int:
    """Makes a log that was stopped in order; the number of its records."""
    for made in (folder, segments_folder(folder), schemas_folder(folder), holds_folder(folder)):
        made.mkdir(parents=True)
    files = Files()
    count = gigabytes * 1_000_000_000 // _ROW_BYTES
    tip, sealed = EMPTY_TIP._replace(last_seq=_FIRST_TIME), []
    for number, first in enumerate(range(1, count + 1, _SEGMENT_RECORDS), 1):
        base = tip
        tip, length = _write_segment(folder, number, base, range(first, min(first + _SEGMENT_RECORDS, count + 1)))
        segment = SealedSegment(
            number, base.position, length, tip.position, tip.last_seq, tip.commit_time, tip.commit_time / 1e6
        )
        sealed.append(segment)
    active = sealed.pop()
    before = Tip(active.base, 0, sealed[-1].last_seq if sealed else _FIRST_TIME, 0, 0)
    manifest = Manifest(
        _LOG_ID, SOURCE, 1, 10.0, "bench", 1, ORIGIN, tuple(sealed), ActiveSegment(active.number, before)
    )
    write_manifest(files, folder, manifest)
    with closing(ControlFile(files, files.create(control_path(folder, 1)))) as control:
        control.publish(Mark(active.number, active.length, tip, tip.commit_time, 1, clean=True))
    return count


def _write_segment(folder: Path, number: int, base: Tip, numbers: range) -> tuple[Tip, int]:
    """What is known behind its last record, and its length."""
    header = SegmentHeader(number, 1, _LOG_ID, base.position, base.last_seq, base.commit_time)
    index, tip, offset = SegmentIndex(), base, SEGMENT_HEADER_SIZE
    with segment_path(folder, number).open("xb", buffering=0) as file:
        file.write(header.pack())
        for one in numbers:
            index.add(offset, tip.position, tip.last_seq, tip.commit_time if one > numbers[0] else 0)
            head, length, tip = _record(one, tip)
            file.seek(offset)
            file.write(head)
            offset += length
        file.truncate(offset)
    index_path(folder, number).write_bytes(pack_index_header(number, 1, len(index)) + index.pack_entries(0))
    return tip, offset


def _record(number: int, tip: Tip) -> tuple[bytes, int, Tip]:
    """The beginning of a record that goes on with zeros, its length, and what is known behind it."""
    lsn, seq, at = number * _STEP_LSN, tip.last_seq + 1, _FIRST_TIME + number * 1000
    change = pack_change(Op.INSERT, table=1, seq_delta=0, ordinal_delta=0, key=b"%012d" % number, after=b"")
    change = bytearray(change)
    length = len(change) + _ROW_BYTES
    change[:4] = length.to_bytes(4, "little")
    change[CHANGE_HEADER_SIZE - 8 : CHANGE_HEADER_SIZE - 4] = _ROW_BYTES.to_bytes(4, "little")
    head = bytearray(
        pack_record(
            Kind.TRANSACTION, flags=Flag.BEGIN | Flag.END, epoch=1, commit_lsn=lsn, end_lsn=lsn + 8, first_ordinal=1,
            last_ordinal=1, first_seq=seq, last_seq=seq, xid=number, commit_time=at, count=1, tables=2,
            body=bytes(change),
        )
    )  # fmt: skip
    head[4:8] = (HEADER_SIZE + length).to_bytes(4, "little")
    checksum = google_crc32c.extend(google_crc32c.value(bytes(head[4:])), _ZEROS)
    head[:4] = int(checksum).to_bytes(4, "little")
    return bytes(head), HEADER_SIZE + length, Tip(Position(1, lsn, 1), lsn + 8, seq, at, 0)


def _measure(folder: Path, gigabytes: int, report: Report) -> dict[str, float]:
    count = sparse_log(folder, gigabytes)
    segments = len(list(segments_folder(folder).glob("*.seg")))
    disk = sum(path.stat().st_blocks * 512 for path in segments_folder(folder).iterdir())
    figures = {"open to read": _median(lambda: _open_to_read(folder), 9)}
    seeks, read = _seeks(folder, count)
    figures |= seeks
    figures["open to write"] = _median(lambda: _open_to_write(folder, _close), 3)
    figures |= _writing(folder)
    _open_to_write(folder, _kill)
    figures["open after a kill"] = _median(lambda: _open_to_write(folder, _kill), 3)
    report.row(
        f"{gigabytes} GB",
        f"{segments:,}",
        f"{disk / 1e6:,.0f} MB",
        *(f"{figures[name] * 1000:.1f} ms" for name in ("open to read", "open to write", "open after a kill")),
        *(f"{figures[name] * 1000:.2f} ms" for name in ("seek position", "seek seq", "seek time")),
        read,
        *(f"{figures[name] * 1000:.2f} ms" for name in ("append and sync", "roll")),
        *(f"{figures[name] * 1e6:.0f} µs" for name in ("wake-up", "trim of nothing")),
    )
    return figures


def _median(act: Callable[[], object], rounds: int) -> float:
    return statistics.median(_seconds(act) for _ in range(rounds))


def _seconds(act: Callable[[], object]) -> float:
    begin = time.perf_counter()
    act()
    return time.perf_counter() - begin


def _open_to_read(folder: Path) -> None:
    with closing(FileLogReader(folder)) as reader:
        reader.bounds()


def _open_to_write(folder: Path, end: Callable[[FileLogWriter], None]) -> None:
    end(_writer(folder))


def _writer(folder: Path) -> FileLogWriter:
    return open_writer(folder, SOURCE, segment_bytes=64 << 20, retention_hours=1e9, retention_bytes=None)


def _close(writer: FileLogWriter) -> None:
    writer.close()


def _kill(writer: FileLogWriter) -> None:
    """As the kernel does it: the lock is freed, and nothing is marked."""
    writer._broken = "killed"
    writer.close()


def _seeks(folder: Path, count: int) -> tuple[dict[str, float], str]:
    """Seconds of each kind of seek, and what one reads."""
    dice = random.Random(1)
    taken: dict[str, list[float]] = {"seek position": [], "seek seq": [], "seek time": []}
    files = CountingFiles()
    for _ in range(_SEEKS):
        number = dice.randrange(2, count)
        before = Position(1, (number - 1) * _STEP_LSN, 1)
        seeks: dict[str, Callable[[FileLogReader], object]] = {
            "seek position": partial(_first_behind, after=before),
            "seek seq": partial(FileLogReader.position_at_seq, seq=_FIRST_TIME + number),
            "seek time": partial(FileLogReader.position_at, time=(_FIRST_TIME + number * 1000) / 1e6),
        }
        for name, seek in seeks.items():
            with closing(FileLogReader(folder, files)) as reader:
                calls, size, begin = files.calls, files.bytes, time.perf_counter()
                found = seek(reader)
                taken[name].append(time.perf_counter() - begin)
                calls, size = files.calls - calls, files.bytes - size
            if found != (number * _STEP_LSN if name == "seek position" else before):
                raise RuntimeError(f"{name} found {found} for record {number}")
    return {name: statistics.median(values) for name, values in taken.items()}, f"{size >> 10:,} KiB in {calls} calls"


def _first_behind(reader: FileLogReader, after: Position) -> int:
    """The commit LSN of the first record behind a position."""
    with closing(reader.cursor(after)) as cursor:
        return read_header(cursor.read(1)[0]).commit_lsn


@contextmanager
def _opened(folder: Path) -> Iterator[tuple[FileLogWriter, FileLogReader]]:
    with closing(_writer(folder)) as writer, closing(FileLogReader(folder)) as reader:
        yield writer, reader


def _writing(folder: Path) -> dict[str, float]:
    """Seconds of what happens all the time, and of a roll."""
    with _opened(folder) as (writer, reader):
        lsn = writer.bounds().end.commit_lsn
        appends, wakes, trims, rolls = [], [], [], []
        for _ in range(50):
            lsn += _STEP_LSN
            appends.append(_seconds(lambda at=lsn: _append(writer, at)))
            wakes.append(_seconds(reader.bounds))
            trims.append(_seconds(lambda: writer.trim(time.time())))
        writer._settings = dataclasses.replace(writer._settings, segment_bytes=1)
        for _ in range(5):
            lsn += _STEP_LSN
            rolls.append(_seconds(lambda at=lsn: _append(writer, at)))
    names = ("append and sync", "wake-up", "trim of nothing", "roll")
    return dict(zip(names, map(statistics.median, (appends, wakes, trims, rolls)), strict=True))


def _append(writer: FileLogWriter, lsn: int) -> None:
    body = pack_change(Op.INSERT, table=1, seq_delta=0, ordinal_delta=0, key=b"%012d" % lsn, after=b"row")
    writer.append(
        Piece(
            kind=Kind.TRANSACTION, flags=Flag.BEGIN | Flag.END, epoch=1, commit_lsn=lsn, end_lsn=lsn + 8,
            first_ordinal=1, last_ordinal=1, count=1, xid=lsn, commit_time=_FIRST_TIME + lsn * 1000, tables=2,
            body=body,
        )
    )  # fmt: skip
    writer.sync()
