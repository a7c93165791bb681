"""Where the rows of a consumer lie: by one template for all tables, or by a table's own. No connection.

`key = "{table}:{key}"` is that of all tables, and `keys."public.people" = "person:{id}"` one of a single table: it
names the columns of the table's key, each once, and so a key is one row's. Rows of a table are looked for by what its
keys begin and end with. So no two tables may have keys that begin and end alike: what is known of them is compared when
the sink is opened, and each table when it turns up.

A change tells its key's values in the order of the layout that it is of, which need not be the table's present one:
after a crash, and behind a snapshot, changes of before another layout come again.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from itertools import combinations
from typing import Final, TypeAlias

from walbus.consumers.sinks.layout import sources
from walbus.consumers.sinks.redis_rows import KeyTemplate, escaped, globbed, unescaped
from walbus.keys import key_texts
from walbus.schema import TableSchema

_COLUMN: Final = re.compile(r"\{([^{}]*)\}")

#: What is wrong, and how to mend it.
Misfit: TypeAlias = tuple[str, str]

_OWN: Final = "walbus:"  # what keys begin with that sinks have for themselves

#: Of a row that would lie there: a value that its key begins with says so.
OWN_KEY: Final[Misfit] = (
    f"the key of a row would begin with {_OWN}, as the sinks' own keys do",
    "let the sink's key begin with something else than a value of the row",
)


def require_not_own(template: str) -> None:
    """Raises ValueError: what a template makes begins as the sinks' own keys do."""
    if template.startswith(_OWN):
        raise ValueError(f"keys that begin with {_OWN} are the sinks' own")


class TableKeyTemplate:
    """Where the rows of one table lie, as `person:{id}`: the columns of its key in braces.

    Between two columns stands a colon, and values of several columns are written without one (as %3A).

    Raises:
        ValueError: it names no column, or one twice; nothing keeps two apart; or it begins as the sinks' own keys do.
    """

    def __init__(self, template: str, prefix: str = "") -> None:
        self._literals = _COLUMN.split(template)[::2]
        self.columns = tuple(_COLUMN.findall(template))
        if not self.columns or len({*self.columns, ""}) <= len(self.columns):
            raise ValueError("a table's own key needs the columns of its key in braces, each once, such as person:{id}")
        if not all(":" in between for between in self._literals[1:-1]):
            raise ValueError("between two columns a table's own key needs a colon: values are written without one")
        require_not_own(template)
        self._literals[0] = prefix + self._literals[0]

    @property
    def around(self) -> tuple[str, str]:
        """What all keys begin and end with."""
        return self._literals[0], self._literals[-1]

    def row_key(self, values: Mapping[str, str]) -> str:
        """The key of a row, by the values of its key's columns."""
        several = len(self.columns) > 1
        texts = [escaped(values[name]) if several else values[name] for name in self.columns]
        return self._literals[0] + "".join(
            text + literal for text, literal in zip(texts, self._literals[1:], strict=True)
        )

    def values(self, row_key: str) -> dict[str, str] | None:
        """The inverse of `row_key`; None of a key that it does not make."""
        pattern = "(.*)".join(re.escape(literal) for literal in self._literals)
        found = re.fullmatch(pattern, row_key, re.DOTALL)
        if found is None:
            return None
        texts = found.groups()
        values = dict(zip(self.columns, map(unescaped, texts) if len(texts) > 1 else texts, strict=True))
        return values if self.row_key(values) == row_key else None

    @property
    def pattern(self) -> str:
        """A pattern for SCAN that matches every row."""
        return "*".join(globbed(literal) for literal in self._literals)


