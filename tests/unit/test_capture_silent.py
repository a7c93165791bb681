"""Two states of the catalog, and what their difference tells; the statements themselves are in the integration test."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec
import pytest

from walbus.capture.definition import (
    CatalogState,
    ColumnState,
    FileState,
    PublicationState,
    TableState,
    TypeState,
)
from walbus.capture.silent import Reason, Reseed, attached, differences, with_former_names, with_partitioned

OID = 16400
PUBLICATION = PublicationState(
    oid=1,
    xmin=5,
    owner=10,
    all_tables=False,
    operations=("insert", "update", "delete", "truncate"),
    via_root=False,
    generated="",
    entries=(3, 7),
)


def column(number: int, **options: object) -> ColumnState:
    values = {"type": 23, "typmod": -1, "in_key": number == 1, "in_primary": number == 1, "sent": True}
    return ColumnState(**{"number": number, "name": f"c{number}", "missing": False, "xmin": 5, **values, **options})  # type: ignore[arg-type]


def file(oid: int = OID, filenode: int = 1, toast: int = 0, **options: object) -> FileState:
    values: dict[str, object] = {"inherited": 0, "made_here": False, "columns": ((1, 5, False), (2, 5, False))}
    return FileState(oid, filenode, toast, **{**values, **options})  # type: ignore[arg-type]


@dataclass(frozen=True)
class World:
    """A catalog with one table, and what is different about it."""

    table: dict[str, object] = field(default_factory=dict)
    publication: dict[str, object] = field(default_factory=dict)
    types: dict[int, TypeState] = field(default_factory=dict)
    others: frozenset[int] = frozenset()

    def state(self) -> CatalogState:
        values: dict[str, object] = {
            "oid": OID, "namespace": "public", "name": "t", "kind": "r", "identity": "d", "listed": 7, "by_schema": 0,
            "row_filter": None, "fresh": True, "columns": (column(1), column(2)), "files": (file(),),
        }  # fmt: skip
        table = TableState(**{**values, **self.table})  # type: ignore[arg-type]
        publication = msgspec.structs.replace(PUBLICATION, **self.publication)
        return CatalogState(publication, {table.oid: table}, self.types, self.others)


def reasons(before: World, after: World) -> list[Reason]:
    return [reseed.reason for reseed in differences(before.state(), after.state())]


def test_nothing_that_changed_tells_nothing():
    assert differences(World().state(), World().state()) == ()


def test_one_table_is_told_once_with_everything_that_was_found():
    after = World({"row_filter": "(id > 1)", "listed": 8})
    (told,) = differences(World().state(), after.state())
    assert isinstance(told, Reseed)
    assert (told.oid, told.reason) == (OID, Reason.ROW_FILTER)
    assert "row filter" in told.what
    assert "taken out" in told.what


TOUCHED = ((1, 5, False), (2, 9, False))
FILES = [
    ("VACUUM FULL", {}, {"filenode": 2}, []),
    ("VACUUM FULL with TOAST", {"toast": 3}, {"filenode": 2, "toast": 3}, []),
    ("ALTER TYPE USING", {}, {"filenode": 2, "columns": TOUCHED}, [Reason.REWRITTEN]),
    ("the same with TOAST", {"toast": 3}, {"filenode": 2, "toast": 4, "columns": TOUCHED}, [Reason.REWRITTEN]),
    ("SET STATISTICS", {}, {"columns": TOUCHED}, []),
    ("SET STATISTICS and VACUUM FULL", {"toast": 3}, {"filenode": 2, "toast": 3, "columns": TOUCHED}, []),
    (
        "VACUUM FULL behind a fast default",
        {"columns": ((1, 5, False), (2, 5, True))},
        {"filenode": 2, "columns": TOUCHED},
        [Reason.FILE_REPLACED],
    ),
    (
        "the same with TOAST",
        {"toast": 3, "columns": ((1, 5, False), (2, 5, True))},
        {"filenode": 2, "toast": 3, "columns": TOUCHED},
        [],
    ),
    ("SET ACCESS METHOD", {"toast": 3}, {"filenode": 2, "toast": 4}, []),
]


@pytest.mark.parametrize(("before", "after", "told"), [f[1:] for f in FILES], ids=[f[0] for f in FILES])
def test_another_file_is_told_where_alter_table_made_it(before, after, told):
    assert reasons(World({"files": (file(**before),)}), World({"files": (file(**after),)})) == told


@pytest.mark.parametrize(
    ("toast", "told"), [((3, 3), []), ((3, 4), [Reason.REWRITTEN]), ((0, 0), [Reason.FILE_REPLACED])]
)
def test_a_table_that_could_be_unlogged_for_a_while_is_told_unless_its_toast_table_says_no(toast, told):
    before = World({"listed": 0, "files": (file(toast=toast[0]),)}, {"all_tables": True})
    after = World({"listed": 0, "files": (file(filenode=2, toast=toast[1]),)}, {"all_tables": True})
    assert reasons(before, after) == told


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ({}, {"name": "renamed"}, []),
        ({}, {"xmin": 9}, []),
        ({}, {"typmod": 8}, []),
        ({"type": 25}, {"type": 1043}, []),
        ({"type": 23}, {"type": 26}, [Reason.RETYPED]),
        ({"sent": False}, {}, [Reason.COLUMNS_PUBLISHED]),
        ({}, {"sent": False}, []),
        ({}, {"in_key": True}, [Reason.KEY_CHANGED]),
        ({}, {"in_primary": True}, []),
    ],
)
def test_a_column_is_told_where_its_values_are_others(old, new, told):
    before, after = World({"columns": (column(1), column(2, **old))}), World({"columns": (column(1), column(2, **new))})
    assert reasons(before, after) == told


@pytest.mark.parametrize(("options", "told"), [({}, []), ({"missing": True}, [Reason.COLUMN_ADDED])])
def test_a_new_column_is_told_if_rows_have_its_default(options, told):
    assert reasons(World(), World({"columns": (column(1), column(2), column(3, **options))})) == told


A, B, OTHER_B = column(2), column(3), column(4, name="c3")


@pytest.mark.parametrize(
    ("later", "told"),
    [
        ([(A, OTHER_B)], [Reason.NAME_TAKEN]),
        ([(A,), (A, OTHER_B)], [Reason.NAME_TAKEN]),
        ([(A,), (A, column(5)), (A, column(5), OTHER_B)], [Reason.NAME_TAKEN]),
        ([(A, column(3, sent=False)), (A, column(3, sent=False)), (A, OTHER_B)], [Reason.NAME_TAKEN]),
        ([(column(2, name="c3"), column(3, name="c2"))], [Reason.NAME_TAKEN]),
        ([(column(3, name="c2"),)], [Reason.NAME_TAKEN]),
        ([(A, OTHER_B), (A, OTHER_B)], []),
        ([(A,), (A, column(4))], []),
        ([(A, column(3, name="x")), (A, B)], []),
        ([(A,), (A, B)], [Reason.COLUMN_ADDED]),
    ],
)
def test_a_column_that_has_the_name_of_another_one_is_told(later, told):
    before = World({"columns": (A, B)}).state()
    for columns in later[:-1]:
        before = with_former_names(before, World({"columns": columns}).state())
    assert [found.reason for found in differences(before, World({"columns": later[-1]}).state())] == told


@pytest.mark.parametrize("toast", [0, 3])
def test_a_new_column_is_told_where_another_file_hides_whether_rows_have_its_default(toast):
    columns = (column(1), column(2), column(3))
    written = file(filenode=2, toast=toast, columns=((1, 5, False), (2, 5, False), (3, 9, False)))
    before, after = World({"files": (file(toast=toast),)}), World({"columns": columns, "files": (written,)})
    (told,) = differences(before.state(), after.state())
    assert "VACUUM FULL" in told.what


def enum_type(*labels: str) -> TypeState:
    return TypeState("public", "mood", 0, (0,), {str(number): label for number, label in enumerate(labels)}, True)


def test_a_label_is_told_where_it_was_renamed_and_not_where_it_is_new():
    table = {"columns": (column(1), column(2, type=20001))}
    types = {20001: TypeState("public", "_mood", 0, (20000,), {}, False)}
    worlds = [World(table, types={**types, 20000: enum_type(*labels)}) for labels in (("a",), ("a", "b"), ("x", "b"))]
    assert reasons(worlds[0], worlds[1]) == []
    assert reasons(worlds[1], worlds[2]) == [Reason.TYPE_CHANGED]
    assert reasons(World(types=worlds[1].types), World(types=worlds[2].types)) == []  # nobody uses it


def test_a_type_under_domains_counts_and_one_that_is_gone_changes_nothing():
    small = TypeState("public", "small", 23, (0,), {}, False)
    tiny = TypeState("public", "tiny", 20000, (0,), {}, False)
    types = {20000: small, 20001: tiny}
    plain, domain = World(types=types), World({"columns": (column(1), column(2, type=20001))}, types=types)
    assert reasons(plain, domain) == reasons(domain, plain) == []
    other = World({"columns": (column(1), column(2, type=20001))}, types={**types, 20000: enum_type("a")})
    assert reasons(plain, other) == [Reason.RETYPED]
    assert reasons(World(types={20000: enum_type("a")}), World()) == []


def test_types_that_are_made_of_each_other_end():
    ring = {20000: TypeState("public", "a", 0, (20001,), {"1": "20001"}, False),
            20001: TypeState("public", "b", 0, (20000,), {"1": "20000"}, False)}  # fmt: skip
    assert World(types=ring).state().types_within(20000) == {20000, 20001}


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ({}, {"operations": ("insert",)}, [Reason.PUBLICATION]),
        ({}, {"via_root": True}, [Reason.PUBLICATION]),
        ({}, {"xmin": 9}, [Reason.PUBLICATION]),
        ({}, {"xmin": 9, "owner": 11}, []),
        ({}, {"xmin": 9, "generated": "s"}, []),
    ],
)
def test_an_option_of_the_publication_concerns_every_table(before, after, told):
    assert reasons(World(publication=before), World(publication=after)) == told


MOVED = [{"listed": 0, "by_schema": 3, "entries": (3,), "row_type_xmin": xmin} for xmin in (5, 9)]


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ({"listed": 7}, {"listed": 8}, [Reason.REPUBLISHED]),
        ({"listed": 0, "by_schema": 3}, {"listed": 7, "by_schema": 3}, []),
        ({"listed": 0, "by_schema": 3}, {"listed": 0, "by_schema": 4}, [Reason.REPUBLISHED]),
        ({"listed": 7}, {"listed": 0, "by_schema": 3}, [Reason.REPUBLISHED]),
        (MOVED[0], MOVED[1], [Reason.REPUBLISHED]),
        (MOVED[0], {**MOVED[1], "name": "renamed"}, []),
        ({**MOVED[0], "row_type_xmin": 0}, MOVED[1], []),
        ({**MOVED[0], "entries": (2, 3)}, {**MOVED[1], "entries": (2, 3)}, []),
        ({**MOVED[0], "listed": 7}, {**MOVED[1], "listed": 7}, []),
        (
            {"listed": 0, "files": (file(inherited=5),)},
            {"listed": 0, "files": (file(inherited=6),)},
            [Reason.REPUBLISHED],
        ),
        ({"listed": 7, "files": (file(inherited=5),)}, {"listed": 7, "files": (file(inherited=6),)}, []),
        ({"listed": 0, "entries": (7,)}, {"listed": 0, "entries": (8,)}, [Reason.REPUBLISHED]),
        ({"listed": 0, "entries": (7, 8)}, {"listed": 0, "entries": (8, 9)}, []),
        ({"listed": 0, "entries": None}, {"listed": 0, "entries": (8,)}, []),
        ({"listed": 0, "entries": (7,)}, {"listed": 0, "entries": (7,), "attached_above": (6,)}, [Reason.REPUBLISHED]),
    ],
)
def test_an_entry_of_the_publication_that_is_another_one_is_told(before, after, told):
    assert reasons(World(before), World(after)) == told


def root(*files: FileState) -> World:
    return World({"kind": "p", "files": files})


def test_a_partition_that_came_with_rows_is_told_and_one_that_was_made_empty_is_not():
    one, made, attached = file(2, inherited=5), file(3, inherited=6, made_here=True), file(3, inherited=6)
    assert reasons(root(one), root(one, made)) == []
    assert reasons(root(one), root(one, attached)) == [Reason.PARTITIONS]
    assert reasons(root(one, made), root(one)) == [Reason.PARTITIONS]
    assert reasons(root(attached), root(file(3, inherited=8))) == [Reason.PARTITIONS]


def test_partitions_that_brought_no_rows_are_not_told_and_all_that_came_must_have_brought_none():
    one, other, below = file(2, inherited=5), file(3, inherited=6), file(4, inherited=6, made_here=True)
    before, after = root(one).state(), root(one, other, below).state()
    assert attached(before, after) == {3: other, 4: below}
    assert differences(before, after, {3, 4}) == ()
    for proved in ({3}, {4}, ()):
        assert [told.reason for told in differences(before, after, proved)] == [Reason.PARTITIONS]


def test_only_partitions_that_came_with_an_attached_one_are_asked():
    one, made = file(2, inherited=5), file(3, inherited=6, made_here=True)
    assert attached(root(one).state(), root(one, made).state()) == {}
    assert attached(root(one, made).state(), root(one).state()) == {}
    assert attached(World().state(), World({"files": (file(inherited=6),)}).state()) == {}


def test_a_roots_new_column_is_told_where_rows_of_a_partition_have_its_default():
    wide = (column(1), column(2), column(3))
    before = World({"kind": "p", "files": (file(2, inherited=5),)})
    for missing, told in ((True, [Reason.COLUMN_ADDED]), (False, [])):
        columns = ((1, 5, False), (2, 5, False), (3, 9, missing))
        after = World({"kind": "p", "columns": wide, "files": (file(2, inherited=5, columns=columns),)})
        assert reasons(before, after) == told


def test_where_a_session_is_in_doubt_every_table_is_told_whose_rows_depend_on_partitions():
    told = (Reseed(OID, Reason.ROW_FILTER, "its row filter changed"),)
    for table, added in (({"kind": "p"}, 1), ({"files": (file(inherited=5),)}, 1), ({}, 0)):
        state = World(table).state()
        assert len(with_partitioned((), state)) == added
        assert with_partitioned(told, state) == told


def test_a_partitions_file_may_have_been_truncated_without_an_event():
    assert reasons(root(file(2, toast=3)), root(file(2, 9, toast=3))) == [Reason.FILE_REPLACED]


MADE_HERE = (file(inherited=5, made_here=True),)


def gone(others: frozenset[int] = frozenset()) -> CatalogState:
    return CatalogState(PUBLICATION, {}, {}, others)


def test_a_table_that_is_gone_was_dropped_or_is_published_no_more():
    assert [r.reason for r in differences(World().state(), gone())] == [Reason.DROPPED]
    assert [r.reason for r in differences(World().state(), gone(frozenset({OID})))] == [Reason.UNPUBLISHED]


@pytest.mark.parametrize(
    ("table", "publication", "others", "told"),
    [
        ({}, {}, (), [Reason.PUBLISHED]),
        ({"listed": 0}, {"all_tables": True}, (), []),
        ({"listed": 0, "fresh": False}, {"all_tables": True}, (), [Reason.PUBLISHED]),
        ({"listed": 0}, {"all_tables": True}, (OID,), [Reason.PUBLISHED]),
        ({"listed": 0, "by_schema": 3}, {}, (), []),
        ({"listed": 0, "by_schema": 4}, {}, (), [Reason.PUBLISHED]),
        ({"listed": 0, "entries": (7,), "files": MADE_HERE}, {}, (), []),
        ({"listed": 0, "entries": (8,), "files": MADE_HERE}, {}, (), [Reason.PUBLISHED]),
        ({"listed": 0, "entries": (7,), "attached_above": (6,), "files": MADE_HERE}, {}, (), [Reason.PUBLISHED]),
        ({"listed": 0, "entries": (7,), "files": (file(inherited=5),)}, {}, (), [Reason.PUBLISHED]),
    ],
)
def test_a_new_table_is_told_unless_it_was_published_from_its_first_row(table, publication, others, told):
    before = msgspec.structs.replace(
        gone(frozenset(others)), publication=World(publication=publication).state().publication
    )
    assert [r.reason for r in differences(before, World(table, publication).state())] == told


def test_a_table_made_below_one_that_was_attached_before_another_look_was_published_from_its_first_row():
    below = {"listed": 0, "entries": (7,), "attached_above": (6,), "files": MADE_HERE}
    before, after = World(below).state(), World(below).state()
    sister = msgspec.structs.replace(after.tables[OID], oid=OID + 1)
    after = msgspec.structs.replace(after, tables={**after.tables, OID + 1: sister})
    assert differences(before, after) == ()
