"""Tables whose name another one has by now, and which have not told a new one: what they are called. No connection.

A table may take a name that another relation of the same log had. That one was dropped, or is called otherwise and has
not told so yet, as when two tables swap their names. Its rows would lie among those of the table that has the name; so
they are parked, as rows of `name (oid)`, until it tells its new name. They are written as is configured for `name`.
"""

from __future__ import annotations

import re
from collections.abc import Container
from dataclasses import replace
from typing import Final

from walbus.schema import TableSchema

_PARKED: Final = re.compile(r"(.+) \(\d+\)")


def parked(layout: TableSchema) -> TableSchema:
    """The layout under the name that its table has meanwhile."""
    return replace(layout, name=f"{layout.name} ({layout.oid})")


def is_parked(table: str) -> bool:
    """Whether a table is called so."""
    return _PARKED.fullmatch(table) is not None


def configured_as(table: str, names: Container[str]) -> str:
    """Of the names that something is configured for, the one that is for this table; its own, if none is."""
    found = None if table in names else _PARKED.fullmatch(table)
    return table if found is None else found[1]
