"""Texts of every code point, and databases in other encodings than UTF-8."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from support.capturing import captured, capturing
from support.database import Database, fresh_database
from support.oracle import Oracle
from support.zoo_log import row_changes_in
from walbus.demo.postgres import EmbeddedPostgres


def all_planes() -> list[str]:
    """All that PostgreSQL takes, by planes: everything but NUL and the surrogates."""
    return [
        "".join(chr(point) for point in range(max(1, first), first + 0x10000) if not 0xD800 <= point < 0xE000)
        for first in range(0, 0x110000, 0x10000)
    ]


def test_every_legal_code_point_comes_as_it_is(
    database: Database, oracle: Callable[..., Oracle], open_folder: Path
) -> None:
    planes = all_planes()
    database.execute("CREATE TABLE t (id int PRIMARY KEY, v text, vs text[], j jsonb)")
    with capturing(database.dsn, open_folder / "relay") as capture:
        truth = oracle()
        with database.connect() as session, session.cursor() as cursor:
            rows = [(number, plane, list(plane[:300]), plane[:300]) for number, plane in enumerate(planes)]
            cursor.executemany("INSERT INTO t VALUES (%s, %s, %s, to_jsonb(%s::text))", rows)
        capture.caught_up()
    changes = [change.after for change, _ in row_changes_in(open_folder / "relay")]
    assert [after and after["v"] for after in changes] == planes
    assert [after and after["vs"] for after in changes] == [list(plane[:300]) for plane in planes]
    assert captured(open_folder / "relay") == truth.transactions()


@pytest.mark.parametrize(("encoding", "codec"), [("LATIN1", "latin-1"), ("WIN1251", "cp1251"), ("EUC_JP", "euc_jp")])
def test_a_database_in_another_encoding_comes_in_utf8(
    pg_server: EmbeddedPostgres, open_folder: Path, encoding: str, codec: str
) -> None:
    """SQL_ASCII, which is none, is refused (`walbus.capture.identity`)."""
    first = 0x3041 if encoding == "EUC_JP" else 0xA1  # below, Python has other signs than PostgreSQL
    letters = "".join(chr(point) for point in range(first, 0x3100) if chr(point).encode(codec, "ignore"))
    with fresh_database(pg_server, encoding) as database:
        database.execute(f'CREATE TABLE t (id int PRIMARY KEY, "{letters[-1]}" text)')
        with capturing(database.dsn, open_folder / "relay") as capture:
            session = database.connect(client_encoding="utf8")  # PostgreSQL's tables of characters, and not Python's
            session.execute("INSERT INTO t VALUES (1, %s)", [letters])
            capture.caught_up()
        ((change, _),) = row_changes_in(open_folder / "relay")
        kept = session.execute(f'SELECT "{letters[-1]}" FROM t').fetchone()
    assert kept is not None
    assert change.after == {"id": 1, letters[-1]: kept[0]}
    assert len(kept[0]) == len(letters) > 80
