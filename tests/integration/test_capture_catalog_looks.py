"""What makes capture read the catalog: its fingerprint is another one as soon as what it would read is."""

from __future__ import annotations

from contextlib import closing

import pytest
from pydantic import SecretStr

from walbus.capture.catalog import fingerprint, read_state
from walbus.capture.sessions import open_session

PUBLICATION = "walbus"

#: Each leaves a trace that most others do not: without one of the fingerprint's parts, one of these goes unseen.
TOLD_APART = [
    ("ALTER PUBLICATION walbus SET (publish = 'insert')", 14),
    ("ALTER PUBLICATION walbus DROP TABLE thin; ALTER PUBLICATION walbus ADD TABLE thin", 14),
    ("ALTER PUBLICATION walbus ADD TABLES IN SCHEMA other", 15),
    ("ALTER TABLE thin RENAME TO slim", 14),
    ("TRUNCATE slim", 14),
    ("ALTER TABLE t RENAME n TO m", 14),
    ("ALTER TABLE t ALTER v TYPE varchar(20)", 14),
    ("ALTER TYPE pair ADD ATTRIBUTE c int", 14),
    ("ALTER TABLE t REPLICA IDENTITY USING INDEX second", 14),
    ("ALTER TYPE mood RENAME TO feeling", 14),
    ("ALTER TYPE feeling RENAME VALUE 'sad' TO 'bad'", 14),
    ("ALTER TYPE feeling ADD VALUE 'glad'", 14),
    ("ALTER DOMAIN small RENAME TO tiny", 14),
    ("ALTER SCHEMA other RENAME TO another", 14),
    ("ALTER TABLE parts DETACH PARTITION p1", 14),
    ("ALTER TABLE parts ATTACH PARTITION p1 FOR VALUES FROM (0) TO (10)", 14),
    ("CREATE TABLE unpublished (id int PRIMARY KEY)", 14),
    ("DROP TABLE slim", 14),
]

UNSEEN = [
    "INSERT INTO t (id, n, k) VALUES (1, 1, 1)",
    "CREATE TEMP TABLE scratch (id int PRIMARY KEY, a text)",
    "CREATE ROLE nobody_{name}",
]


@pytest.fixture
def altered(database):
    database.execute("CREATE SCHEMA other; CREATE TYPE mood AS ENUM ('sad'); CREATE DOMAIN small AS int")
    database.execute("CREATE TYPE pair AS (a int, b mood); CREATE TABLE other.o (id int PRIMARY KEY)")
    database.execute("CREATE TABLE t (id int PRIMARY KEY, n int NOT NULL, k int NOT NULL, p pair, s small, v varchar)")
    database.execute("CREATE UNIQUE INDEX first ON t (n); CREATE UNIQUE INDEX second ON t (k)")
    database.execute("ALTER TABLE t REPLICA IDENTITY USING INDEX first; CREATE TABLE thin (id int PRIMARY KEY)")
    database.execute("CREATE TABLE parts (id int PRIMARY KEY) PARTITION BY RANGE (id)")
    database.execute("CREATE TABLE p1 PARTITION OF parts FOR VALUES FROM (0) TO (10)")
    database.execute("CREATE PUBLICATION walbus FOR TABLE t, thin, other.o, parts")
    return database


def test_whatever_would_be_read_otherwise_gives_another_fingerprint(altered):
    with closing(open_session(SecretStr(altered.dsn))) as session:
        for statement, since in TOLD_APART:
            if altered.major < since:
                continue
            state, seen = read_state(session, PUBLICATION), fingerprint(session, PUBLICATION)
            altered.execute(statement)
            assert read_state(session, PUBLICATION) != state, statement
            assert fingerprint(session, PUBLICATION) != seen, statement


def test_what_concerns_no_table_of_users_leaves_the_fingerprint(altered):
    with closing(open_session(SecretStr(altered.dsn))) as session:
        seen = fingerprint(session, PUBLICATION)
        for statement in UNSEEN:
            altered.execute(statement.format(name=altered.name))
            assert fingerprint(session, PUBLICATION) == seen, statement
