"""Whether a record's body says what its header says. Pure.

The checksum proves that the bytes are those that were written; this proves that they make sense: a record that a faulty
writer made has a good checksum too.
"""

from __future__ import annotations

from collections.abc import Collection

from walbus.errors import DamagedRecord
from walbus.records import ChangeFlag, Flag, Kind, Op, RawChange, RecordHeader, body_of, iter_changes, key_hash

_OPS = frozenset(op.value for op in Op)
_IN_A_LOG = frozenset((int(Kind.TRANSACTION), int(Kind.PROGRESS), int(Kind.SCHEMA), int(Kind.EPOCH)))
_KNOWN_FLAGS = int(Flag.BEGIN | Flag.END | Flag.ZSTD | Flag.NET)


def body_fault(header: RecordHeader, record: bytes, schemas: Collection[int]) -> str | None:
    """What is wrong inside a record whose checksum is good; None if nothing is.

    Args:
        header: the record's.
        record: the whole record.
        schemas: the numbers of all layouts that the log knows.
    """
    if header.kind not in _IN_A_LOG:
        return f"a record of kind {header.kind} has no place in a log"
    if header.flags & ~_KNOWN_FLAGS:
        return f"a record has flags {header.flags:#x}, which have no place in a log"
    try:
        changes = list(iter_changes(body_of(record, header)))
    except DamagedRecord as error:
        return error.what if error.where is None else f"{error.what} ({error.where})"
    if len(changes) != header.count:
        return f"a record of {header.count} changes holds {len(changes)}"
    return _changes_fault(header, changes, schemas)


def _changes_fault(header: RecordHeader, changes: list[RawChange], schemas: Collection[int]) -> str | None:
    last = -1
    for change in changes:
        fault = _change_fault(header, change, schemas)
        if fault is not None:
            return fault
        if change.seq_delta != change.ordinal_delta or change.ordinal_delta <= last:
            return "the ordinals of a record's changes do not rise, or differ from its seqs"
        last = change.ordinal_delta
    if header.first_ordinal + max(last, 0) > header.last_ordinal:
        return "a change's ordinal is past the record's last"
    return None


def _change_fault(header: RecordHeader, change: RawChange, schemas: Collection[int]) -> str | None:
    if change.op not in _OPS:
        return f"a change has the unknown op {change.op}"
    if change.flags & ChangeFlag.PROJECTED:
        return "a change lacks columns that a stream left out, which has no place in a log"
    if change.schema_id and change.schema_id not in schemas:
        return f"a change names layout {change.schema_id}, which the log does not have"
    if change.key_hash != (key_hash(change.key) if change.key else 0):
        return "a change's key hash is not that of its key"
    if change.table and not header.tables >> change.table % 64 & 1:
        return f"a change of table {change.table} is not among the record's table bits"
    return None
