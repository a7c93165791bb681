"""The session settings that decide the bytes of every value.

Each session that streams, seeds, reads again or compares starts with exactly these; a role's or a database's own
settings (ALTER ROLE ... SET) would otherwise change the text form of values, hide rows, or end the session.

Which parameters change a text was found by trying all of them on all types (tests/integration/test_values_settings.py
does it again on each version): DateStyle, IntervalStyle, TimeZone, extra_float_digits, bytea_output, search_path and
quote_all_identifiers, and lc_monetary where the server has other locales. The timeouts count for the walsender too:
it decodes inside transactions, which transaction_timeout ends.
"""

from __future__ import annotations

#: Run-time parameters and their values, in PostgreSQL's spelling.
SESSION_SETTINGS: dict[str, str] = {
    "client_encoding": "UTF8",
    "DateStyle": "ISO",
    "IntervalStyle": "postgres",
    "TimeZone": "UTC",
    "extra_float_digits": "3",
    "bytea_output": "hex",
    "xmlbinary": "base64",
    "lc_monetary": "C",
    "search_path": "",
    "quote_all_identifiers": "off",
    "client_min_messages": "warning",
    "row_security": "off",
    "default_transaction_isolation": "read committed",
    "statement_timeout": "0",
    "lock_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "idle_session_timeout": "0",
}

#: The same for parameters that older versions do not have.
NEWER_SETTINGS: dict[str, str] = {
    "transaction_timeout": "0",  # 17
}


def settings_sql() -> str:
    """One SQL string that applies all settings to an open session; works on replication connections too."""
    statements = [f"SET {name} = '{value}'" for name, value in SESSION_SETTINGS.items()]
    statements += [
        f"SELECT pg_catalog.set_config('{name}', '{value}', false)"
        f" WHERE pg_catalog.current_setting('{name}', true) IS NOT NULL"
        for name, value in NEWER_SETTINGS.items()
    ]
    return "; ".join(statements)
