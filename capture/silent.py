"""Changes without events: what two looks at the catalog tell of rows that changed, unnamed by the stream. Pure.

pgoutput sends rows that statements write. A statement that changes rows by changing the table, its type, its partitions
or the publication sends nothing for the rows that exist (measured on 14 to 18, `docs/adr/0079-…`). Each leaves a trace:

    trace                                                   statement
    another file, a column's row in pg_attribute too        ALTER TABLE that rewrites: ALTER TYPE … USING, a volatile
                                                            default, a stored generated column, SET EXPRESSION
    a column with atthasmissing                             ADD COLUMN … DEFAULT
    another type, the same file                             ALTER TYPE between types of one storage
    a label or attribute of a type                          ALTER TYPE … RENAME VALUE, ADD ATTRIBUTE, DROP ATTRIBUTE
    the rows of pg_inherits                                 ATTACH, DETACH, DROP of a partition
    the entries in the publication (OIDs), their filter     taken out and put back; a new row filter. An entry may be
                                                            that of a schema, or of a partitioned table above
    its row type's row in pg_type                           out of a published schema and back
    a column that is new, and another file                  ADD COLUMN … DEFAULT, and VACUUM FULL behind it
    columns that are sent and were not                      column list, publish_generated_columns
    a name that another column had                          DROP COLUMN and ADD COLUMN, or names that were swapped
    the publication's row (xmin)                            its operations, publish_via_partition_root
    the replica identity's columns                          another key: rows are known by other names
    published, not published, gone                          the table's life

What leaves the rows alone is told apart. VACUUM FULL, CLUSTER and TRUNCATE (which is an event) give the table another
file, but touch no column; ANALYZE, indexes, privileges, statistics targets and new partitions touch no trace at all.
A table that was attached is asked whether it brought rows (`walbus.capture.attached`).
Where a trace cannot be told apart, the table is named: seeding once too often costs time, and once too seldom rows.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import msgspec

from walbus.capture.definition import CatalogState, ColumnState, FileState, PublicationState, TableState, TypeState

#: Types whose text is the same for the same stored bytes: text and varchar.
_SAME_TEXT = frozenset((25, 1043))


class Reason(enum.Enum):
    """Why a table's rows must be had again; the word stands in the event."""

    PUBLISHED = "published"  #: newly in the publication: rows from before are not in the log
    UNPUBLISHED = "unpublished"  #: no longer in the publication: its changes are in the log no more
    REPUBLISHED = "republished"  #: was out of the publication for a while
    DROPPED = "dropped"  #: the table is gone, and its rows with it
    PARTITIONS = "partitions"  #: a partition came or went with its rows
    REWRITTEN = "rewritten"  #: ALTER TABLE wrote every row anew
    COLUMN_ADDED = "column_added"  #: rows have a column's default that they were never sent with
    RETYPED = "retyped"  #: values have another type without having been written
    TYPE_CHANGED = "type_changed"  #: labels or attributes of a type changed below the values
    COLUMNS_PUBLISHED = "columns_published"  #: columns are sent now that were not
    NAME_TAKEN = "name_taken"  #: a column has the name of another one, which rows from before were sent with
    ROW_FILTER = "row_filter"  #: the publication's WHERE changed
    PUBLICATION = "publication"  #: the publication's options changed
    KEY_CHANGED = "key_changed"  #: rows are known by other columns
    FILE_REPLACED = "file_replaced"  #: perhaps nothing changed: the statement cannot be told


@dataclass(frozen=True, slots=True)
class Reseed:
    """A table whose rows in the log and in whatever was made of it are not those of the source any more.

    Attributes:
        oid: of the table as the log knows it (the root, where partitions are published as their root).
        reason: the first that was found.
        what: all that was found, as text for people.
    """

    oid: int
    reason: Reason
    what: str


_Finding = tuple[Reason, str]


def attached(before: CatalogState, after: CatalogState) -> dict[int, FileState]:
    """Partitions that came to published roots together with attached ones, by OID: whether they brought rows counts."""
    found = {}
    for oid in before.tables.keys() & after.tables.keys():
        came = _came(before.tables[oid], after.tables[oid])
        if any(not file.made_here for file in came):
            found.update({file.oid: file for file in came})
    return found


