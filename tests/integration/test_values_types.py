"""Types that change below the values: what the log has when labels, attributes and names of types change.

PostgreSQL decodes a change with the catalog as it was at that change. So each event has the text of its own time, even
if it is decoded long after the type has changed. (That rows which nobody touched print otherwise since is another
matter: `walbus.capture.silent` notices that.)
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from support.capturing import captured, capturing
from support.database import Database
from support.oracle import Oracle
from support.waiting import wait_for
from support.zoo_log import row_changes_in
from walbus.relay import open_reader

MakeOracle = Callable[..., Oracle]


def values_in(folder: Path, column: str = "v") -> list[object]:
    """What each change says of a column: (before, after) of updates, the one that is there of others."""
    found: list[object] = []
    for change, _ in row_changes_in(folder):
        before, after = change.before, change.after
        pair = before and before[column], after and after[column]
        found.append(pair if before and after else pair[0] or pair[1])
    return found


def type_names(folder: Path, table: str) -> list[str]:
    """The type of the last column in each layout of a table, in order."""
    with closing(open_reader(folder)) as reader:
        return [schema.columns[-1].type_name for schema in reader.schemas.all() if schema.table == table]


def test_labels_are_those_of_the_moment_and_make_no_new_layout(
    database: Database, oracle: MakeOracle, open_folder: Path
) -> None:
    folder = open_folder / "relay"
    database.execute("CREATE TYPE mood AS ENUM ('sad', 'glad'); CREATE TABLE t (id int PRIMARY KEY, v mood)")
    database.execute("ALTER TABLE t REPLICA IDENTITY FULL")
    with capturing(database.dsn, folder) as capture:
        truth = oracle()
        database.execute("INSERT INTO t VALUES (1, 'glad')")
        capture.caught_up()
    # While nobody reads.
    database.execute("INSERT INTO t VALUES (2, 'sad')")
    database.execute("ALTER TYPE mood ADD VALUE 'new' BEFORE 'sad'")
    database.execute("INSERT INTO t VALUES (3, 'new'); ALTER TYPE mood RENAME VALUE 'glad' TO 'happy'")
    with capturing(database.dsn, folder) as capture:
        database.execute("UPDATE t SET v = 'new' WHERE id = 1; ALTER TYPE mood ADD VALUE 'later'")
        database.execute("UPDATE t SET v = 'later' WHERE id = 2; DELETE FROM t WHERE id = 3")
        capture.caught_up()
    assert values_in(folder) == ["glad", "sad", "new", ("happy", "new"), ("sad", "later"), "new"]
    assert type_names(folder, "public.t") == ["public.mood"]
    assert captured(folder) == truth.transactions()


def test_attributes_are_those_of_the_moment(database: Database, oracle: MakeOracle, open_folder: Path) -> None:
    folder = open_folder / "relay"
    database.execute("CREATE TYPE pair AS (a int, b text); CREATE TABLE t (id int PRIMARY KEY, v pair, vs pair[])")
    database.execute("ALTER TABLE t REPLICA IDENTITY FULL")
    with capturing(database.dsn, folder) as capture:
        truth = oracle()
        database.execute("INSERT INTO t VALUES (1, '(1,x)', '{\"(1,x)\"}'), (2, '(2,)', NULL)")
        database.execute("ALTER TYPE pair ADD ATTRIBUTE c int; INSERT INTO t VALUES (3, '(3,y,4)', NULL)")
        database.execute("UPDATE t SET id = 10 WHERE id = 1; ALTER TYPE pair DROP ATTRIBUTE a")
        database.execute("ALTER TYPE pair RENAME ATTRIBUTE b TO bb; DELETE FROM t WHERE id = 10")
        capture.caught_up()
    assert values_in(folder) == ["(1,x)", "(2,)", "(3,y,4)", ("(1,x,)", "(1,x,)"), "(x,)"]
    assert values_in(folder, "vs")[3:] == [('{"(1,x,)"}', '{"(1,x,)"}'), '{"(x,)"}']
    assert captured(folder) == truth.transactions()


def test_a_renamed_type_is_a_new_layout_of_the_same_type(
    database: Database, oracle: MakeOracle, open_folder: Path
) -> None:
    folder = open_folder / "relay"
    database.execute("CREATE TYPE mood AS ENUM ('sad'); CREATE DOMAIN small AS int; CREATE SCHEMA other")
    database.execute("CREATE TABLE t (id int PRIMARY KEY, d small, v mood)")
    with capturing(database.dsn, folder) as capture:
        truth = oracle()
        database.execute("INSERT INTO t VALUES (1, 1, 'sad')")
        database.execute("ALTER TYPE mood RENAME TO feeling; INSERT INTO t VALUES (2, 2, 'sad')")
        database.execute("ALTER TYPE feeling SET SCHEMA other; INSERT INTO t VALUES (3, 3, 'sad')")
        # The base type is what pgoutput names, so nothing of this shows in a layout.
        database.execute("ALTER DOMAIN small ADD CHECK (VALUE < 9); ALTER DOMAIN small RENAME TO tiny")
        database.execute("INSERT INTO t VALUES (4, 4, 'sad')")
        wait_for(lambda: type_names(folder, "public.t")[-1] == "other.feeling", 60, what="the new name is known")
        database.execute("INSERT INTO t VALUES (5, 5, 'sad')")
        capture.caught_up()
    names = type_names(folder, "public.t")
    assert names[0] == "public.mood"
    assert names[-1] == "other.feeling"
    assert len(names) <= 3, "a layout comes once"
    assert values_in(folder) == ["sad"] * 5
    assert captured(folder) == truth.transactions()
    with closing(open_reader(folder)) as reader:
        oids = {schema.columns[-1].type_oid for schema in reader.schemas.all()}
        assert len(oids) == 1
        assert {schema.columns[1].type_name for schema in reader.schemas.all()} == {"int4"}


def test_a_type_that_is_made_again_is_another_type(database: Database, oracle: MakeOracle, open_folder: Path) -> None:
    folder = open_folder / "relay"
    database.execute("CREATE EXTENSION " + ("vector" if has_vector(database) else "hstore"))
    name, first, second = ("vector", "[1,2]", "[3.5]") if has_vector(database) else ("hstore", '"a"=>"1"', '""=>NULL')
    database.execute(f"CREATE TABLE t (id int PRIMARY KEY, v {name})")
    with capturing(database.dsn, folder) as capture:
        truth = oracle()
        database.execute("INSERT INTO t VALUES (1, %s)", [first])
        database.execute(
            f"BEGIN; DROP EXTENSION {name} CASCADE; CREATE EXTENSION {name}; ALTER TABLE t ADD v {name}; COMMIT"
        )
        database.execute("INSERT INTO t VALUES (2, %s)", [second])
        capture.caught_up()
    assert values_in(folder) == [first, second]
    assert captured(folder) == truth.transactions()
    with closing(open_reader(folder)) as reader:
        layouts = [s for s in reader.schemas.all() if s.table == "public.t" and s.columns[-1].name == "v"]
    assert {s.columns[-1].type_name for s in layouts} == {f"public.{name}"}
    assert len({s.columns[-1].type_oid for s in layouts}) == 2


def has_vector(database: Database) -> bool:
    return bool(database.execute("SELECT 1 FROM pg_available_extensions WHERE name = 'vector'"))
