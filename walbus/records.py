"""The binary form of the log: records and the changes inside them. Bytes in, tuples out; no I/O.

A record is one piece of one transaction (`BEGIN` and `END` flags mark the first and the last piece), or one of the
kinds without rows. The same bytes lie on disk, travel over HTTP and fill snapshots, so this module is the format's
only reader and writer. All numbers are little-endian.

    record = header (96 bytes) | origin name (UTF-8, origin_length bytes) | body
    body   = change*                 (empty in PROGRESS)
    change = header (48 bytes) | key | old key | unchanged bitmap | after | before

The record's checksum is CRC32C over all of the record behind the checksum itself. A change's own header says
table, schema, op and key hash, so that filters decode no row. `docs/log-format.md` is the normative description.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import google_crc32c

from walbus.compression import decompress
from walbus.errors import DamagedRecord, UnknownFormat
from walbus.position import ORIGIN, Position

FORMAT_VERSION = 1

HEADER = struct.Struct("<IIBBHIQQIIQQQqIHHQQ")  #: as `read_header` takes it apart
HEADER_SIZE = HEADER.size
_LENGTH = struct.Struct("<4xI")
_SEQS, _SEQS_AT = struct.Struct("<QQ"), 40
_CHANGE = struct.Struct("<IBBHIIQIIIIII")
CHANGE_HEADER_SIZE = _CHANGE.size
assert (HEADER_SIZE, CHANGE_HEADER_SIZE) == (96, 48)

#: A record is never longer than this; a length beyond it is damage (and bounds every allocation). A row of
#: PostgreSQL is at most 1 GB, and a change may hold two of them.
MAX_RECORD_SIZE = (1 << 32) - 1

_UNIX_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Kind(enum.IntEnum):
    """What a record is."""

    TRANSACTION = 1  #: a piece of a committed transaction
    PROGRESS = 2  #: all that commits before (epoch, commit_lsn) is in the log; no changes
    SCHEMA = 3  #: one `schema` change: a layout that rows behind it use; takes no ordinal and no seq
    EPOCH = 4  #: one `epoch` change: the timeline switched, or the log was reconciled
    SNAPSHOT = 5  #: rows of a bootstrap snapshot; never in a log
    DELTA = 6  #: what a bootstrap delta says of the keys that changed; never in a log


class Flag(enum.IntFlag):
    """Flags of a record."""

    BEGIN = 1  #: first piece of its transaction
    END = 2  #: last piece of its transaction; `end_lsn` is set
    FILTERED = 4  #: a server left changes out; positions still tell the whole record's range
    ZSTD = 8  #: the body is one zstd frame (`walbus.compression`)
    ASKED = 16  #: of progress that a server tells: somebody waits for the consumer here; never in a log
    NET = 32  #: of a transaction that no session made: a net difference that Walbus found by comparing


class Op(enum.IntEnum):
    """What a change does. The names in JSON are these in lower case."""

    INSERT = 1
    UPDATE = 2
    DELETE = 3
    TRUNCATE = 4
    MESSAGE = 5
    SCHEMA = 6
    EPOCH = 7
    HEARTBEAT = 8


class ChangeFlag(enum.IntFlag):
    """Flags of a change. A part that is absent has length 0 and no flag; an empty part has the flag."""

    KEY = 1
    OLD_KEY = 2  #: the key before a key update
    AFTER = 4
    BEFORE = 8  #: a full old row (REPLICA IDENTITY FULL)
    CASCADE = 16  #: of TRUNCATE
    RESTART_IDENTITY = 32  #: of TRUNCATE
    TRANSACTIONAL = 64  #: of a message
    PROJECTED = 128  #: a server left columns out; a second bitmap, of the first one's size, says which


class RecordHeader(NamedTuple):
    """A record's header, decoded.

    Attributes:
        length: bytes of the whole record, header included.
        kind, flags: as the enums.
        epoch, commit_lsn: of the transaction; of a PROGRESS record the bound that it reports.
        end_lsn: where the commit record ends, what a slot may be confirmed to; 0 unless END is set.
        first_ordinal, last_ordinal: of the changes in the (unfiltered) record. PROGRESS: both 0. SCHEMA: both that
            of the change before it.
        first_seq, last_seq: seqs of those changes; in records without any, both are the last seq given before.
        xid: the top-level transaction id, widened to 64 bits; 0 where there is none.
        commit_time: Unix microseconds.
        count: number of changes in the body.
        origin_length: bytes of the origin name that follows the header.
        tables: bit `oid % 64` set for each table in the body (a filter's quick "no").
    """

    length: int
    kind: int
    flags: int
    epoch: int
    commit_lsn: int
    end_lsn: int
    first_ordinal: int
    last_ordinal: int
    first_seq: int
    last_seq: int
    xid: int
    commit_time: int
    count: int  # type: ignore[assignment]  # hides tuple.count, which nobody calls on a header
    origin_length: int
    tables: int

    @property
    def first(self) -> Position:
        """Position of the first change (of the record as captured)."""
        return tuple.__new__(Position, (self.epoch, self.commit_lsn, self.first_ordinal))  # but for the call

    @property
    def last(self) -> Position:
        """Position of the last change: the "last done" of a reader that has dealt with this record."""
        return tuple.__new__(Position, (self.epoch, self.commit_lsn, self.last_ordinal))


class RawChange(NamedTuple):
    """One change, its parts still encoded.

    Attributes:
        op, flags: as the enums.
        table: relation OID; 0 where there is none.
        schema_id: version of the table's layout; 0 where there is none.
        seq_delta: seq minus the record's `first_seq`.
        ordinal_delta: ordinal minus the record's `first_ordinal`.
        key_hash: CRC32C of `key`.
        key, old_key: memcomparable keys (`walbus.keys`); of a message, `key` is its prefix.
        unchanged: bitmap (bit `i % 8` of byte `i // 8` is column i) of values that were not sent: TOASTed ones that did
            not change, and under PROJECTED those of the columns in a second bitmap behind the first.
        after, before: Avro rows in the schema's form; of a message `after` is its content, of SCHEMA and EPOCH
            changes a JSON document.
    """

    op: int
    flags: int
    table: int
    schema_id: int
    seq_delta: int
    ordinal_delta: int
    key_hash: int
    key: bytes | None
    old_key: bytes | None
    unchanged: bytes
    after: bytes | None
    before: bytes | None


_WHOLE = int(Flag.BEGIN | Flag.END)  # a flag's own `|` takes longer than all the rest of a small record


def key_hash(key: bytes) -> int:
    """The 32-bit hash that partitions keys: CRC32C of the memcomparable key."""
    return int(google_crc32c.value(key))


def pack_change(
    op: int,
    *,
    table: int = 0,
    schema_id: int = 0,
    seq_delta: int,
    ordinal_delta: int,
    flags: int = 0,
    key: bytes | None = None,
    old_key: bytes | None = None,
    unchanged: bytes = b"",
    after: bytes | None = None,
    before: bytes | None = None,
) -> bytes:
    """One change as the bytes that a record's body holds; part flags are set from what is given."""
    key_b, old_b, after_b, before_b = key or b"", old_key or b"", after or b"", before or b""
    part_flags = (
        flags | (key is not None) * 1 | (old_key is not None) * 2 | (after is not None) * 4 | (before is not None) * 8
    )
    header = _CHANGE.pack(
        CHANGE_HEADER_SIZE + len(key_b) + len(old_b) + len(unchanged) + len(after_b) + len(before_b),
        op,
        part_flags,
        len(unchanged),
        table,
        schema_id,
        seq_delta,
        ordinal_delta,
        google_crc32c.value(key_b) if key_b else 0,
        len(key_b),
        len(old_b),
        len(after_b),
        len(before_b),
    )
    return b"".join((header, key_b, old_b, unchanged, after_b, before_b))


def iter_changes(body: bytes) -> Iterator[RawChange]:
    """The changes of a body (already decompressed), in order.

    Raises:
        DamagedRecord: a length points outside the body; `where` gives the offset inside the body.
    """
    offset, end = 0, len(body)
    while offset < end:
        if end - offset < CHANGE_HEADER_SIZE:
            raise DamagedRecord("a change's header is cut short", where=f"body offset {offset}")
        (length, op, flags, n_unchanged, table, schema_id, seq_delta, ordinal_delta, khash, n_key, n_old, n_after,
         n_before) = _CHANGE.unpack_from(body, offset)  # fmt: skip
        key_at = offset + CHANGE_HEADER_SIZE
        old_at = key_at + n_key
        unchanged_at = old_at + n_old
        after_at = unchanged_at + n_unchanged
        before_at = after_at + n_after
        stop = before_at + n_before
        if stop != offset + length or stop > end:
            raise DamagedRecord("a change's lengths do not add up", where=f"body offset {offset}")
        # As RawChange(…), but for its call: there are as many as rows.
        yield tuple.__new__(
            RawChange,
            (
                op,
                flags,
                table,
                schema_id,
                seq_delta,
                ordinal_delta,
                khash,
                body[key_at:old_at] if flags & 1 else None,
                body[old_at:unchanged_at] if flags & 2 else None,
                body[unchanged_at:after_at],
                body[after_at:before_at] if flags & 4 else None,
                body[before_at:stop] if flags & 8 else None,
            ),
        )
        offset = stop


def pack_record(
    kind: int,
    *,
    flags: int,
    epoch: int,
    commit_lsn: int,
    end_lsn: int = 0,
    first_ordinal: int,
    last_ordinal: int,
    first_seq: int,
    last_seq: int,
    xid: int = 0,
    commit_time: int,
    count: int = 0,
    origin: bytes = b"",
    tables: int = 0,
    body: bytes = b"",
) -> bytes:
    """One whole record with its checksum."""
    length = HEADER_SIZE + len(origin) + len(body)
    if length > MAX_RECORD_SIZE:
        raise DamagedRecord(f"a record of {length} bytes is larger than the format allows")
    header = HEADER.pack(
        0, length, FORMAT_VERSION, kind, flags, epoch, commit_lsn, end_lsn, first_ordinal, last_ordinal,
        first_seq, last_seq, xid, commit_time, count, len(origin), 0, tables, 0,
    )  # fmt: skip
    rest = b"".join((header[4:], origin, body))
    return int(google_crc32c.value(rest)).to_bytes(4, "little") + rest


def pack_unsealed(  # one whole transaction in a run
    *, epoch: int, commit_lsn: int, end_lsn: int, xid: int, commit_time: int, count: int, first_seq: int, origin: bytes,
    tables: int, body: bytes,
) -> bytes:  # fmt: skip
    """The record of a whole transaction with a checksum of 0, for `seal`; `first_seq` counts from its run's first."""
    header = HEADER.pack(
        0, HEADER_SIZE + len(origin) + len(body), FORMAT_VERSION, Kind.TRANSACTION, _WHOLE, epoch,
        commit_lsn, end_lsn, 1, count, first_seq, first_seq + count - 1, xid, commit_time, count, len(origin), 0,
        tables, 0,
    )  # fmt: skip
    return b"".join((header, origin, body))


def seal(records: bytes, base: int) -> bytes:
    """Records out of `pack_unsealed`, as they lie in a log: with their seqs, counted from `base`, and checksums.

    Raises:
        ValueError: they are not whole records.
    """
    out, offset = bytearray(records), 0
    while offset < len(out):
        length = _LENGTH.unpack_from(out, offset)[0] if len(out) - offset >= HEADER_SIZE else 0
        if not HEADER_SIZE <= length <= len(out) - offset:
            raise ValueError("these bytes are not whole records")
        first, last = _SEQS.unpack_from(out, offset + _SEQS_AT)
        _SEQS.pack_into(out, offset + _SEQS_AT, first + base, last + base)
        checksum = google_crc32c.value(bytes(memoryview(out)[offset + 4 : offset + length]))
        out[offset : offset + 4] = int(checksum).to_bytes(4, "little")
        offset += length
    return bytes(out)


def read_header(buffer: bytes, offset: int = 0) -> RecordHeader:
    """The header at an offset, unchecked but for version and length (`check_record` proves the checksum).

    Raises:
        DamagedRecord: fewer than 96 bytes are there, or they cannot be a header.
    """
    if len(buffer) - offset < HEADER_SIZE:
        raise DamagedRecord("a record's header is cut short", where=f"offset {offset}")
    (_, length, version, kind, flags, epoch, commit_lsn, end_lsn, first_ordinal, last_ordinal, first_seq, last_seq,
     xid, commit_time, count, origin_length, _, tables, _) = HEADER.unpack_from(buffer, offset)  # fmt: skip
    if version != FORMAT_VERSION:
        raise UnknownFormat(
            f"format version {version} is not {FORMAT_VERSION}",
            where=f"offset {offset}",
            mend="read it with the Walbus that wrote it, or restore the file",
        )
    if length < HEADER_SIZE + origin_length:
        raise DamagedRecord(f"a record's length of {length} is impossible", where=f"offset {offset}")
    return RecordHeader(
        length, kind, flags, epoch, commit_lsn, end_lsn, first_ordinal, last_ordinal, first_seq, last_seq, xid,
        commit_time, count, origin_length, tables,
    )  # fmt: skip


def check_record(record: bytes) -> RecordHeader:
    """The header of one whole record whose checksum holds.

    Raises:
        DamagedRecord: the bytes are not exactly one good record.
    """
    header = read_header(record)
    if header.length != len(record):
        raise DamagedRecord(f"a record of {header.length} bytes lies in {len(record)} bytes")
    check_sum(record)
    return header


def check_sum(record: bytes) -> None:
    """Compares the checksum of one whole record, of which nothing else is looked at.

    Raises:
        DamagedRecord: it is wrong.
    """
    if google_crc32c.value(record[4:]) != int.from_bytes(record[:4], "little"):
        raise DamagedRecord("a record's checksum is wrong")


def time_of(microseconds: int) -> datetime:
    """The UTC time of Unix microseconds, as a header has them."""
    return _UNIX_EPOCH + timedelta(0, 0, microseconds)


def origin_of(record: bytes, header: RecordHeader) -> bytes:
    """The origin name (UTF-8) of a record; empty where the transaction began at this source."""
    return record[HEADER_SIZE : HEADER_SIZE + header.origin_length]


def body_of(record: bytes, header: RecordHeader) -> bytes:
    """The body of a record, as `iter_changes` takes it.

    Raises:
        DamagedRecord: the body is compressed, and not as `walbus.compression` has it.
    """
    body = record[HEADER_SIZE + header.origin_length :]
    return decompress(body) if header.flags & Flag.ZSTD else body


def located_changes(
    header: RecordHeader, record: bytes, after: Position = ORIGIN
) -> Iterator[tuple[Position, RawChange]]:
    """The changes of a record with their positions, but for those at or before `after` ("last done").

    All that a snapshot or a delta tells stands at its position, and `after` does not concern it. A SCHEMA or EPOCH
    event stands at the position of the change before it, so that one at `after` itself is given (again).

    Raises:
        DamagedRecord: the body makes no sense.
    """
    if header.kind == Kind.PROGRESS:
        return
    epoch, commit_lsn = header.epoch, header.commit_lsn
    first, served = header.first_ordinal, header.kind in (Kind.SNAPSHOT, Kind.DELTA)
    events = header.kind != Kind.TRANSACTION
    for raw in iter_changes(body_of(record, header)):
        if served:
            yield header.last, raw
            continue
        position = tuple.__new__(Position, (epoch, commit_lsn, first + raw.ordinal_delta))  # but for the call
        if position > after or (events and position == after):
            yield position, raw
