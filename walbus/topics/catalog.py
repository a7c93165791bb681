"""Subjects, versions and ids: a schema registry that is made of a log's layouts, and of nothing else.

The id of a schema is told by the number of the layout that had it first, so it is the same after a restart, at every
relay that copies the log, and for whoever writes topics of it, with nothing to store or to agree on:

    id = 8 * layout + kind        kind 0: rows, 1: keys; 2: Debezium's envelopes, 3: their keys
                                  of layout 0: 1 and 2, keys and values of transactions' ends

Whoever writes topics and has not read the log from its beginning knows the first layout that came to it instead; that
one's number gives the same schema.

A layout whose rows, or keys, have a schema that the topic has already is that version. So a column that comes gives
the topic's values a new version and its keys none: their bytes, which hold the id, stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

import msgspec

from walbus.schema import TableSchema
from walbus.topics.ends import END_KEY, END_VALUE
from walbus.topics.envelope import envelope_form, envelope_key_form
from walbus.topics.forms import Json, key_form, row_form
from walbus.topics.names import TopicNames, key_subject, value_subject

KINDS: Final = 8
ROWS: Final = 0
KEYS: Final = 1
ENVELOPES: Final = 2
ENVELOPE_KEYS: Final = 3
END_KEYS: Final = 1  #: of layout 0, as the next one
END_VALUES: Final = 2


@dataclass(frozen=True, slots=True)
class Registered:
    """A schema under a subject.

    Attributes:
        subject: whose version it is.
        version: from 1.
        id: of the schema.
        text: the schema as JSON.
        table: the table's schema and name; None for what is of no table.
    """

    subject: str
    version: int
    id: int
    text: str
    table: tuple[str, str] | None


class Family(NamedTuple):
    """The schemas of the topics that have one format.

    Attributes:
        values: kind of those of values.
        keys: of those of keys.
        value_form: a layout's schema of values.
        key_form: of keys.
    """

    values: int
    keys: int
    value_form: Callable[[TableSchema], Json]
    key_form: Callable[[TableSchema], Json]


def row_family() -> Family:
    """Of topics whose values are rows."""
    return Family(ROWS, KEYS, row_form, key_form)


def envelope_family(prefix: str) -> Family:
    """Of topics with Debezium's envelope, whose schemas have the prefix in their names."""
    return Family(
        ENVELOPES,
        ENVELOPE_KEYS,
        lambda layout: envelope_form(layout, prefix),
        lambda layout: envelope_key_form(layout, prefix),
    )


class Catalog:
    """The schemas of a log's layouts. Layouts come in the order of their numbers; not thread-safe.

    Subjects list the schemas of rows. What format a topic has is not known here: those of envelopes are found by their
    ids, and as versions of the same subjects.

    Args:
        names: of the topics.
        layouts: the first ones.

    Attributes:
        last: number of the last layout; 0 before the first.
    """

    def __init__(self, names: TopicNames, layouts: Iterable[TableSchema] = ()) -> None:
        self._names = names
        self._subjects: dict[str, list[Registered]] = {}
        self._enveloped: dict[str, list[Registered]] = {}
        self._envelopes = envelope_family(names.prefix)
        self._by_text: dict[tuple[str, str], Registered] = {}
        self._by_id: dict[int, Registered] = {}
        self._of_layout: dict[tuple[int, int], Registered] = {}
        self.last = 0
        ends = names.transactions
        self._enter(key_subject(ends), (0, END_KEYS), END_KEY, None)
        self._enter(value_subject(ends), (0, END_VALUES), END_VALUE, None)
        for layout in layouts:
            self.add(layout)

    def add(self, layout: TableSchema) -> None:
        """Takes the next layout.

        Raises:
            ValueError: its number is not above the last one's.
        """
        if layout.id <= self.last:
            raise ValueError(f"layout {layout.id} comes behind {self.last}")
        self.last = layout.id
        table = layout.namespace, layout.name
        topic = self._names.of_table(*table)
        self._enter(value_subject(topic), (layout.id, ROWS), row_form(layout), table)
        other = self._envelopes
        self._enter(value_subject(topic), (layout.id, other.values), other.value_form(layout), table)
        if layout.key_indexes:
            self._enter(key_subject(topic), (layout.id, KEYS), key_form(layout), table)
            self._enter(key_subject(topic), (layout.id, other.keys), other.key_form(layout), table)

    def _enter(self, subject: str, place: tuple[int, int], form: Json, table: tuple[str, str] | None) -> None:
        text = text_of(form)
        known = self._by_text.get((subject, text))
        if known is None:
            family = self._enveloped if place[0] and place[1] in {ENVELOPES, ENVELOPE_KEYS} else self._subjects
            versions = family.setdefault(subject, [])
            number = place[0] * KINDS + place[1]
            known = Registered(subject, len(versions) + 1, number, text, table)
            versions.append(known)
            self._by_text[subject, text] = known
            self._by_id[number] = known
        self._of_layout[place] = known

    @property
    def subjects(self) -> Mapping[str, list[Registered]]:
        """The versions of each subject, in their order."""
        return self._subjects

    def by_id(self, number: int) -> Registered | None:
        """The schema with an id, also with that of a later layout that has the same one; None if there is none."""
        return self._by_id.get(number) or self._of_layout.get(divmod(number, KINDS))

    def like(self, subject: str, form: object) -> Registered | None:
        """The version of a subject that is this schema, however its text is laid out; None if none is."""
        versions = (*self._subjects.get(subject, ()), *self._enveloped.get(subject, ()))
        return next((one for one in versions if msgspec.json.decode(one.text) == form), None)

    def rows_of(self, layout: int) -> Registered:
        """The schema of a layout's rows; KeyError for a layout that was not added."""
        return self._of_layout[layout, ROWS]

    def keys_of(self, layout: int) -> Registered:
        """The schema of a layout's keys; KeyError for a layout that was not added, or has no key."""
        return self._of_layout[layout, KEYS]


class LogIds:
    """`walbus.topics.records.SchemaIds` where the relay is the registry.

    Args:
        catalog: of the log.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def rows(self, layout: TableSchema) -> int:
        """The id of the schema of a layout's rows; KeyError for one that the catalog lacks."""
        return self._catalog.rows_of(layout.id).id

    def keys(self, layout: TableSchema) -> int:
        """The id of the schema of a layout's keys; KeyError likewise."""
        return self._catalog.keys_of(layout.id).id

    @property
    def ends(self) -> tuple[int, int]:
        """The ids of the schemas of a transaction's end."""
        return END_KEYS, END_VALUES


def text_of(form: Json) -> str:
    """A schema's text as a registry has it."""
    return msgspec.json.encode(form).decode()
