"""Files of net differences: what the bootstrap hands to capture, which alone writes the log.

A difference says which rows of one table are others than the log tells, as inserts, updates and deletes of whole rows,
as of a position of the log. Such a file is made whole before it has its name (temporary file, fsync, rename, fsync of
the folder), and is gone once its content is durable in the log. Files are taken in the order of their names, which
rise.

    name     20 digits of its number, `-`, OID of its table, `.difference`
    file     magic `WALBUSDF` | u32 version 1 | u32 length of the document | u32 CRC32C of the document | document |
             record+
    document JSON: `number`, `log_id`, `table`, `oid`, `schemas` (numbers of the layouts that its rows are in), `after`
             (position, "last done": the difference is that of the rows as they are here), `reason`, `since` and
             `folds_from` (positions, or empty)
    record   of the log's format: TRANSACTION with the flag NET; ordinals and seqs from 1, END on the last one, which
             may be empty

A file that is damaged, or that does not belong to the log, is refused: it goes, and one of its name that ends on
`.refused` says why, for whoever made it. Numbers are little-endian.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import google_crc32c
import msgspec

from walbus.errors import DamagedRecord, InvalidText, UnknownFormat, WalbusError
from walbus.position import Position, parse_position
from walbus.records import (
    HEADER_SIZE,
    MAX_RECORD_SIZE,
    Flag,
    Kind,
    RawChange,
    RecordHeader,
    body_of,
    check_record,
    iter_changes,
    pack_change,
    pack_record,
    read_header,
)

FORMAT_VERSION = 1
#: A record is closed when its changes have this many bytes, or when it holds this many changes.
RECORD_BYTES, RECORD_CHANGES = 256 << 10, 4096

_MAGIC = b"WALBUSDF"
_HEAD = struct.Struct("<8sIII")
_NAME = re.compile(r"(\d{20})-(\d{1,10})\.difference\Z")
_REFUSED = ".refused"
_MOST_DOCUMENT = 1 << 20


class About(msgspec.Struct, frozen=True, kw_only=True):
    """What a file is.

    Attributes:
        number: unique, and above those of all files that were made for this log before.
        log_id: of the log.
        table, oid: whose rows.
        schemas: numbers of the layouts that its rows are in.
        after: as text: a reader that has done this has the rows that the difference begins from.
        reason: why it was made, for people.
        since: as text: whoever has had the table's rows as of this position or later, and the log behind it, has the
            source's rows behind the difference. Empty if only the reader of one table's rows can tell (a repair).
        folds_from: as text: the rows were read from the source behind this position, so the difference answers what
            changed them before it. Empty for single rows.
    """

    number: int
    log_id: str
    table: str
    oid: int
    schemas: tuple[int, ...]
    after: str
    reason: str
    since: str = ""
    folds_from: str = ""

    @property
    def position(self) -> Position:
        """`after`, parsed.

        Raises:
            InvalidText: it is none.
        """
        return parse_position(self.after)


class Refused(msgspec.Struct, frozen=True):
    """A file that capture did not take; for whoever made it."""

    number: int
    oid: int
    why: str


def difference_path(folder: Path, number: int, oid: int) -> Path:
    """The file of a number and a table."""
    return folder / f"{number:020d}-{oid}.difference"


def waiting(folder: Path) -> list[Path]:
    """The files that are whole, oldest first; none if there is no folder."""
    try:
        return sorted(path for path in folder.iterdir() if _NAME.match(path.name))
    except FileNotFoundError:
        return []


def named(path: Path) -> tuple[int, int]:
    """The number and the table's OID in a file's name."""
    match = _NAME.match(path.name)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def write_difference(folder: Path, about: About, changes: Iterable[RawChange]) -> int:
    """Makes a file; it is durable on return.

    Args:
        folder: made when missing.
        about: what it is.
        changes: inserts, updates and deletes with whole rows, each key once; their deltas are given here.

    Returns:
        the number of changes.

    Raises:
        OSError: it could not be written; nothing of it is left.
    """
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{about.number:020d}.new"
    try:
        with temporary.open("wb") as file:
            count = _write(file, about, changes)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(difference_path(folder, about.number, about.oid))
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(folder)
    return count


def sweep(folder: Path) -> None:
    """Removes what a process that died left of files that it did not finish; nobody may be making one."""
    finished = {named(path)[0] for path in waiting(folder)}
    for path in folder.glob(".*.new"):
        number = path.name.removeprefix(".").removesuffix(".new")
        if number.isdigit() and int(number) not in finished:  # capture may be replacing one that waits
            path.unlink(missing_ok=True)


def _write(file: BinaryIO, about: About, changes: Iterable[RawChange]) -> int:
    document = msgspec.json.encode(about)
    file.write(_HEAD.pack(_MAGIC, FORMAT_VERSION, len(document), google_crc32c.value(document)))
    file.write(document)
    done = 0
    last: tuple[list[bytes], int] = ([], 0)
    for some in packed(changes):
        if last[0]:
            file.write(_record(about, last[0], done, 0 if done else Flag.BEGIN))
            done += len(last[0])
        last = some, about.oid
    file.write(_record(about, last[0], done, Flag.END if done else Flag.BEGIN | Flag.END))
    return done + len(last[0])


def packed(changes: Iterable[RawChange]) -> Iterator[list[bytes]]:
    """Changes as the bytes of bodies of records, their deltas counted from 0; no list is empty."""
    body: list[bytes] = []
    size = 0
    for change in changes:
        at = len(body)
        body.append(
            pack_change(
                change.op,
                table=change.table,
                schema_id=change.schema_id,
                seq_delta=at,
                ordinal_delta=at,
                key=change.key,
                old_key=change.old_key,
                unchanged=change.unchanged,
                after=change.after,
                before=change.before,
            )
        )
        size += len(body[-1])
        if size >= RECORD_BYTES or len(body) >= RECORD_CHANGES:
            yield body
            body, size = [], 0
    if body:
        yield body


def _record(about: About, body: list[bytes], done: int, flags: int) -> bytes:
    at = about.position
    last = done + len(body)
    return pack_record(
        Kind.TRANSACTION,
        flags=int(flags) | Flag.NET,
        epoch=at.epoch,
        commit_lsn=at.commit_lsn,
        first_ordinal=done + 1 if body else last,
        last_ordinal=last,
        first_seq=done + 1 if body else last,
        last_seq=last,
        commit_time=0,
        count=len(body),
        tables=1 << about.oid % 64 if body else 0,
        body=b"".join(body),
    )


class DifferenceFile:
    """A file, read from its beginning to its end, as often as wanted.

    Args:
        path: of the file.

    Raises:
        DamagedRecord: it does not begin as one, or cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with _readable(path), path.open("rb") as file:
            self.about = _read_about(file, path)
            self._start = file.tell()

    def records(self) -> Iterator[tuple[RecordHeader, bytes]]:
        """Its records with their headers, each checked; the last one has the flag END.

        Raises:
            DamagedRecord: names file and offset.
        """
        with _readable(self.path), self.path.open("rb") as file:
            file.seek(self._start)
            offset, done = self._start, 0
            while True:
                record = self._read_record(file, offset)
                header = check_record_at(record, self.path, offset)
                if header.kind != Kind.TRANSACTION or header.last_ordinal != done + header.count:
                    raise self._damaged("a record is not the one that follows", offset)
                done = header.last_ordinal
                offset += len(record)
                if header.flags & Flag.END and file.read(1):
                    raise self._damaged("something stands behind the last record", offset)
                yield header, record
                if header.flags & Flag.END:
                    return

    def changes(self) -> Iterator[RawChange]:
        """Its changes; raises as `records`."""
        for header, record in self.records():
            yield from iter_changes(body_of(record, header))

    def _read_record(self, file: BinaryIO, offset: int) -> bytes:
        head = file.read(HEADER_SIZE)
        if len(head) < HEADER_SIZE:
            raise self._damaged("the file is cut short", offset)
        try:
            length = read_header(head).length
        except DamagedRecord as error:
            raise self._damaged(error.what, offset) from None
        if length > MAX_RECORD_SIZE or length > os.fstat(file.fileno()).st_size - offset:
            raise self._damaged("the file is cut short", offset)
        return head + file.read(length - HEADER_SIZE)

    def _damaged(self, what: str, offset: int) -> DamagedRecord:
        return DamagedRecord(what, where=f"{self.path}, offset {offset}")


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """What cannot be read is as good as damaged: whoever made it makes it again."""
    try:
        yield
    except OSError as error:
        raise DamagedRecord(f"it cannot be read: {error.strerror}", where=str(path)) from error


