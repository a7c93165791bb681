"""Settings of roles and databases against the shared ones: which change what PostgreSQL prints, and that none does.

Every run-time parameter that a session may set is tried with other values, on one row that holds every type's
samples. So a parameter of a new version that changes a text fails the test until `walbus.session` sets it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import LiteralString, cast

import psycopg
import pytest

from support.database import Database
from support.zoo import Zoo, build_zoo
from walbus.session import SESSION_SETTINGS, settings_sql

pytestmark = pytest.mark.timeout(300)  # a dozen seconds, but many more on a busy machine

#: Other values of parameters that are strings.
STRINGS = {
    "DateStyle": ["SQL, DMY", "German", "Postgres, YMD"],
    "TimeZone": ["Asia/Kathmandu", "America/St_Johns"],
    "search_path": ['zoo, "a table", ext, pg_catalog', "pg_catalog, public"],
    "lc_monetary": ["de_DE.UTF-8", "ja_JP.UTF-8", "C.UTF-8"],
    "lc_numeric": ["de_DE.UTF-8", "C.UTF-8"],
    "lc_time": ["de_DE.UTF-8", "C.UTF-8"],
    "default_text_search_config": ["simple"],
    "timezone_abbreviations": ["Australia"],
}
#: Parameters of the shared set that are about what a session may do, and not about what it prints.
NOT_FORM = {
    "client_min_messages", "row_security", "statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout",
    "idle_session_timeout", "xmlbinary", "default_transaction_isolation", "lc_monetary", "client_encoding",
}  # fmt: skip
#: Not tried: they make every statement slow, or end the session.
LEFT_OUT = {"debug_discard_caches", "role", "session_authorization", "transaction_timeout", "client_encoding"}


@pytest.fixture
def zoo(database: Database) -> Zoo:
    zoo = build_zoo(database.connect())
    zoo.insert()
    columns = []
    for specimen in zoo.specimens:
        if specimen.has_array and not specimen.valueless:
            most = (
                f"SELECT many FROM cage.{specimen.table} WHERE many IS NOT NULL ORDER BY cardinality(many) DESC LIMIT 1"
            )
            columns.append(f"({most}) AS {specimen.table}")
    assert len(columns) > 300
    zoo.connection.execute(cast(LiteralString, f"CREATE TABLE cage.everything AS SELECT {', '.join(columns)}"))
    return zoo


def printed(connection: psycopg.Connection) -> list[bytes | None]:
    result = connection.execute("SELECT * FROM cage.everything").pgresult
    assert result is not None
    return [result.get_value(0, column) for column in range(result.nfields)]


def other_values(connection: psycopg.Connection) -> Iterator[tuple[str, str]]:
    """Names of parameters with values that they do not have."""
    query = (
        "SELECT name, vartype, setting, enumvals, min_val, max_val FROM pg_settings"
        " WHERE context IN ('user', 'superuser') ORDER BY name"
    )
    for name, kind, setting, choices, least, most in connection.execute(query).fetchall():
        if kind in ("integer", "real"):
            small = 60_000 if name.endswith("timeout") else int(float(least)) + 2  # else the session might end by it
            values = [least, str(small), most]
        else:
            values = {"bool": ["on", "off"], "enum": choices or [], "string": STRINGS.get(name, [])}[kind]
        yield from ((name, value) for value in values if value != setting and name not in LEFT_OUT)


def test_no_parameter_changes_a_text_under_the_shared_settings(zoo: Zoo, database: Database) -> None:
    session, telling, tried = database.connect(), set(), 0
    plain = printed(session)
    session.execute(settings_sql())
    shared = printed(session)
    for name, value in list(other_values(session)):
        session.execute("RESET ALL")
        try:
            session.execute("SELECT set_config(%s, %s, false)", [name, value])
        except psycopg.Error:
            continue  # not on this machine: a locale, a module
        if name not in NOT_FORM and printed(session) != plain:
            telling.add(name)
        session.execute(settings_sql())
        assert printed(session) == shared, f"{name} = {value} changes what is printed"
        tried += 1
    assert tried > 250
    assert telling <= SESSION_SETTINGS.keys(), "they change texts, and the shared settings leave them alone"
    assert telling == SESSION_SETTINGS.keys() - NOT_FORM
