"""The session settings that decide the bytes of every value.

Each session that streams, seeds, reads again or compares starts with exactly these; a role's own settings
(ALTER ROLE ... SET) would otherwise change the text form of values, or hide rows.
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
    "client_min_messages": "warning",
    "row_security": "off",
    "statement_timeout": "0",
    "lock_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "idle_session_timeout": "0",
}


def settings_sql() -> str:
    """One SQL string that applies all settings to an open session; works on replication connections too."""
    return "; ".join(f"SET {name} = '{value}'" for name, value in SESSION_SETTINGS.items())
