"""Names and texts as SQL writes them, for statements that an operator copies. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable

_SETTING = re.compile(r"[a-z_][a-z0-9_]*")


def identifier(name: str) -> str:
    """A name in double quotes, always: whether it is a reserved word depends on the version."""
    return '"' + name.replace('"', '""') + '"'


def qualified(namespace: str, name: str) -> str:
    """`"namespace"."name"`."""
    return f"{identifier(namespace)}.{identifier(name)}"


def literal(text: str) -> str:
    """A text in single quotes; with a backslash, in the form whose meaning no setting changes."""
    quoted = text.replace("'", "''")
    escaped = quoted.replace("\\", "\\\\")
    return f"E'{escaped}'" if escaped != quoted else f"'{quoted}'"


def columns(names: Iterable[str]) -> str:
    """Names with commas between."""
    return ", ".join(identifier(name) for name in names)


def set_setting(name: str, value: str, *more: str) -> str:
    """ALTER SYSTEM SET; the names of settings are PostgreSQL's own. Of a list each member is quoted by itself."""
    if not _SETTING.fullmatch(name):
        raise ValueError(f"{name!r} is not the name of a setting")
    return f"ALTER SYSTEM SET {name} = {', '.join(map(literal, (value, *more)))}"