def differences(before: CatalogState, after: CatalogState, without_rows: Collection[int] = ()) -> tuple[Reseed, ...]:
    """The tables that must be seeded again, by OID.

    Args:
        before: what was known; everything up to it has been told.
        after: what is.
        without_rows: those of `attached` that brought no rows.
    """
    publication = _publication_change(before.publication, after.publication)
    types = _changed_types(before.types, after.types)
    found = []
    for oid in sorted(before.tables.keys() | after.tables.keys()):
        old, new = before.tables.get(oid), after.tables.get(oid)
        if old is not None and new is not None:
            findings = [publication] if publication else []
            findings += _partitions(old, new, without_rows)
            findings += _findings(before, old, after, new, types)
        elif new is not None:
            findings = list(_arrival(before, after, new))
        else:
            findings = [_departure(after, oid)]
        if findings:
            what = "; ".join(dict.fromkeys(text for _, text in findings))
            found.append(Reseed(oid, findings[0][0], what))
    return tuple(found)


def with_partitioned(reseeds: tuple[Reseed, ...], state: CatalogState) -> tuple[Reseed, ...]:
    """These, and all tables whose rows depend on partitions: what was sent of them is in doubt."""
    what = "the slot went back to before a change of partitions, and rows behind it may have been left out or misnamed"
    found = {reseed.oid: reseed for reseed in reseeds}
    for oid, table in state.tables.items():
        if table.kind == "p" or _inherited(table):
            found.setdefault(oid, Reseed(oid, Reason.PARTITIONS, what))
    return tuple(found[oid] for oid in sorted(found))


def with_former_names(before: CatalogState, after: CatalogState) -> CatalogState:
    """The later state, which remembers the names that columns had: another column may take one much later."""
    tables = dict(after.tables)
    for oid in before.tables.keys() & after.tables.keys():
        old, new = before.tables[oid], after.tables[oid]
        names = new.sent_names
        former = {name: number for name, number in {**old.former, **old.sent_names}.items() if name not in names}
        if former:
            tables[oid] = msgspec.structs.replace(new, former=former)
    return msgspec.structs.replace(after, tables=tables)


def _publication_change(before: PublicationState, after: PublicationState) -> _Finding | None:
    if before.operations != after.operations:
        text = f"the publication publishes {_listed(after.operations)} instead of {_listed(before.operations)}"
        return Reason.PUBLICATION, text
    if before.via_root != after.via_root:
        return Reason.PUBLICATION, "publish_via_partition_root changed"
    explained = before.owner != after.owner or before.generated != after.generated
    if before.xmin != after.xmin and not explained:
        return Reason.PUBLICATION, "the publication's options were set, and may have been others in between"
    return None


def _findings(
    before: CatalogState, old: TableState, after: CatalogState, new: TableState, types: Collection[int]
) -> Iterator[_Finding]:
    """What is told of a table that was and is published."""
    if old.row_filter != new.row_filter:
        yield Reason.ROW_FILTER, "its row filter changed"
    yield from _files(old, new)
    yield from _columns(before, old, after, new, types)
    yield from _membership(before, old, after, new)
    if _key(old) != _key(new):
        yield Reason.KEY_CHANGED, f"its key is ({_names(new)}) and was ({_names(old)})"


# The publication's entry.


def _membership(before: CatalogState, old: TableState, after: CatalogState, new: TableState) -> Iterator[_Finding]:
    text = "it was taken out of the publication and put back, or its entry was replaced"
    if old.listed and new.listed:
        if old.listed != new.listed:
            yield Reason.REPUBLISHED, text
        return
    if old.by_schema and old.by_schema == new.by_schema:
        if _may_have_moved(old, new):
            yield Reason.REPUBLISHED, "it may have been in another schema for a while"
        return
    if before.publication.all_tables and after.publication.all_tables:
        return
    if old.listed != new.listed or old.by_schema != new.by_schema:
        yield Reason.REPUBLISHED, text
    elif new.kind == "r" and (_inherited(old), old.attached_above) != (_inherited(new), new.attached_above):
        yield Reason.REPUBLISHED, "it was detached from its partitioned table and attached again"
    elif old.entries is not None and not set(old.entries) & set(new.entries or ()):
        yield Reason.REPUBLISHED, text


