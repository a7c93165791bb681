"""What each message of the log says about itself, in its header `walbus`: 164 bytes, little-endian.

    u8  version (1)       u8  form (0 records, 1 reference)     u8  whole (1 if no transaction is under way before it)
    u8  0                 u32 part, u32 parts                      u64 writer, u64 number of its Kafka transaction
    u64 attempt           of TOPIC.large: which try at its transaction; of a reference: the one that counts
    u64 large             of TOPIC.large, what lies before this offset is needed by neither this message nor a later one
    place before the message's records, place behind them, each:
    u32 epoch, u64 commit_lsn, u32 ordinal, u64 end_lsn, u64 last_seq, i64 commit_time, u32 announced schema id,
    u64 bytes of all records of the log up to here, i64 largest commit time up to here

A record that is too large for one message goes in several, its parts, under the same places. A reference stands for the
records of a transaction in TOPIC.large: its value is two u64, the offsets from and up to which they lie.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from walbus.errors import DamagedRecord, UnknownFormat
from walbus.position import Position
from walbus.relay.sequence import Place
from walbus.relay.tip import Tip

HEADER = "walbus"  #: the name of the message's header
RECORDS, REFERENCE = 0, 1

_VERSION = 1
_HEAD = struct.Struct("<BBBxIIQQQQ")
_PLACE = struct.Struct("<IQIQQqIQq")
_RANGE = struct.Struct("<QQ")


class Mark(NamedTuple):
    """What a message says about itself.

    Attributes:
        before, behind: what is known before and behind the message's records; `offset` counts the bytes of records.
        whole: whether no transaction is under way before it.
        form: RECORDS or REFERENCE.
        part, parts: which of how many parts of one record; 0 of 1 where there are whole records.
        writer, number: who sent it, in which of its Kafka transactions.
        attempt: at a large transaction; 0 elsewhere.
        large: offset in TOPIC.large from which on it may be needed.
    """

    before: Place
    behind: Place
    whole: bool = True
    form: int = RECORDS
    part: int = 0
    parts: int = 1
    writer: int = 0
    number: int = 0
    attempt: int = 0
    large: int = 0


def pack_mark(mark: Mark) -> bytes:
    """The header's value."""
    head = _HEAD.pack(
        _VERSION, mark.form, mark.whole, mark.part, mark.parts, mark.writer, mark.number, mark.attempt,
        mark.large,
    )  # fmt: skip
    return head + _packed(mark.before) + _packed(mark.behind)


def parse_mark(data: bytes | None, where: str) -> Mark:
    """The mark of a header's value.

    Raises:
        UnknownFormat: it is of another version.
        DamagedRecord: there is none, or it has another length.
    """
    if data is None or len(data) != _HEAD.size + 2 * _PLACE.size:
        raise DamagedRecord("a message is none of the log's", where=where, mend="let nobody else write to the topic")
    version, form, whole, part, parts, writer, number, attempt, large = _HEAD.unpack_from(data)
    if version != _VERSION:
        raise UnknownFormat(f"a message is of version {version}", where=where, mend="read it with a newer Walbus")
    before, behind = _place(data, _HEAD.size), _place(data, _HEAD.size + _PLACE.size)
    return Mark(before, behind, bool(whole), form, part, parts, writer, number, attempt, large)


def pack_range(first: int, end: int) -> bytes:
    """The value of a reference: the offsets from and up to which its records lie."""
    return _RANGE.pack(first, end)


def parse_range(value: bytes, where: str) -> tuple[int, int]:
    """The offsets that a reference names; DamagedRecord if it is none."""
    if len(value) != _RANGE.size:
        raise DamagedRecord("a reference has a wrong length", where=where)
    first, end = _RANGE.unpack(value)
    return first, end


def _packed(place: Place) -> bytes:
    tip = place.tip
    return _PLACE.pack(
        *tip.position, tip.end_lsn, tip.last_seq, tip.commit_time, tip.announced_schema, place.offset, place.max_time
    )


def _place(data: bytes, offset: int) -> Place:
    epoch, lsn, ordinal, end_lsn, last_seq, commit_time, announced, size, max_time = _PLACE.unpack_from(data, offset)
    return Place(size, Tip(Position(epoch, lsn, ordinal), end_lsn, last_seq, commit_time, announced), max_time)
