"""Keys go by their text: which types that is safe for, and that the doctor names the others."""

from __future__ import annotations

import pytest
from pydantic import SecretStr

from support.capturing import capturing, source_of
from support.database import fresh_database
from support.folding import assert_folds_to_source, folded
from walbus.capture.doctor.reading_tables import read_tables
from walbus.capture.sessions import open_session

#: Type, and two of its values that are equal and print apart.
EQUAL = [
    ("numeric", "1.0", "1.00"), ("float8", "0", "-0"), ("interval", "1 month", "30 days"),
    ("bpchar", "a", "a "), ("jsonb", "1.0", "1.00"), ("citext", "Ab", "aB"), ("text COLLATE blind", "Ab", "aB"),
    ("numeric[]", "{1.0}", "{1.00}"), ("numrange", "[1.0,2)", "[1.00,2)"),
]  # fmt: skip


def test_equal_values_that_print_apart_are_one_key_after_the_other(own_pg_server, open_folder):
    folder = open_folder / "relay"
    with fresh_database(own_pg_server(contrib=True)) as database:
        database.execute("CREATE EXTENSION citext")
        database.execute("CREATE COLLATION blind (provider = icu, locale = 'und-u-ks-level2', deterministic = false)")
        for number, (kind, _, _) in enumerate(EQUAL):
            database.execute(f"CREATE TABLE k{number} (k {kind} PRIMARY KEY, n int)")
        with capturing(database.dsn, folder) as capture:
            for number, (_, one, other) in enumerate(EQUAL):
                table = f"k{number}"
                database.execute(f"INSERT INTO {table} VALUES (%s, 1)", [one])
                assert database.value(f"SELECT count(*) FROM {table} WHERE k = %s", [other]) == 1
                database.execute(f"UPDATE {table} SET k = %s", [other])
                database.execute(f"UPDATE {table} SET n = 2; DELETE FROM {table}")
                database.execute(f"INSERT INTO {table} VALUES (%s, 3)", [one])
            capture.caught_up()
        assert_folds_to_source(folder, database.dsn)
    assert [table.rows().total() for table in folded(folder).values()] == [1] * len(EQUAL)


MERGING = {
    "fun": ("regproc", ["'abs(int)'::regprocedure", "'abs(bigint)'::regprocedure"]),
    "op": ("regoper", ["'+(int,int)'::regoperator", "'+(bigint,bigint)'::regoperator"]),
    "length": ("seg", ["'1.2345678'::seg", "'1.2345679'::seg"]),
}


def keys_of(dsn: str) -> dict[str, tuple[set[str], set[str]]]:
    with open_session(SecretStr(dsn)) as session:
        found = read_tables(session, source_of(dsn), ())
    return {table.name: (set(table.merging), set(table.renamed)) for table in found}


def test_the_doctor_names_the_keys_that_print_unequal_values_alike_and_no_others(own_pg_server):
    with fresh_database(own_pg_server(contrib=True)) as database:
        database.execute("CREATE EXTENSION seg; CREATE EXTENSION citext; CREATE EXTENSION cube")
        for name, (kind, values) in MERGING.items():
            database.execute(f"CREATE TABLE {name} (k {kind} PRIMARY KEY)")
            database.execute(f"INSERT INTO {name} SELECT v FROM unnest(ARRAY[{', '.join(values)}]::{kind}[]) v")
            assert database.execute(f"SELECT count(*), count(DISTINCT k::text) FROM {name}") == [(2, 1)]
        database.execute("CREATE DOMAIN called AS regproc; CREATE TYPE pair AS (a int, f called)")
        database.execute("CREATE TYPE ext_range AS RANGE (subtype = regoper)")
        database.execute("CREATE TABLE within (a called[], b pair, c ext_range, d regclass, PRIMARY KEY (a, b, c, d))")
        database.execute("CREATE TABLE beside (id numeric PRIMARY KEY, f regproc, c regclass)")
        database.execute("CREATE TABLE whole (a citext, b cube, f regproc UNIQUE, PRIMARY KEY (a, b))")
        database.execute("ALTER TABLE whole REPLICA IDENTITY FULL")
        assert keys_of(database.dsn) == {
            "fun": ({"k regproc"}, set()),
            "op": ({"k regoper"}, set()),
            "length": ({"k seg"}, set()),
            "within": ({"a regproc", "b regproc", "c regoper"}, {"d regclass"}),
            "beside": (set(), set()),
            "whole": (set(), set()),
        }


@pytest.mark.parametrize("kind", ["regclass", "regtype"])
def test_a_name_that_changes_is_another_key(database, open_folder, kind):
    folder = open_folder / "relay"
    database.execute(f"CREATE TYPE what AS (a int); CREATE TABLE t (k {kind} PRIMARY KEY)")
    with capturing(database.dsn, folder) as capture:
        database.execute("INSERT INTO t VALUES ('what')")
        database.execute("ALTER TYPE what RENAME TO why")
        database.execute("DELETE FROM t")
        capture.caught_up()
    with pytest.raises(AssertionError, match="DELETE of a row that is not there"):
        folded(folder)
    assert keys_of(database.dsn)["t"] == (set(), {f"k {kind}"})
