"""Everything that a role or a database can set against Walbus."""

from __future__ import annotations

from support.database import Database

#: Settings that change what is printed, hide rows, or end sessions that take their time.
HOSTILE = {
    "DateStyle": "German, DMY",
    "IntervalStyle": "iso_8601",
    "TimeZone": "Asia/Kathmandu",
    "extra_float_digits": "-15",
    "bytea_output": "escape",
    "search_path": 'zoo, "a table", ext, public, pg_catalog',
    "quote_all_identifiers": "on",
    "xmlbinary": "hex",
    "xmloption": "document",
    "client_encoding": "LATIN1",
    "client_min_messages": "debug5",
    "row_security": "on",
    "array_nulls": "off",
    "transform_null_equals": "on",
    "default_transaction_isolation": "serializable",
    "default_transaction_read_only": "on",
    "default_transaction_deferrable": "on",
    "statement_timeout": "2s",
    "lock_timeout": "1s",
    "idle_in_transaction_session_timeout": "1s",
    "idle_session_timeout": "2s",
    "transaction_timeout": "2s",
    "default_text_search_config": "simple",
    "escape_string_warning": "on",
    "standard_conforming_strings": "off",
    "synchronize_seqscans": "off",
    "exit_on_error": "on",
    "session_replication_role": "replica",
    "check_function_bodies": "off",
    "wal_sender_timeout": "4s",
}


def make_hostile(database: Database) -> None:
    """Sets all of them for every new session of the database that does not say otherwise."""
    known = {name for (name,) in database.execute("SELECT name FROM pg_settings")}
    for name, value in HOSTILE.items():
        if name in known:
            setting = value if name == "search_path" else f"'{value}'"
            database.execute(f"ALTER DATABASE {database.name} SET {name} = {setting}")
