"""What the catalog says of the published tables at one moment, as far as it decides which rows the log stands for.

This is what `walbus.capture.silent` compares, and what `walbus.capture.remembered` keeps over restarts. It holds,
beside names and types, whatever betrays a statement that is over already: the identity of catalog rows that are made
anew (OIDs, xmin) and of the files that hold the rows (relfilenode). Names and numbers, never a row's value. Pure.
"""

from __future__ import annotations

import msgspec

from walbus.capture.layouts import FIRST_ANNOUNCED_TYPE, type_name
from walbus.errors import ProtocolError
from walbus.schema import Column, ReplicaIdentity, TableSchema


class ColumnState(msgspec.Struct, frozen=True, array_like=True):
    """One column of a table.

    Attributes:
        number: `attnum`, which stays when the column is renamed.
        name: unquoted.
        type: `atttypid`, a domain's own.
        typmod: `atttypmod`.
        in_key: belongs to the replica identity's index; under FULL to the primary key.
        in_primary: belongs to the primary key.
        sent: pgoutput sends it (column list, generated columns).
        missing: rows from before the column was added do not hold its default (`atthasmissing`).
        xmin: of the pg_attribute row: who changed it last.
    """

    number: int
    name: str
    type: int
    typmod: int
    in_key: bool
    in_primary: bool
    sent: bool
    missing: bool
    xmin: int


class FileState(msgspec.Struct, frozen=True, array_like=True):
    """What holds rows of a published table: the table itself, or a partition that is published as its root.

    Attributes:
        oid: of the relation.
        filenode: `relfilenode`; 0 for a partitioned table.
        toast: OID of its TOAST table; ALTER TABLE makes another one when it rewrites, VACUUM FULL and CLUSTER do not.
        inherited: xmin of the pg_inherits row that makes it a partition; 0 for a table that is none.
        made_here: it was made as the partition that it is (CREATE TABLE … PARTITION OF), and not attached.
        columns: (attnum, xmin, atthasmissing) of each column.
    """

    oid: int
    filenode: int
    toast: int
    inherited: int
    made_here: bool
    columns: tuple[tuple[int, int, bool], ...]


class TableState(msgspec.Struct, frozen=True, kw_only=True):
    """A table as the publication has it.

    Attributes:
        oid, namespace, name, kind, identity: of `pg_class`.
        listed: OID of its own entry in the publication (pg_publication_rel); 0 if it is in by other ways.
        by_schema: OID of its schema's entry (pg_publication_namespace); 0 without one.
        row_filter: text of the publication's WHERE, None without one.
        fresh: its file is the one that it was made with, in the schema that it was made in.
        columns: all, by number.
        files: where its rows lie.
        entries: OIDs of all entries of the publication that take it in: its own, its schema's, and those of the
            partitioned tables above it; None where an older version remembered it.
        attached_above: xmin of the pg_inherits rows of those tables above it that were attached, the nearest first.
        former: numbers of columns that were sent, by names that no column has now; of what was remembered alone.
        row_type_xmin: of the pg_type row that is made with the table, which another name, schema or owner changes; 0
            where an older version remembered it.
    """

    oid: int
    namespace: str
    name: str
    kind: str
    identity: str
    listed: int
    by_schema: int
    row_filter: str | None
    fresh: bool
    columns: tuple[ColumnState, ...]
    files: tuple[FileState, ...]
    entries: tuple[int, ...] | None = None
    attached_above: tuple[int, ...] = ()
    former: dict[str, int] = msgspec.field(default_factory=dict)
    row_type_xmin: int = 0

    @property
    def sent_names(self) -> dict[str, int]:
        """Numbers of the columns that are sent, by name."""
        return {column.name: column.number for column in self.columns if column.sent}

    @property
    def table(self) -> str:
        """`namespace.name`."""
        return f"{self.namespace}.{self.name}"

    @property
    def primary_key(self) -> frozenset[str]:
        """Names of the primary key's columns."""
        return frozenset(column.name for column in self.columns if column.in_primary)


class TypeState(msgspec.Struct, frozen=True):
    """A type that columns use, or that such a type is made of.

    Attributes:
        namespace, name: of `pg_type`.
        base: the type under a domain (one step down); 0 for what is none.
        parts: OIDs of the types that its values are made of: elements, subtypes, attributes.
        members: of an enum, label by OID of the pg_enum row; of a composite, type OID by attribute number.
        labels: it is an enum: another member changes no value.
    """

    namespace: str
    name: str
    base: int
    parts: tuple[int, ...]
    members: dict[str, str]
    labels: bool


class PublicationState(msgspec.Struct, frozen=True):
    """The publication itself.

    Attributes:
        oid, xmin, owner: of its row.
        all_tables: FOR ALL TABLES.
        operations: what it publishes, of insert, update, delete and truncate.
        via_root: partitions are published as their root.
        generated: `pubgencols` (18), else empty.
        entries: OIDs of its rows in pg_publication_rel and pg_publication_namespace; empty where an older version
            remembered it.
    """

    oid: int
    xmin: int
    owner: int
    all_tables: bool
    operations: tuple[str, ...]
    via_root: bool
    generated: str
    entries: tuple[int, ...] = ()


class CatalogState(msgspec.Struct, frozen=True):
    """Everything of one moment.

    Attributes:
        publication: the publication.
        tables: its tables by OID.
        types: types in use by OID, those that every database has left out.
        others: OIDs of tables that exist and are not published.
    """

    publication: PublicationState
    tables: dict[int, TableState]
    types: dict[int, TypeState]
    others: frozenset[int]

    def types_within(self, oid: int) -> frozenset[int]:
        """A type and all that its values are made of, without the built-in ones."""
        found: set[int] = set()
        waiting = [oid]
        while waiting:
            type_ = self.types.get(waiting.pop())
            if type_ is not None:
                new = {part for part in (type_.base, *type_.parts) if part in self.types} - found
                found |= new
                waiting += new
        return frozenset(found | ({oid} & self.types.keys()))

    def layout(self, table: TableState, builtin: dict[int, str]) -> TableSchema:
        """The unnumbered layout (id 0), as pgoutput's Relation message would give it.

        Args:
            table: one of `tables`.
            builtin: names of the types that every database has, by OID.

        Raises:
            ProtocolError: a type was dropped in between; the next look sees the whole.
        """
        columns = [
            Column(column.name, column.type, self._type_name(table, column, builtin), column.typmod, column.in_key)
            for column in table.columns
            if column.sent
        ]
        identity = ReplicaIdentity(table.identity)
        return TableSchema(0, table.oid, table.namespace, table.name, identity, tuple(columns))

    def _type_name(self, table: TableState, column: ColumnState, builtin: dict[int, str]) -> str:
        """Pgoutput names the base type of a domain, however many domains lie between."""
        oid = column.type
        while oid >= FIRST_ANNOUNCED_TYPE:
            type_ = self.types.get(oid)
            if type_ is None:
                break
            if not type_.base:
                return type_name(type_.namespace, type_.name)
            oid = type_.base
        name = builtin.get(oid)
        if name is None:
            raise ProtocolError(f"column {column.name!r} has type {oid}, which is not known", where=table.table)
        return name
