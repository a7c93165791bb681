"""Which tables a consumer means: `schema.table`, `schema.*`, `*.*`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from walbus.errors import ConfigError

EVERYTHING = ("*.*",)


def check_patterns(patterns: Sequence[str]) -> tuple[str, ...]:
    """The patterns as they are, if each can be one.

    Raises:
        ConfigError: one is not of the form `schema.table`, `schema.*` or `*.*`; names it.
    """
    for pattern in patterns:
        namespace, dot, name = pattern.partition(".")
        if not (namespace and dot and name) or (namespace == "*" and name != "*") or "," in pattern:
            raise ConfigError(f"{pattern!r} names no table", mend="write schema.table, schema.* or *.*")
    return tuple(patterns) or EVERYTHING


def matching(tables: Iterable[str], patterns: Sequence[str]) -> tuple[str, ...]:
    """Those tables that a pattern names, in their own order."""
    return tuple(table for table in tables if any(_matches(table, pattern) for pattern in patterns))


def covered(pattern: str, patterns: Sequence[str]) -> bool:
    """Whether every table that a pattern names is named by one of `patterns`."""
    namespace = pattern.partition(".")[0]
    return any(one in (pattern, "*.*") or one == f"{namespace}.*" for one in patterns)


def in_both(some: Sequence[str], others: Sequence[str]) -> tuple[str, ...]:
    """Patterns of the tables that both name."""
    both = (*(one for one in some if covered(one, others)), *(one for one in others if covered(one, some)))
    return tuple(dict.fromkeys(both))


def _matches(table: str, pattern: str) -> bool:
    if pattern in ("*.*", table):
        return True
    return pattern.endswith(".*") and table.partition(".")[0] == pattern[:-2]


def of_tables(patterns: tuple[str, ...]) -> dict[str, str]:
    """The parameter `tables` of a server's route; none where they are all."""
    return {} if patterns == EVERYTHING else {"tables": ",".join(patterns)}
