"""Which dead letters there are: what each holds, their order, and which are to be tried again. Pure, and in memory.

A letter holds its keys: that of the change, and the one before an update changed it. A TRUNCATE that was refused holds
all keys of its table. So does an UPDATE or a DELETE of a row without a key, which may be any row; an INSERT of one
holds those, and no other INSERT: rows are appended in any order. Each key's letters have one order: that of seq, log by
log as they were first parked, for a consumer that goes back parks old changes last.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Collection, Iterable
from enum import Enum
from typing import NamedTuple

from walbus.events import Change
from walbus.records import Op


class Keyless(Enum):
    """What stands for the key of a row that has none."""

    APPENDED = "an INSERT's"
    CHANGED = "an UPDATE's or a DELETE's"


class Held(NamedTuple):
    """A key that a letter holds; `key` is None for every key of the table."""

    relation: int
    key: bytes | Keyless | None


class Entry(NamedTuple):
    """What is to be known of a letter without reading it.

    Attributes:
        id: rises in the order of parking.
        log_id, seq: of its change.
        size: bytes of its change.
        asked: whether it is to be tried again.
        held: its keys.
    """

    id: int
    log_id: str
    seq: int
    size: int
    asked: bool
    held: tuple[Held, ...]


class LetterIndex:
    """The letters of one store; kept in step with it by whoever writes there."""

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        self._entries: dict[int, Entry] = {}
        self._seqs: dict[Held, dict[str, list[int]]] = {}  # of the letters that hold it, by log, in order
        self._of_relation: dict[int, set[Held]] = {}  # what `_seqs` has
        self._asked: set[int] = set()
        self._size = {False: 0, True: 0}  # bytes of the changes, by whether they are to be tried again
        for entry in entries:
            self.add(entry)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, id_: int) -> bool:
        return id_ in self._entries

    @property
    def ids(self) -> list[int]:
        """Of all letters, in the order of parking."""
        return sorted(self._entries)

    @property
    def size(self) -> int:
        """Bytes of all changes."""
        return sum(self._size.values())

    @property
    def left(self) -> tuple[int, int]:
        """How many letters are not to be tried again, and the bytes of their changes."""
        return len(self._entries) - len(self._asked), self._size[False]

    def add(self, entry: Entry) -> None:
        """A letter was parked."""
        self._entries[entry.id] = entry
        for held in entry.held:
            self._of_relation.setdefault(held.relation, set()).add(held)
            insort(self._seqs.setdefault(held, {}).setdefault(entry.log_id, []), entry.seq)
        self._size[entry.asked] += entry.size
        if entry.asked:
            self._asked.add(entry.id)

    def remove(self, id_: int) -> None:
        """A letter is gone."""
        entry = self._entries.pop(id_)
        self._size[entry.asked] -= entry.size
        self._asked.discard(id_)
        for held in entry.held:
            self._let_go(held, entry)

    def ask(self, id_: int, *, again: bool) -> None:
        """A letter is to be tried again, or is not any more."""
        entry = self._entries[id_]
        if entry.asked != again:
            self.remove(id_)
            self.add(entry._replace(asked=again))

    def holds(self, change: Change) -> bool:
        """Whether a letter holds the change's key.

        A TRUNCATE waits behind another one alone: it makes letters of single keys void.
        """
        return bool(self._seqs) and any(self._holding(change))

    def first(self, change: Change, log_id: str) -> int | None:
        """The seq of a log's first letter that holds the change's key; None if none does."""
        seqs = (self._seqs[held].get(log_id) for held in self._holding(change))
        return min((of_log[0] for of_log in seqs if of_log), default=None)

    def asked(self, most: int) -> list[int]:
        """The first of those to be tried again, in order; none behind one of its key that is not."""
        return self._sorted_out()[0][:most]

    def behind(self) -> list[int]:
        """Those to be tried again that come behind one of their key that is not."""
        return self._sorted_out()[1]

    def _sorted_out(self) -> tuple[list[int], list[int]]:
        """Those to be tried again: which can be, in order, and which are behind one that is not to be."""
        chosen: list[int] = []
        behind: list[int] = []
        blocked: set[Held] = set()
        for entry in self._in_order() if self._asked else ():
            if not entry.asked:
                blocked.update(entry.held)
            elif any(_touch(held, blocked) for held in entry.held):
                blocked.update(entry.held)
                behind.append(entry.id)
            else:
                chosen.append(entry.id)
        return chosen, behind

    def with_those_before(self, wanted: Collection[int]) -> list[int]:
        """Letters, and all before them that hold their keys."""
        chosen: list[int] = []
        held: set[Held] = set()
        for entry in reversed(self._in_order()):
            if entry.id in wanted or any(_touch(one, held) for one in entry.held):
                chosen.append(entry.id)
                held.update(entry.held)
        return chosen

    def _holding(self, change: Change) -> Iterable[Held]:
        """What is held of what the change may touch."""
        for one in held_by(change):
            if one.key is Keyless.CHANGED:
                yield from self._of_relation.get(one.relation, ())
            else:
                yield from (held for held in ((one,) if one.key is None else _before(one)) if held in self._seqs)

    def _let_go(self, held: Held, entry: Entry) -> None:
        logs = self._seqs[held]
        seqs = logs[entry.log_id]
        del seqs[bisect_left(seqs, entry.seq)]
        if not seqs:
            del logs[entry.log_id]
        if not logs:
            del self._seqs[held]
            self._of_relation[held.relation].discard(held)

    def _in_order(self) -> list[Entry]:
        first: dict[str, int] = {}
        for id_ in self.ids:
            first.setdefault(self._entries[id_].log_id, id_)
        return sorted(self._entries.values(), key=lambda entry: (first[entry.log_id], entry.seq, entry.id))


def held_by(change: Change) -> tuple[Held, ...]:
    """The keys that a letter with this change holds."""
    raw = change.raw
    return held_of(raw.table, raw.op, raw.key, raw.old_key)


def held_of(relation: int, op: int, key: bytes | None, old_key: bytes | None) -> tuple[Held, ...]:
    """The same, by what a letter says of its change."""
    if op == Op.TRUNCATE:
        return (Held(relation, None),)
    if op not in (Op.INSERT, Op.UPDATE, Op.DELETE):
        return ()
    if key is None:
        return (Held(relation, Keyless.APPENDED if op == Op.INSERT else Keyless.CHANGED),)
    return tuple(Held(relation, one) for one in (key, old_key) if one is not None)


def touches(change: Change, held: Collection[Held]) -> bool:
    """Whether any of the change's keys is among those held."""
    return any(_touch(one, held) for one in held_by(change))


def _touch(one: Held, held: Collection[Held]) -> bool:
    if one.key is None or one.key is Keyless.CHANGED:
        return any(other.relation == one.relation for other in held)
    return any(other in held for other in _before(one))


def _before(one: Held) -> tuple[Held, ...]:
    """What a row waits behind that has a key (which it may not have had before), or that is appended."""
    keys = (
        (Keyless.CHANGED, None) if one.key is Keyless.APPENDED else (one.key, Keyless.APPENDED, Keyless.CHANGED, None)
    )
    return tuple(Held(one.relation, key) for key in keys)
