"""Which changes, and how much of each, a client of `/v1/stream` asks for: read from the query's parameters. No I/O.

tables=public.orders,public.*            which tables; default: all, with messages
ops=insert,update,delete                 which operations; default: all. Layouts and epochs are never left out
columns=public.orders(id,total)          which columns of rows of these tables, by pattern; tables that no pattern names
                                         are sent with all their columns, and keys are always sent
partition=I/N                            the part I, from 0, of N parts of all keys: those whose hash modulo N is I. A
                                         row whose key moves to another part is deleted in the one that it leaves
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from walbus.errors import UsageError
from walbus.native.reading import WHOLE, Partition
from walbus.records import Op
from walbus.relay.table_filter import split_pattern

#: Operations that a client may choose from, by name.
OPS: Final = {op.name.lower(): op for op in (Op.INSERT, Op.UPDATE, Op.DELETE, Op.TRUNCATE, Op.MESSAGE)}

_COLUMNS = re.compile(r"([^(),]+)\(([^()]*)\)\s*(?:,|\Z)")
_PARTITION = re.compile(r"(\d{1,5})/(\d{1,5})\Z", re.ASCII)
_MEND_COLUMNS = "write it as in public.orders(id,total),public.items(sku)"


@dataclass(frozen=True, slots=True)
class ColumnChoice:
    """The columns that are asked for of the tables that a pattern names.

    Attributes:
        pattern: as `TableFilter` takes them.
        columns: their names.
    """

    pattern: str
    columns: frozenset[str]


@dataclass(frozen=True, slots=True)
class Selection:
    """What passes; hashable, so that streams that ask for the same can be told.

    Attributes:
        tables: patterns, as `TableFilter` takes them; empty: everything.
        ops: operations of changes that pass; None: all.
        columns: the first one whose pattern names a table counts; none: all columns.
        partition: of the keys.
    """

    tables: tuple[str, ...] = ()
    ops: frozenset[int] | None = None
    columns: tuple[ColumnChoice, ...] = ()
    partition: Partition = WHOLE


#: Every change, whole.
EVERYTHING: Final = Selection()


def parse_selection(
    tables: str | None, ops: str | None, columns: str | None, partition: str | None = None
) -> Selection:
    """Reads the parameters; None for one that was not given.

    Raises:
        UsageError: one is wrong; `where` names it.
    """
    patterns = _listed(tables)
    for pattern in patterns:
        split_pattern(pattern)
    return Selection(
        tables=patterns,
        ops=None if ops is None else _ops(ops),
        columns=_columns(columns or ""),
        partition=WHOLE if partition is None else _partition(partition),
    )


def _listed(text: str | None) -> tuple[str, ...]:
    return tuple(part for part in (text or "").split(",") if part)


def _ops(text: str) -> frozenset[int]:
    names = _listed(text)
    for name in names:
        if name not in OPS:
            raise UsageError(f"{name!r} is no operation", where="ops", mend=f"use {', '.join(OPS)}")
    if not names:
        raise UsageError("no operation is named", where="ops", mend=f"use {', '.join(OPS)}, or leave it out")
    return frozenset(int(OPS[name]) for name in names)


def _columns(text: str) -> tuple[ColumnChoice, ...]:
    choices, at = [], 0
    while at < len(text):
        match = _COLUMNS.match(text, at)
        if match is None:
            raise UsageError(f"{text[at : at + 80]!r} is no choice of columns", where="columns", mend=_MEND_COLUMNS)
        pattern, names = match[1].strip(), frozenset(name.strip() for name in match[2].split(",") if name.strip())
        split_pattern(pattern, where="columns")
        if not names:
            raise UsageError(f"no column of {pattern} is named", where="columns", mend=_MEND_COLUMNS)
        choices.append(ColumnChoice(pattern, names))
        at = match.end()
    return tuple(choices)


def _partition(text: str) -> Partition:
    match = _PARTITION.match(text)
    partition = Partition(int(match[1]), int(match[2])) if match is not None else None
    if partition is None or partition.part >= partition.parts:
        what = f"{text[:80]!r} is no partition"
        raise UsageError(what, where="partition", mend="write it as in 0/4, 1/4, 2/4 or 3/4")
    return partition
