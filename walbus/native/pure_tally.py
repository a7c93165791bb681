"""Changes and bytes counted by table, over records that were checked, in Python. Pure; `tally.pxi` is its twin in C."""

from __future__ import annotations

from collections.abc import MutableMapping

from walbus.errors import DamagedRecord
from walbus.records import CHANGE_HEADER_SIZE, HEADER_SIZE, Kind, body_of, read_header

_TRANSACTION = int(Kind.TRANSACTION)


def tally_changes(records: bytes, counts: MutableMapping[int, tuple[int, int]]) -> None:
    """Adds what whole records hold to the number of changes, and of their bytes, of each table.

    Args:
        records: one behind the other.
        counts: by relation OID; 0 stands for what belongs to no table, such as messages.

    Raises:
        DamagedRecord: lengths do not add up.
    """
    at = 0
    while len(records) - at >= HEADER_SIZE:
        header = read_header(records, at)
        if header.length > len(records) - at:
            raise DamagedRecord("a record's length is impossible", where=f"offset {at}")
        if header.kind == _TRANSACTION:
            _tally_body(body_of(records[at : at + header.length], header), counts)
        at += header.length
    if at != len(records):
        raise DamagedRecord("a record's header is cut short", where=f"offset {at}")


def _tally_body(body: bytes, counts: MutableMapping[int, tuple[int, int]]) -> None:
    at, end = 0, len(body)
    while at < end:
        length = int.from_bytes(body[at : at + 4], "little") if end - at >= CHANGE_HEADER_SIZE else 0
        if not CHANGE_HEADER_SIZE <= length <= end - at:
            raise DamagedRecord("a change's length is impossible")
        table = int.from_bytes(body[at + 8 : at + 12], "little")
        changes, total = counts.get(table, (0, 0))
        counts[table] = (changes + 1, total + length)
        at += length
