"""The rows of a consumer that lack a value which PostgreSQL left out, as Redis has them noted beside the rows."""

from __future__ import annotations

from walbus.consumers.sinks.redis_store import RedisStore
from walbus.consumers.sinks.redis_stored import SCRIPT_ENTRIES, some


class LackingRows:
    """Rows by table and key. Methods may raise what `RedisStore.errors` translates, and as `RedisStore.send`.

    Args:
        store: that has the notes.
    """

    def __init__(self, store: RedisStore) -> None:
        self._store = store
        self._members: set[str] = set()
        self._gone: set[str] = set()  # whose rows are about to be written whole, and are noted yet

    def load(self) -> None:
        """Reads them from the server."""
        self._members, self._gone = self._store.lacking(), set()

    def __contains__(self, row: tuple[str, str]) -> bool:
        return bool(self._members) and _member(*row) in self._members

    def tables(self) -> tuple[str, ...]:
        """Those that have such rows."""
        return tuple(sorted({member.partition("\0")[0] for member in self._members})) if self._members else ()

    def keys_of(self, table: str) -> list[str]:
        """The keys of a table's."""
        return [member.partition("\0")[2] for member in self._of(table)]

    def add(self, table: str, key: str) -> None:
        """One more; called before it is written."""
        self._members.add(_member(table, key))
        self._gone.discard(_member(table, key))
        self._store.add_lacking(_member(table, key))

    def remove(self, table: str, key: str) -> None:
        """A row lacks nothing any more, if it did, once it is `written`: whoever is killed before finds it noted."""
        if (table, key) in self:
            self._members.remove(_member(table, key))
            self._gone.add(_member(table, key))

    def written(self) -> None:
        """Rows that lack nothing any more are written."""
        for members in some(list(self._gone), SCRIPT_ENTRIES):
            self._remove(members)
            self._gone.difference_update(members)

    def not_written(self) -> None:
        """They are not, and lack what they lacked."""
        self._members |= self._gone
        self._gone = set()

    def remove_table(self, table: str) -> None:
        """No row of a table does any more."""
        for members in some(self._of(table), SCRIPT_ENTRIES):
            self._remove(members)

    def _remove(self, members: list[str]) -> None:
        self._store.remove_lacking(members)
        self._members.difference_update(members)

    def _of(self, table: str) -> list[str]:
        return [member for member in self._members if member.startswith(f"{table}\0")]


def _member(table: str, key: str) -> str:
    return f"{table}\0{key}"


__all__ = ["LackingRows"]
