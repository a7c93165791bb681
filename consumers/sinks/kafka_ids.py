"""The ids of the schemas that records name: those that the relay tells, or a configured registry's.

Each is given once, when the first row of its layout comes, and stands in PREFIX.checkpoint from that row's transaction
on. A registry is asked again by each process that goes on with a layout: what it says has to be what records name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from walbus.consumers.registered_ids import RegisteredIds
from walbus.consumers.sinks.kafka_state import KnownLayout
from walbus.schema import TableSchema
from walbus.topics import TopicNames
from walbus.topics.catalog import END_KEYS, END_VALUES, KINDS, Family, text_of


class LayoutIds(ABC):
    """`walbus.topics.SchemaIds` of the layouts that came to the sink.

    Args:
        layouts: those that came before; `add` puts more there.
    """

    def __init__(self, layouts: dict[int, KnownLayout]) -> None:
        self._layouts = layouts

    def forget(self) -> None:
        """Forgets all layouts."""
        self._layouts.clear()

    def add(self, layout: TableSchema, log_generation: int) -> KnownLayout:
        """Gives a layout its ids.

        Raises:
            SinkUnavailable, SinkRefused: of a registry, as `RegisteredIds.rows`.
        """
        keys = self._keys_of(layout) if layout.key_indexes else None
        known = KnownLayout(layout, log_generation, self._rows_of(layout), keys)
        self._layouts[layout.id] = known
        return known

    @abstractmethod
    def _rows_of(self, layout: TableSchema) -> int:
        """The id of the schema of the rows of a layout that came just now."""

    @abstractmethod
    def _keys_of(self, layout: TableSchema) -> int:
        """Of its keys."""

    def rows(self, layout: TableSchema) -> int:
        """The id of the schema of a layout's rows; KeyError for one that was not added."""
        return self._known(layout).rows

    def keys(self, layout: TableSchema) -> int:
        """The id of the schema of a layout's keys; KeyError for one that was not added, or has no key."""
        keys = self._known(layout).keys
        if keys is None:
            raise KeyError(layout.id)
        return keys

    def _known(self, layout: TableSchema) -> KnownLayout:
        return self._layouts[layout.id]

    @property
    @abstractmethod
    def ends(self) -> tuple[int, int]:
        """The ids of the schemas of a transaction's end."""


class FirstLayoutIds(LayoutIds):
    """Where the relay is the registry, for who has not read the log from its beginning.

    A schema has the number of the first layout with it that came here: the relay gives the same schema for that. What
    came is kept, so a key's bytes stay what they are.

    Args:
        names: of the topics.
        family: of their schemas.
        layouts: those that came before; `add` puts more there.
    """

    def __init__(self, names: TopicNames, family: Family, layouts: dict[int, KnownLayout]) -> None:
        super().__init__(layouts)
        self._names, self._family = names, family
        self._by_text: dict[tuple[str, int, str], int] = {}
        for known in layouts.values():
            self._note(known)

    def forget(self) -> None:
        """See `LayoutIds.forget`."""
        super().forget()
        self._by_text.clear()

    def add(self, layout: TableSchema, log_generation: int) -> KnownLayout:
        """See `LayoutIds.add`; raises nothing."""
        known = super().add(layout, log_generation)
        self._note(known)
        return known

    def _note(self, known: KnownLayout) -> None:
        self._by_text.setdefault(self._place(known.layout, self._family.values), known.rows)
        if known.keys is not None:
            self._by_text.setdefault(self._place(known.layout, self._family.keys), known.keys)

    def _rows_of(self, layout: TableSchema) -> int:
        return self._number(layout, self._family.values)

    def _keys_of(self, layout: TableSchema) -> int:
        return self._number(layout, self._family.keys)

    def _number(self, layout: TableSchema, kind: int) -> int:
        return self._by_text.get(self._place(layout, kind), layout.id * KINDS + kind)

    def _place(self, layout: TableSchema, kind: int) -> tuple[str, int, str]:
        family = self._family
        form = family.value_form(layout) if kind == family.values else family.key_form(layout)
        return self._names.of_table(layout.namespace, layout.name), kind, text_of(form)

    @property
    def ends(self) -> tuple[int, int]:
        """The ids of the schemas of a transaction's end."""
        return END_KEYS, END_VALUES


class RegistryLayoutIds(LayoutIds):
    """Where a registry is configured: see `RegisteredIds` for what it may say, and what becomes of it.

    Args:
        registered: the registry.
        layouts: those that came before, with the ids that their records name; `add` puts more there.
    """

    def __init__(self, registered: RegisteredIds, layouts: dict[int, KnownLayout]) -> None:
        super().__init__(layouts)
        self._registered = registered
        self._confirmed: dict[int, KnownLayout] = {}

    def _rows_of(self, layout: TableSchema) -> int:
        return self._registered.rows(layout)

    def _keys_of(self, layout: TableSchema) -> int:
        return self._registered.keys(layout)

    def _known(self, layout: TableSchema) -> KnownLayout:
        known = self._layouts[layout.id]
        if self._confirmed.get(layout.id) is not known:
            self._registered.confirm(known.layout, known.rows, known.keys)
            self._confirmed[layout.id] = known
        return known

    @property
    def ends(self) -> tuple[int, int]:
        """The ids of the schemas of a transaction's end; raises as `LayoutIds.add`."""
        return self._registered.ends