class RowKeys:
    """The keys of all tables' rows.

    Args:
        general: the template of tables that have none of their own.
        own: templates, by table.
        prefix: what stands before all of them.

    Raises:
        ValueError: a template is none, or rows of two tables could have one key.
    """

    def __init__(self, general: str, own: Mapping[str, str], prefix: str = "") -> None:
        self._general, self._prefix = KeyTemplate(prefix + general), prefix
        self._own = {table: TableKeyTemplate(template, prefix) for table, template in own.items()}
        self._known: dict[str, TableSchema] = {}  # by table with its own: its present layout
        self._names: dict[tuple[str, int], tuple[str, ...]] = {}  # by such a table and a layout: the columns of its key
        for table, other in combinations(self._own, 2):
            if self._alike(table, other):
                raise ValueError(f"keys of {table} and of {other} begin and end alike, and could be one key")

    def know(self, layout: TableSchema) -> None:
        """A table has this key; told before any row of it."""
        if layout.table in self._own:
            self._known[layout.table] = layout
            self._names = {place: names for place, names in self._names.items() if place[0] != layout.table}

    def knows(self, table: str) -> bool:
        """Whether keys of a table's rows can be told."""
        return table not in self._own or table in self._known

    def tells(self, table: str, layout: TableSchema | None) -> bool:
        """Whether changes of this layout, or of one before the present one, say where their rows lie now.

        They do not where the table's key was of other columns then; its rows are read again, or told again, since.
        """
        own = self._own.get(table) if self._own else None
        return own is None or (self.knows(table) and set(own.columns) == set(self._names_of(table, layout)))

    def row_key(self, table: str, key: bytes, layout: TableSchema | None = None) -> str:
        """The key of a row, as a change of this layout, which `tells` it, has it; None: of the present layout."""
        own = self._own.get(table) if self._own else None
        if own is None:
            return self._general.row_key(table, key)
        return own.row_key(dict(zip(self._names_of(table, layout), key_texts(key), strict=True)))

    def _names_of(self, table: str, layout: TableSchema | None) -> tuple[str, ...]:
        """What the columns of a layout's key are called in the table's present one."""
        present = self._known[table]
        layout = layout or present
        names = self._names.get((table, layout.id))
        if names is None:
            called = {index: present.columns[place].name for place, index in enumerate(sources(layout, present))}
            names = tuple(called.get(index, layout.columns[index].name) for index in layout.key_indexes)
            self._names[table, layout.id] = names
        return names

    def is_a_sinks_own(self, row_key: str) -> bool:
        """Whether a row's key may be one that a sink has for itself."""
        return row_key.startswith(_OWN, len(self._prefix))

    def texts(self, row_key: str, table: str, columns: int) -> tuple[str, ...]:
        """The values of a row's key, of so many columns; all of it as one text if it is no such key."""
        own = self._own.get(table)
        if own is None:
            return self._general.texts(row_key, table, columns)
        values = own.values(row_key)
        return (row_key,) if values is None else tuple(values[name] for name in _names(self._known[table]))

    def moved(self, row_key: str, before: str, now: str) -> str:
        """The key of a row once its table is called otherwise, by the template for all tables."""
        if before == now:
            return row_key
        if before in self._own:
            return self._general.key_of(now, self.texts(row_key, before, len(self._known[before].key_indexes)))
        return self._general.moved(row_key, before, now)

    def pattern(self, table: str) -> str:
        """A pattern for SCAN that matches every row of a table (and perhaps others')."""
        own = self._own.get(table)
        return self._general.pattern(table) if own is None else own.pattern

    def any_pattern(self) -> str:
        """A pattern for SCAN that matches every row of tables without a template of their own (and perhaps others')."""
        return self._general.any_pattern()

    def table_of(self, key: str) -> str | None:
        """The table that a key names by the template for all tables; None if it has another form."""
        table = self._general.table_of(key)
        return None if table in self._own else table

    @property
    def own(self) -> Collection[str]:
        """The tables that have a template of their own."""
        return self._own.keys()

    def tables_of(self, key: str) -> list[str]:
        """The tables of which a row may lie under a key."""
        named = self.table_of(key)
        own = [table for table, template in self._own.items() if template.values(key) is not None]
        return own if named is None else [named, *own]

    def alike(self, table: str, others: Sequence[str]) -> str | None:
        """Of other tables, the first one whose rows could have keys of this one's."""
        return next((other for other in others if other != table and self._alike(table, other)), None)

    def misfit(self, layout: TableSchema, known: TableSchema | None, others: Sequence[str]) -> Misfit | None:
        """Why rows of a layout cannot have the keys that they are to have; None if they can.

        Args:
            layout: that they have from now on.
            known: that those that are stored have.
            others: the other tables that there are.
        """
        own = self._own.get(layout.table)
        if known is not None and known.table != layout.table and (own or known.table in self._own):
            what = f"{known.table} is called {layout.table} now, and one of the two has a template in keys"
            return what, "let a consumer with another name and other keys begin with the new one"
        if own is not None and (wrong := _wrong(own, layout)) is not None:
            return wrong, "correct it in keys; let a consumer with another name and other keys begin with it"
        other = self.alike(layout.table, [*others, *self._own])
        if other is not None:
            what = f"keys of its rows and of those of {other} begin and end alike, and could be one key"
            return what, "let the key in keys begin with something else"
        return None

    def _alike(self, table: str, other: str) -> bool:
        return _are_alike(self._around(table), self._around(other))

    def _around(self, table: str) -> tuple[str, str]:
        own = self._own.get(table)
        return self._general.around(table) if own is None else own.around


def _are_alike(one: tuple[str, str], other: tuple[str, str]) -> bool:
    """Whether a key can begin and end as both do."""
    (begins, ends), (begins_too, ends_too) = one, other
    return (begins.startswith(begins_too) or begins_too.startswith(begins)) and (
        ends.endswith(ends_too) or ends_too.endswith(ends)
    )


def _wrong(own: TableKeyTemplate, layout: TableSchema) -> str | None:
    names, columns = _names(layout), {column.name for column in layout.columns}
    unknown = [name for name in own.columns if name not in columns]
    if unknown:
        return f"the template of this table's keys names {', '.join(unknown)}, which is no column of it (any more)"
    outside = [name for name in own.columns if name not in names]
    if outside:
        told = ", ".join(outside)
        return f"the template of this table's keys names {told}, which is not in its key: a delete does not tell it"
    lacks = [name for name in names if name not in own.columns]
    if lacks:
        return f"the template of this table's keys lacks {', '.join(lacks)} of its key, so that rows would share a key"
    return None


def _names(layout: TableSchema) -> tuple[str, ...]:
    return tuple(layout.columns[index].name for index in layout.key_indexes)
