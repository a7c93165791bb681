"""Rows that are there already, brought to another layout of their table: to other columns, and to its new name.

They are read some at a time, and written at once. After a crash the table has its old layout yet, and all of it is done
again, which changes nothing of the rows that have been brought to the new one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from walbus.consumers.checkpoint import Marks
from walbus.consumers.sinks.layout import LayoutChange, layout_change
from walbus.consumers.sinks.redis_keys import RowKeys
from walbus.consumers.sinks.redis_lacking import LackingRows
from walbus.consumers.sinks.redis_rows import Entry
from walbus.consumers.sinks.redis_stored import READ_AT_ONCE, RedisRows, RowForm, some
from walbus.consumers.sinks.taken_names import configured_as
from walbus.schema import TableSchema


@dataclass(frozen=True)
class Rearranging:
    """Methods may raise what `RedisStore.errors` translates, and as `RedisStore.send`.

    Attributes:
        rows, keys, form, lacking: of the sink.
        ttl: by table, seconds that a row stays.
    """

    rows: RedisRows
    keys: RowKeys
    form: RowForm
    lacking: LackingRows
    ttl: Mapping[str, int]

    def bring(self, before: TableSchema, now: TableSchema, marks: Marks) -> None:
        """Brings all rows of a table to a new layout."""
        change, was, is_called = layout_change(before, now), before.table, now.table
        if was != is_called:
            for key in self.lacking.keys_of(was):
                self.lacking.add(is_called, self.keys.moved(key, was, is_called))
        for keys in some(self.rows.keys_of(was), READ_AT_ONCE):
            self._bring(keys, (was, is_called), change, marks)
        if was != is_called:
            self.lacking.remove_table(was)

    def _bring(self, keys: Sequence[str], names: tuple[str, str], change: LayoutChange, marks: Marks) -> None:
        was, is_called = names
        by_mark: dict[int, list[tuple[str, Entry]]] = {}
        for key, row in zip(keys, self.rows.rows(was, keys, marks), strict=True):
            moved = self.keys.moved(key, was, is_called)
            if row is not None:
                columns = self.form.rearranged(row.columns, change)
                entry = Entry(moved, "f", row.seq, self.form.parts(columns, is_called))
                by_mark.setdefault(row.mark, []).append((is_called, entry))
            elif moved == key or self.rows.rows(is_called, [moved], marks)[0] is None:  # else SCAN told its key twice
                self.rows.forget(key)
                if configured_as(is_called, self.ttl) not in self.ttl:  # it has not expired: somebody wrote into it
                    self.lacking.add(is_called, moved)
        for mark, entries in by_mark.items():
            self.rows.send(entries, Marks(mark, marks.log_generation), None)
        if was != is_called:
            for key in keys:
                self.rows.forget(key)


__all__ = ["Rearranging"]
