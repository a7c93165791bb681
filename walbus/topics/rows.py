"""Windows of changes as the records of table topics: a row is a key's value, and a delete a key without one.

    insert, update     key, whole row
    another key        old key without a value, then new key, row
    delete             key without a value
    truncate           each key that is live without a value
    end of transaction (`walbus.topics.ends`), behind the records that it counts

Topics are compacted, so a record is the whole row: an update that lacks unchanged TOASTed values is completed from its
old row, where the table's replica identity is FULL or the stream is complete, and refused otherwise. Order: records
are handed over as the log has them, so a partition has the changes of each key in their order.

The partition is that of the key in the log (CRC32C, modulo their number), and not of the bytes of the Avro key: those
hold the schema's id, and a row would change its partition once the key's columns have another type.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from walbus.errors import UsageError
from walbus.events import Change, Window
from walbus.records import ChangeFlag, Kind, Op
from walbus.schema import TableSchema
from walbus.topics.names import TopicNames
from walbus.topics.records import Cause, RecordMaker, SchemaIds, TopicRecord
from walbus.values import merge_unchanged

_ROWS: Final = frozenset((Op.INSERT, Op.UPDATE))

#: Keys of a table, known by its OID, that have a value in its topic; each with the layout that it is a key of.
LiveKeys = Callable[[int], Iterable[tuple[TableSchema, bytes]]]


class TableTopics:
    """Windows, in the order of the log, to records. Not thread-safe.

    Args:
        names: of the topics.
        ids: of the schemas.
        log_id: of the log; stands in every record, since seqs compare only within it.
        live_keys: asked at a TRUNCATE.
    """

    def __init__(self, names: TopicNames, ids: SchemaIds, *, log_id: str, live_keys: LiveKeys) -> None:
        self._names, self._live_keys = names, live_keys
        self._maker = RecordMaker(names, ids, log_id)
        self._counts: Counter[str] = Counter()

    def take(self, window: Window) -> Iterator[TopicRecord]:
        """The records of the next window, or piece of one. Nothing is kept of a transaction whose records broke off.

        Raises:
            UsageError: a row is not whole, or its table has no key; names table and position.
            DamagedRecord: a key or a row makes no sense.
        """
        if window.kind is not Kind.TRANSACTION:
            return
        if window.begins:
            self._counts.clear()
        for change in window:
            for record in self._records(window, change):
                self._counts[record.topic] += 1
                yield record
        if window.ends and self._counts:
            yield self._maker.end(window, self._counts)

    def _records(self, window: Window, change: Change) -> Iterator[TopicRecord]:
        if change.op is Op.TRUNCATE:
            for layout, key in self._live_keys(change.raw.table):
                yield self._record(window, change, layout, key, None)
        elif change.schema is not None and change.raw.op in _ROWS:
            key, row = _key(change, change.schema), _whole_row(change, change.schema)
            if change.raw.old_key is not None:
                yield self._record(window, change, change.schema, change.raw.old_key, None)
            yield self._record(window, change, change.schema, key, row)
        elif change.schema is not None and change.op is Op.DELETE:
            yield self._record(window, change, change.schema, _key(change, change.schema), None)

    def _record(
        self, window: Window, change: Change, layout: TableSchema, key: bytes, row: bytes | None
    ) -> TopicRecord:
        topic = self._names.of_table(layout.namespace, layout.name)
        return self._maker.record(topic, layout, key, row, Cause.of(window, change))


def _key(change: Change, layout: TableSchema) -> bytes:
    if not layout.key_indexes or change.raw.key is None:
        raise UsageError(
            f"{layout.table} has no key, and a table topic is known by its keys",
            where=str(change.position),
            mend="give the table a primary key or a replica identity by index, or leave it out of the topics",
        )
    return change.raw.key


def _whole_row(change: Change, layout: TableSchema) -> bytes:
    raw = change.raw
    row, missing = raw.after or b"", raw.unchanged
    if raw.flags & ChangeFlag.PROJECTED:
        raise _not_whole(change, layout, "read the stream without columns=")
    if any(missing) and raw.before is not None:
        row, missing = merge_unchanged(layout, row, missing, layout, raw.before)
    if any(missing):
        mend = "read complete changes from the bootstrap server, or set REPLICA IDENTITY FULL on the table"
        raise _not_whole(change, layout, mend)
    return row


def _not_whole(change: Change, layout: TableSchema, mend: str) -> UsageError:
    what = f"an update of {layout.table} lacks columns, and a topic's value is a whole row"
    return UsageError(what, where=str(change.position), mend=mend)
