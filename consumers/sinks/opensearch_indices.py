"""The indices of a consumer's tables: made by the tables' layouts, found again by their aliases, and kept fitting.

What the sink has to know of an index stands in the `_meta` of its mapping, and comes and goes with it: the table's
layout, how many logs it has seen (`opensearch_documents.version_of`), and the seq of its last TRUNCATE.

A column that is added is added to the mapping. Where columns are renamed, dropped or of another type, the documents are
copied into another index, to which the alias then moves in one step: a search finds the old ones or the new ones.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import replace
from typing import Any

import msgspec

from walbus.consumers.checkpoint import Marks
from walbus.consumers.sinks.layout import LayoutChange, layout_change
from walbus.consumers.sinks.opensearch_bulks import Found, Place, Write, fields_of
from walbus.consumers.sinks.opensearch_documents import (
    LACKS,
    LOGS_AT_MOST,
    MARK,
    OUTRANKED,
    Mapped,
    field_name,
    fitting_row,
    number_in,
    properties_of,
)
from walbus.consumers.sinks.opensearch_gathered import GatheredRows
from walbus.consumers.sinks.opensearch_names import IndexNames, number_of
from walbus.consumers.sinks.opensearch_reading import all_documents
from walbus.consumers.sinks.opensearch_server import NOT_FOUND, IndexGone, OpenSearchServer, path_of
from walbus.consumers.sinks.opensearch_table_index import (
    ASIDE,
    FENCED,
    LIVE,
    Action,
    FoundIndex,
    IndexChoice,
    TableIndex,
    added,
    deleted,
    note_in,
    removed,
)
from walbus.errors import SinkRefused, SinkUnavailable
from walbus.schema import TableSchema


class TableIndices:
    """All of one consumer.

    Args:
        server: that has them.
        consumer: its name.
        choice: how they are made.
        rows: sends what is gathered before documents are copied.
        side: LIVE, or NEW for those of a copy.
        changing: is called before an alias is given or moved; raises SinkUnavailable if it may not be now.
    """

    def __init__(  # noqa: PLR0913, PLR0917  # what it brings together
        self,
        server: OpenSearchServer,
        consumer: str,
        choice: IndexChoice,
        rows: GatheredRows,
        side: str,
        changing: Callable[[], None],
    ) -> None:
        self._server, self._consumer, self._choice, self._rows = server, consumer, choice, rows
        self._side, self._changing = side, changing
        self._names = IndexNames(server, choice.state_index)
        self._by_oid: dict[int, TableIndex] = {}

    def load(self, aliases: tuple[str, ...]) -> bool:
        """Finds the indices of some aliases, as `aliases` gives them; tells whether all are there.

        Raises:
            SinkRefused: one belongs to somebody else.
        """
        found = [self._find(alias + self._side) for alias in aliases]
        self._by_oid = {index.layout.oid: index for index in found if index is not None}
        return None not in found

    def all(self) -> list[TableIndex]:
        """Those that are known."""
        return list(self._by_oid.values())

    def incomplete(self, lacking: Container[str]) -> list[str]:
        """Tables that have to be read again: their documents lack values, or lie under other ids than the key gives.

        One whose index is put aside has no name to be read by: it counts again when a change tells its name.

        Args:
            lacking: indices with documents that lack a value.
        """
        found = (index for index in self._by_oid.values() if index.reread or index.name in lacking)
        return sorted({index.layout.table for index in found if not index.is_aside})

    @property
    def aliases(self) -> tuple[str, ...]:
        """Their aliases, a copy's as they are once it is the live one."""
        return tuple(sorted(index.alias.removesuffix(self._side) for index in self._by_oid.values()))

    def known(self, oid: int) -> TableIndex | None:
        """The index of a table by its OID."""
        return self._by_oid.get(oid)

    def named(self, table: str) -> TableIndex | None:
        """The index of a table by its name: of several, one of which is put aside, the one whose layout is newest."""
        called_so = [index for index in self._by_oid.values() if index.layout.table == table]
        return max(called_so, key=lambda index: (index.log_generation, index.layout.id), default=None)

    def fitting(self, layout: TableSchema, marks: Marks) -> TableIndex:
        """The table's index, once it has been brought to `layout` if that is newer, and to the log of `marks`.

        Raises:
            SinkUnavailable, SinkRefused
        """
        known = self._by_oid.get(layout.oid)
        if known is not None and marks.log_generation <= known.log_generation and known.layout.id >= layout.id:
            return known
        self._rows.flush()
        alias = self._choice.template.alias(layout.table) + self._side
        if known is None or marks.log_generation > known.log_generation:
            known = self._of_name(alias, layout, marks)
        if known is None:
            routing = self._choice.routing.get(layout.table)
            made = TableIndex(alias, "", layout, marks.log_generation, routing=routing)
            return self._remember(self._create(made))
        return self._remember(self._fit(known, layout, alias, marks))

    def emptied(self, index: TableIndex, seq: int) -> None:
        """A TRUNCATE was written."""
        self._remember(self._stored(replace(index, floor=max(index.floor, seq))))

    def read_again(self, index: TableIndex, *, again: bool = False) -> None:
        """The table was read from its beginning, and swept; whether it has to be once more."""
        index = self._by_oid.get(index.layout.oid, index)  # it may have been outranked meanwhile
        if index.reread is not again:
            self._remember(self._stored(replace(index, reread=again)))

    def outrank(self, index: TableIndex, highest: int) -> None:
        """Whatever is stored is older than what comes from now on.

        Args:
            index: of the table.
            highest: version of its documents; one in the upper half of all is none of ours, and is left, since the
                numbers above it are for the logs to come.
        """
        above = number_in(highest)
        if index.number < above < OUTRANKED:
            index = replace(index, number=above)
        self._remember(self._stored(self._numbered(index)))

    # One index

    def _remember(self, index: TableIndex) -> TableIndex:
        self._by_oid = {oid: other for oid, other in self._by_oid.items() if other.name != index.name}
        self._by_oid[index.layout.oid] = index
        return index

    def _of_name(self, alias: str, layout: TableSchema, marks: Marks) -> TableIndex | None:
        """The index that a table of an unknown OID goes on with: OIDs are the same in one log only."""
        found = self._find(alias)
        if found is None or found.layout.oid == layout.oid or found.log_generation < marks.log_generation:
            return found
        self._put_aside(found)
        return None

    def _find(self, alias: str) -> TableIndex | None:
        answer = self._server.ask("GET", f"/{path_of(alias)}", accepted=[NOT_FOUND])
        if answer.status == NOT_FOUND:
            return None
        indices = self._server.told(answer, dict[str, FoundIndex])
        if not indices:
            raise SinkUnavailable("the search server tells nothing of an index", where=f"{self._server.where}, {alias}")
        name, told = next(iter(indices.items()))
        document = told.meta
        if document is None and name == alias and self._server.remove_if_empty(name):
            return None
        if len(indices) > 1 or document is None or document.get("consumer") != self._consumer:
            raise SinkRefused(
                "there is an index of this name that is not this consumer's",
                where=f"{self._server.where}, {alias}",
                mend="choose another name for the indices (index), or remove that one",
            )
        note = msgspec.structs.asdict(note_in(name, told))
        index = TableIndex(alias, name, writer=self._choice.writers + name, **note)
        _require_documents(name, told)
        self._check(index, told.settings.index)
        self._see_to_writer(index, told)
        return index

    def _see_to_writer(self, index: TableIndex, told: FoundIndex) -> None:
        """An index of before gets the alias that it is written by; one that had it gets it from who took it away."""
        has_it, had_it = index.writer in told.aliases, FENCED in (told.meta or {})
        if had_it and not has_it:
            raise IndexGone(
                f"an index lacks the alias {index.writer}, which a rebuild takes away for a moment only",
                where=f"{self._server.where}, {index.name}",
            )
        if not has_it:
            self._server.clear([index.writer])
            self._move([self._written_by(index)])
        if not had_it:
            self._stored(index)

    def _check(self, index: TableIndex, settings: Mapping[str, Any]) -> None:
        """Sees to what versions and checkpoints rest on, and that an index that is read is not hidden."""
        name = index.name
        if settings.get("translog", {}).get("durability", "request").lower() != "request":
            raise SinkRefused(
                "a crash of the server could lose documents that its checkpoint counts as written",
                where=f"{self._server.where}, {name}",
                mend="set index.translog.durability to request",
            )
        wanted = f"{self._choice.tombstone_seconds}s"
        if settings.get("gc_deletes") != wanted:
            self._server.ask("PUT", f"/{path_of(name)}/_settings", {"index.gc_deletes": wanted})
        if settings.get("hidden") == "true" and self._side == LIVE and not index.is_aside:
            self._show(index)

    def _show(self, index: TableIndex) -> None:
        """An index that is read is met by wildcards, unless the operator's settings hide it."""
        if not self._choice.settings.get("index.hidden"):
            self._server.hide(index.name, hidden=False)

    def _create(self, index: TableIndex, *, aliased: bool = True) -> TableIndex:
        layout, base = index.layout, index.alias.removesuffix(self._side)
        name = self._names.next(base, self._there(base))
        made = replace(index, name=name, writer=self._choice.writers + name)
        mappings: dict[str, Any] = {
            "dynamic": False,
            "_source": {"enabled": True},
            "_meta": made.meta(self._consumer),
            "properties": properties_of(layout, self._choice.fields.get(layout.table, {})),
        }
        if index.routing is not None:
            mappings["_routing"] = {"required": True}
        settings = {
            "index.mapping.total_fields.limit": 1000 + 3 * len(layout.columns),
            **self._choice.settings,
            "index.gc_deletes": f"{self._choice.tombstone_seconds}s",
            "index.translog.durability": "request",
        } | ({} if self._side == LIVE else {"index.hidden": True})
        aliases = {made.writer: {"is_hidden": True}} if aliased or self._side != LIVE else {}
        if aliased:
            self._changing()
            aliases[made.alias] = {"is_hidden": self._side != LIVE}
        self._server.clear([made.writer])
        body = {"settings": settings, "mappings": mappings, "aliases": aliases}
        self._server.ask("PUT", f"/{path_of(made.name)}", body)
        answer = self._server.ask("GET", f"/{path_of(made.name)}")
        for name, told in self._server.told(answer, dict[str, FoundIndex]).items():
            _require_documents(name, told)
        return made

    def _there(self, base: str) -> list[str]:
        """Names of the indices that are there, or were until now: one that a copy was broken off in is removed.

        That is one of the live side, which have no alias before they are whole.
        """
        path = f"/{path_of(f'{base}~*')}?expand_wildcards=all"
        answer = self._server.ask("GET", path, accepted=[NOT_FOUND])
        if answer.status == NOT_FOUND:
            return []
        found = self._server.told(answer, dict[str, FoundIndex])
        for name, told in found.items():
            if self._side == LIVE and not told.aliases and told.consumer == self._consumer and number_of(base, name):
                self._server.ask("DELETE", f"/{path_of(name)}", accepted=[NOT_FOUND])
        return list(found)

    def _stored(self, index: TableIndex, properties: Mapping[str, Mapped] | None = None) -> TableIndex:
        body = {"_meta": index.meta(self._consumer)} | ({"properties": properties} if properties else {})
        self._server.ask("PUT", f"/{path_of(index.name)}/_mapping", body)
        return index

    # Another layout, another log

    def _fit(self, known: TableIndex, layout: TableSchema, alias: str, marks: Marks) -> TableIndex:
        change = layout_change(known.layout, layout)
        routing = dict(change.renamed).get(known.routing or "", known.routing)
        wanted = replace(known, layout=layout, reread=known.reread or change.rekeyed, routing=routing)
        if marks.log_generation > known.log_generation:
            wanted = self._of_another_log(wanted, marks)
        chosen = self._choice.fields.get(layout.table, {})
        now = properties_of(layout, chosen)
        before = properties_of(known.layout, self._choice.fields.get(known.layout.table, {}))
        if change.renamed or change.dropped or any(now[name] != before[name] for name in now.keys() & before.keys()):
            return self._copied(known, wanted, alias, change)
        stored = self._stored(wanted, {name: field for name, field in now.items() if name not in before})
        return self._moved(stored, alias)

    def _of_another_log(self, index: TableIndex, marks: Marks) -> TableIndex:
        return replace(self._numbered(index), log_generation=marks.log_generation, floor=0)

    def _numbered(self, index: TableIndex) -> TableIndex:
        if index.number + 1 >= LOGS_AT_MOST:
            raise SinkRefused(
                f"this index has seen {LOGS_AT_MOST} logs or repairs, and its versions have no room for another",
                where=f"{self._server.where}, {index.name}",
                mend="`walbus rebuild` makes another one",
            )
        return replace(index, number=index.number + 1)

    def _moved(self, index: TableIndex, alias: str) -> TableIndex:
        """The index under the alias of its table's present name."""
        if index.alias == alias:
            return index
        self._make_room(alias)
        self._move([removed(index.name, index.alias), self._read_by(index.name, alias)])
        moved = replace(index, alias=alias)
        if self._side == LIVE:
            self._show(moved)
        return moved

    def _copied(self, known: TableIndex, wanted: TableIndex, alias: str, change: LayoutChange) -> TableIndex:
        if known.alias != alias:
            self._make_room(alias)
        made = self._create(replace(wanted, alias=alias), aliased=False)
        self._server.refresh([known.name])
        names = {field_name(column.name): column.name for column in known.layout.columns}
        for page in all_documents(self._server, known.name):
            copies = [copy for found in page if (copy := _copy(found, made.name, names, change)) is not None]
            self._server.send(copies)
            if len(copies) < len(page):  # if one was a row before somebody wrote it, the row comes with the others
                made = replace(made, reread=True)
        self._server.drain()
        if made.reread and not wanted.reread:
            self._stored(made)
        self._move([self._read_by(made.name, alias), self._written_by(made), deleted(known.name)])
        self._rows.copied(known.name, made.name)
        return made

    def _make_room(self, alias: str) -> None:
        """Another table is called so now; the one that was is called otherwise, or is no more."""
        other = self._find(alias)
        if other is not None:
            self._put_aside(other)

    def _put_aside(self, index: TableIndex) -> None:
        """Until a change tells its table's present name, an index is out of the way of searches."""
        aside = f"{index.alias.removesuffix(self._side)}{ASIDE}{index.layout.oid}{self._side}"
        self._server.hide(index.name, hidden=True)
        self._move([removed(index.name, index.alias), added(index.name, aside, hidden=True)])
        if index.layout.oid in self._by_oid:
            self._by_oid[index.layout.oid] = replace(index, alias=aside)

    def _read_by(self, name: str, alias: str) -> Action:
        return added(name, alias, hidden=self._side != LIVE)

    def _written_by(self, index: TableIndex) -> Action:
        return added(index.name, index.writer, hidden=True)

    def _move(self, actions: list[Action]) -> None:
        self._changing()
        self._server.move(actions)


def _require_documents(name: str, told: FoundIndex) -> None:
    """Of a document that is not kept as it was written a value that an update leaves out could not be had again."""
    if not told.keeps_documents:
        what = "this index does not keep documents as they are written (_source)"
        mend = "let no index template change _source for it, and delete it: it is made anew"
        raise SinkRefused(what, where=name, mend=mend)


def _copy(found: Found, index: str, names: Mapping[str, str], change: LayoutChange) -> Write | None:
    source = fields_of(found.source)
    if source is None:
        return None
    own = {name: source.pop(name) for name in (MARK, LACKS) if name in source}
    row = fitting_row({names[field]: value for field, value in source.items() if field in names}, change)
    fields = {field_name(column): value for column, value in row.items()} | own
    place = Place(index, found.id, found.routing)
    return Write(place, None, found.version, msgspec.json.encode(fields), even=True)


__all__ = ["TableIndices"]