def check_record_at(record: bytes, path: Path, offset: int) -> RecordHeader:
    """As `check_record`, with the place in the error."""
    try:
        return check_record(record)
    except DamagedRecord as error:
        raise DamagedRecord(error.what, where=f"{path}, offset {offset}") from None


def _read_about(file: BinaryIO, path: Path) -> About:
    head = file.read(_HEAD.size)
    if len(head) < _HEAD.size or not head.startswith(_MAGIC):
        raise DamagedRecord("this is no file of a difference", where=f"{path}, offset 0")
    _, version, length, checksum = _HEAD.unpack(head)
    if version != FORMAT_VERSION:
        raise UnknownFormat(f"format version {version} is not {FORMAT_VERSION}", where=f"{path}, offset 8")
    document = file.read(length) if length <= _MOST_DOCUMENT else b""
    if len(document) != length or google_crc32c.value(document) != checksum:
        raise DamagedRecord("what the file says of itself is damaged", where=f"{path}, offset {_HEAD.size}")
    try:
        about = msgspec.json.decode(document, type=About)
        _ = about.position
    except (msgspec.MsgspecError, InvalidText) as error:
        raise DamagedRecord(f"what the file says of itself makes no sense: {error}", where=str(path)) from None
    return about


def refuse(path: Path, error: WalbusError) -> None:
    """Puts a note in the place of a file that is not taken; durable on return.

    Raises:
        OSError: there is no room; the file stays.
    """
    note = path.with_suffix(_REFUSED)
    temporary = path.with_name(f".{note.name}.new")
    with temporary.open("wb") as file:
        file.write(msgspec.json.encode(Refused(*named(path), str(error))))
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(note)
    remove(path)


def refusals(folder: Path) -> list[tuple[Path, Refused]]:
    """The notes of files that were not taken; whoever has dealt with one removes it."""
    if not folder.exists():
        return []
    found = []
    for path in sorted(folder.glob(f"*{_REFUSED}")):
        try:
            found.append((path, msgspec.json.decode(path.read_bytes(), type=Refused)))
        except (msgspec.MsgspecError, FileNotFoundError):
            continue
    return found


def remove(path: Path) -> None:
    """Removes a file; durable on return."""
    path.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Makes what was made and removed in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