def _may_have_moved(old: TableState, new: TableState) -> bool:
    """Whether a table that its schema's entry takes in, and no other one, may have left the schema and come back."""
    others = (set(old.entries or ()) & set(new.entries or ())) - {old.by_schema}
    return not others and old.name == new.name and 0 < old.row_type_xmin != new.row_type_xmin


def _inherited(table: TableState) -> int:
    return table.files[0].inherited if table.files else 0


def _arrival(before: CatalogState, after: CatalogState, new: TableState) -> Iterator[_Finding]:
    """A table made under a publication that takes in whatever is made was published from its first row on.

    The entry that takes it in must have been there before: else it may be younger than the table and its rows.
    """
    by_itself = after.publication.all_tables or new.by_schema in before.publication.entries
    whole = new.kind == "r" or all(file.made_here for file in new.files)
    from_birth = (by_itself and new.fresh and whole) or _made_below_published(before, new)
    if new.oid in before.others or not from_birth:
        yield Reason.PUBLISHED, "it is newly published: rows from before are not in the log"


def _made_below_published(before: CatalogState, table: TableState) -> bool:
    """Whether it was made as a partition of a table that was published already, by itself or by one above it."""
    if table.kind != "r" or table.listed or not (_inherited(table) and table.files[0].made_here):
        return False
    above = table.attached_above
    stood = not above or any(known.attached_above == above for known in before.tables.values())
    return stood and not set(table.entries or ()).isdisjoint(before.publication.entries)


def _departure(after: CatalogState, oid: int) -> _Finding:
    if oid not in after.others:
        return Reason.DROPPED, "the table was dropped, and its rows with it"
    if any(file.oid == oid for table in after.tables.values() for file in table.files):
        return Reason.UNPUBLISHED, "its rows are published as those of its partitioned table"
    return Reason.UNPUBLISHED, "it is no longer published: its changes are not in the log any more"


# Files and partitions.


def _came(old: TableState, new: TableState) -> list[FileState]:
    """Partitions that the table did not have."""
    if new.kind != "p":
        return []
    was = {file.oid for file in old.files}
    return [file for file in new.files if file.oid not in was]


def _partitions(old: TableState, new: TableState, without_rows: Collection[int]) -> Iterator[_Finding]:
    if new.kind != "p":
        return
    was = {file.oid: file for file in old.files}
    now = {file.oid: file for file in new.files}
    if was.keys() - now.keys():
        yield Reason.PARTITIONS, "a partition was detached or dropped, and its rows with it"
    came = _came(old, new)
    if any(not file.made_here for file in came) and any(file.oid not in without_rows for file in came):
        yield Reason.PARTITIONS, "a table was attached as a partition, and its rows with it"
    if any(was[oid].inherited != now[oid].inherited for oid in was.keys() & now.keys()):
        yield Reason.PARTITIONS, "a partition was detached and attached again"


def _files(old: TableState, new: TableState) -> Iterator[_Finding]:
    was = {file.oid: file for file in old.files}
    for file in new.files:
        before = was.get(file.oid)
        if before is not None and before.filenode != file.filenode:
            finding = _replaced(before, file, new)
            if finding is not None:
                yield finding


def _replaced(before: FileState, after: FileState, table: TableState) -> _Finding | None:
    """What another file means."""
    touched = _touched_columns(before, after)
    if after.toast and before.toast == after.toast:  # not by ALTER TABLE, which makes another TOAST table
        return _PERHAPS_TRUNCATED if table.kind == "p" else None
    if touched:
        told_apart = before.toast != after.toast or not _only_cleared(before, after, touched)
        return _WRITTEN if told_apart else _PERHAPS_WRITTEN
    if table.listed and table.kind == "r":
        return None  # TRUNCATE, which is an event, or VACUUM FULL, CLUSTER or SET ACCESS METHOD
    if before.toast != after.toast:
        return Reason.REWRITTEN, "its file was replaced by ALTER TABLE (SET UNLOGGED and SET LOGGED, perhaps)"
    return _PERHAPS_TRUNCATED if table.kind == "p" else _PERHAPS_UNLOGGED


