"""Which of a consumer's copies is the live one, and how its writer is kept waiting while another takes its place.

A server changes aliases, any number of them, in one request or not at all; a request that names an index to be deleted
does nothing if that is not there. Both rest on that:

    the number      how many copies have taken the place: an alias of the index for checkpoints, `…%swaps-NAME~2`, which
                    the swap moves together with the tables' aliases. Each number has a checkpoint of its own.
    the hold        an index without documents, `…%hold-NAME`, which says whose aliases for writing are taken away.
                    The swap deletes it in its request, and so does whoever gives the aliases back: one of the two
                    comes through.

A process that is killed leaves its hold behind. Whoever meets one waits until it is gone; one that stands longer than
any swap takes is ended, and the aliases are given back.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Final
from uuid import uuid4

import msgspec

from walbus.consumers.sinks.opensearch_documents import index_text
from walbus.consumers.sinks.opensearch_server import NOT_FOUND, IndexGone, OpenSearchServer, path_of
from walbus.consumers.sinks.opensearch_table_index import META, Action, FoundIndex, added, deleted, removed
from walbus.errors import SinkRefused, SinkUnavailable

HELD_AT_MOST: Final = 10.0  # seconds: a rebuild gives its hold up after three, and needs some requests for the swap
_LOOK_SECONDS = 0.1
_RELEASES = 3  # attempts: a late delete may make an index where the alias belongs
_BAD_REQUEST = 400
_SETTINGS = {"number_of_shards": 1, "number_of_replicas": 0, "hidden": True}


class _Aliases(msgspec.Struct):
    aliases: dict[str, object]


class Swaps:
    """Those of one consumer.

    Args:
        server: that has them.
        state_index: the index for checkpoints.
        consumer: its name.
    """

    def __init__(self, server: OpenSearchServer, state_index: str, consumer: str) -> None:
        self._server, self._state_index, self._consumer = server, state_index, consumer
        self._hold = f"{state_index}%hold-{index_text(consumer)}"
        self._mark = f"{index_text(state_index)}%swaps-{index_text(consumer)}~"
        self._by = uuid4().hex

    def number(self) -> int:
        """How many copies have taken the place of the one before; 0 where there is no index for checkpoints."""
        answer = self._server.ask("GET", f"/{path_of(self._state_index)}/_alias", accepted=[NOT_FOUND])
        if answer.status == NOT_FOUND:
            return 0
        told = self._server.told(answer, dict[str, _Aliases])
        names = [name for one in told.values() for name in one.aliases if name.startswith(self._mark)]
        return max((int(name.removeprefix(self._mark)) for name in names), default=0)

    def key(self, number: int) -> str:
        """Whose checkpoint is that of the copy of this number; the first one is the consumer's own."""
        return f"{self._consumer}~{number}" if number else self._consumer

    def counted(self, number: int) -> list[Action]:
        """The copy of this number is the live one."""
        mark = added(self._state_index, f"{self._mark}{number}", hidden=True)
        return [mark] + ([removed(self._state_index, f"{self._mark}{number - 1}")] if number > 1 else [])

    # The hold

    @property
    def ended(self) -> Action:
        """The hold is gone."""
        return deleted(self._hold)

    def is_held(self) -> bool:
        """Whether somebody's swap is under way."""
        return self._found() is not None

    def take(self, writers: dict[str, str]) -> None:
        """Takes the hold.

        Args:
            writers: by index, the alias that it is written by.

        Raises:
            SinkUnavailable: another one stands.
        """
        meta = {META: {"by": self._by, "writers": writers}}
        body = {"settings": _SETTINGS, "mappings": {"dynamic": False, "_meta": meta}}
        path = f"/{path_of(self._hold)}?wait_for_active_shards=0"
        answer = self._server.ask("PUT", path, body, accepted=[_BAD_REQUEST])
        if answer.status == _BAD_REQUEST and b"resource_already_exists" in answer.body:
            raise SinkUnavailable("another rebuild is about to swap this sink", where=self._server.where)
        if answer.status == _BAD_REQUEST:
            raise SinkRefused(
                "the index that keeps the writer waiting cannot be made",
                where=f"{self._server.where}, {self._hold}",
                mend="choose another state_index, with a shorter name",
            )
        self._server.move([removed(index, writer) for index, writer in writers.items()])

    def release(self) -> None:
        """Gives the aliases back, if the hold is this process's own and stands yet. Never raises."""
        with suppress(SinkUnavailable, SinkRefused):
            found = self._found()
            if found is not None and found.get("by") == self._by:
                self._give_back(found)

    def settle(self) -> None:
        """Returns when nobody's swap is under way: one that was broken off is ended, after some seconds.

        Raises:
            SinkUnavailable, SinkRefused
        """
        met, end = None, 0.0
        while (found := self._found()) is not None:
            now = time.monotonic()
            if found.get("by") == self._by or (found == met and now > end):
                self._give_back(found)
            elif found == met:
                time.sleep(_LOOK_SECONDS)
            else:
                met, end = found, now + HELD_AT_MOST

    def _found(self) -> dict[str, object] | None:
        answer = self._server.ask("GET", f"/{path_of(self._hold)}", accepted=[NOT_FOUND])
        if answer.status == NOT_FOUND:
            return None
        told = next(iter(self._server.told(answer, dict[str, FoundIndex]).values()), None)
        return None if told is None else told.meta or {}

    def _give_back(self, found: dict[str, object]) -> None:
        writers = found.get("writers")
        if not isinstance(writers, dict):
            raise SinkRefused(
                "there is an index of this name that is none of Walbus's",
                where=f"{self._server.where}, {self._hold}",
                mend="remove it",
            )
        for attempt in range(_RELEASES):
            there = [index for index in writers if self._exists(index)]
            self._server.clear([writers[index] for index in there])
            try:
                self._server.move([self.ended, *(added(index, writers[index], hidden=True) for index in there)])
            except (IndexGone, SinkRefused):
                if self._found() != found:
                    return  # ended by another, or by the swap
                if attempt == _RELEASES - 1:
                    raise
            else:
                return

    def _exists(self, index: str) -> bool:
        return self._server.ask("GET", f"/{path_of(index)}", accepted=[NOT_FOUND]).status != NOT_FOUND


__all__ = ["HELD_AT_MOST", "Swaps"]