_WRITTEN = Reason.REWRITTEN, "ALTER TABLE wrote its rows anew"
_PERHAPS_WRITTEN = Reason.FILE_REPLACED, "its file was replaced (ALTER TABLE, VACUUM FULL or CLUSTER)"
_PERHAPS_TRUNCATED = (
    Reason.FILE_REPLACED,
    "a partition's file was replaced (TRUNCATE of it alone, which is no event, VACUUM FULL or CLUSTER)",
)
_PERHAPS_UNLOGGED = (
    Reason.FILE_REPLACED,
    "its file was replaced (SET UNLOGGED and SET LOGGED, perhaps; or TRUNCATE, VACUUM FULL or CLUSTER)",
)


def _touched_columns(before: FileState, after: FileState) -> set[int]:
    """Columns whose rows in pg_attribute are others: ALTER TABLE touches those that it changes."""
    was = {number: xmin for number, xmin, _ in before.columns}
    return {number for number, xmin, _ in after.columns if was.get(number) != xmin}


def _only_cleared(before: FileState, after: FileState, touched: set[int]) -> bool:
    """Whether the columns lost no more than atthasmissing, which VACUUM FULL and CLUSTER clear too."""
    had = {number for number, _, missing in before.columns if missing}
    have = {number for number, _, missing in after.columns if missing}
    return touched <= had - have


# Columns.


def _columns(
    before: CatalogState, old: TableState, after: CatalogState, new: TableState, types: Collection[int]
) -> Iterator[_Finding]:
    was, names = {column.number: column for column in old.columns}, {**old.former, **old.sent_names}
    added = new.kind == "p" and any(_with_default(file, old) for file in new.files)
    rewritten = new.kind == "r" and bool(old.files and new.files) and old.files[0].filenode != new.files[0].filenode
    for column in new.columns:
        if not column.sent:
            continue
        earlier = was.get(column.number)
        if earlier is None:
            if column.missing or added:
                yield Reason.COLUMN_ADDED, f"column {column.name} was added with a default, which its rows have now"
            elif rewritten:  # VACUUM FULL and CLUSTER write the default into the rows, and clear atthasmissing
                what = f"column {column.name} was added, perhaps with a default, and VACUUM FULL or CLUSTER came behind"
                yield Reason.COLUMN_ADDED, what
            elif column.number in old.former.values():
                yield Reason.COLUMN_ADDED, f"column {column.name} was dropped, which a failover lost"
        elif not earlier.sent:
            yield Reason.COLUMNS_PUBLISHED, f"column {column.name} is published now and was not"
        else:
            yield from _values(before, earlier, after, column, types)
        if names.get(column.name, column.number) != column.number:
            what = f"column {column.name} is another one than the column that had this name (dropped, or renamed)"
            yield Reason.NAME_TAKEN, what


def _with_default(partition: FileState, old: TableState) -> bool:
    """Whether a partition has a new column that its rows do not hold (a root's own columns never say so)."""
    for before in old.files:
        if before.oid == partition.oid:
            known = {number for number, _, _ in before.columns}
            return any(missing and number not in known for number, _, missing in partition.columns)
    return False


def _values(
    before: CatalogState, old: ColumnState, after: CatalogState, new: ColumnState, types: Collection[int]
) -> Iterator[_Finding]:
    was, now = _base(before, old.type), _base(after, new.type)
    if was != now and not {was, now} <= _SAME_TEXT:
        yield Reason.RETYPED, f"column {new.name} has another type"
    elif was == now and types and not after.types_within(new.type).isdisjoint(types):
        yield Reason.TYPE_CHANGED, f"labels or attributes of the type of column {new.name} changed"


def _base(state: CatalogState, oid: int) -> int:
    """The type under a domain."""
    while (type_ := state.types.get(oid)) is not None and type_.base:
        oid = type_.base
    return oid


def _changed_types(before: dict[int, TypeState], after: dict[int, TypeState]) -> frozenset[int]:
    """Types whose values look different now; a new label changes none."""
    changed = set()
    for oid, was in before.items():
        now = after.get(oid)
        if now is None or was.members == now.members:
            continue
        if not now.labels or any(now.members.get(key) != value for key, value in was.members.items()):
            changed.add(oid)
    return frozenset(changed)


def _key(table: TableState) -> frozenset[int]:
    return frozenset(column.number for column in table.columns if column.in_key)


def _names(table: TableState) -> str:
    return ", ".join(column.name for column in table.columns if column.in_key)


def _listed(operations: tuple[str, ...]) -> str:
    return ", ".join(operations) or "nothing"
