"""Which of a consumer's copies is the live one, and how its writer is kept waiting while another takes its place.

A server changes aliases, any number of them, in one request or not at all; a request that names an index to be deleted
does nothing if that is not there. Both rest on that:

    the number      how many copies have taken the place: an alias of the index for checkpoints, `…%swaps-NAME~2`, which
                    the swap moves together with the tables' aliases. Each number has a checkpoint of its own.
    the hold        an index without documents, `…%hold-NAME~HOLDER`, which says whose aliases for writing are taken
                    away. The swap deletes it in its request, and so does whoever gives the aliases back: one of the two
                    comes through, and nobody's request is meant by another's hold.

Whoever takes a hold looks for others behind that, and gives way to any: of two that come at once the later one sees the
earlier one, so that one stands alone at most. A process that is killed leaves its hold behind. Whoever meets one waits
until it is gone; one that stands longer than any swap takes is ended, and the aliases are given back.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final
from uuid import uuid4

import msgspec

from walbus.consumers.sinks.opensearch_documents import index_text
from walbus.consumers.sinks.opensearch_names import number_of
from walbus.consumers.sinks.opensearch_server import NOT_FOUND, IndexGone, OpenSearchServer, path_of
from walbus.consumers.sinks.opensearch_table_index import META, OLD, Action, FoundIndex, added, deleted, removed
from walbus.errors import SinkRefused, SinkUnavailable

HELD_AT_MOST: Final = 10.0  # seconds: a rebuild gives its hold up after three, and needs some requests for the swap
_LOOK_SECONDS = 0.1
_RELEASES = 3  # attempts: a late delete may make an index where the alias belongs
_BAD_REQUEST = 400
_SETTINGS = {"number_of_shards": 1, "number_of_replicas": 0, "hidden": True}


class _Aliases(msgspec.Struct):
    aliases: dict[str, object]


class _Made(msgspec.Struct):
    acknowledged: bool = True


class Swaps:
    """Those of one consumer.

    Args:
        server: that has them.
        state_index: the index for checkpoints.
        consumer: its name.
        stopping: whether who waits for another's swap is to give up.
    """

    def __init__(self, server: OpenSearchServer, state_index: str, consumer: str, stopping: Callable[[], bool]) -> None:
        self._server, self._state_index, self._consumer = server, state_index, consumer
        self._stopping = stopping
        self._holds = f"{state_index}%hold-{index_text(consumer)}~"
        self._hold = f"{self._holds}{uuid4().hex[:16]}"
        self._mark = f"{index_text(state_index)}%swaps-{index_text(consumer)}~"

    def number(self) -> int:
        """How many copies have taken the place of the one before; 0 where there is no index for checkpoints."""
        answer = self._server.ask("GET", f"/{path_of(self._state_index)}/_alias", accepted=[NOT_FOUND])
        if answer.status == NOT_FOUND:
            return 0
        told = self._server.told(answer, dict[str, _Aliases])
        names = [name for one in told.values() for name in one.aliases]
        return max((number_of(self._mark.removesuffix("~"), name) for name in names), default=0)

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
        """This process's own hold is gone; the request fails if it was so before."""
        return deleted(self._hold)

    def is_held(self) -> bool:
        """Whether somebody's swap is under way."""
        return bool(self._found())

    def is_own(self) -> bool:
        """Whether this process's own hold has stood since it was taken."""
        return self._hold in self._found()

    def take(self, writers: dict[str, str]) -> None:
        """Takes the hold.

        Args:
            writers: by index, the alias that it is written by, which is taken away.

        Raises:
            SinkUnavailable: another one stands.
        """
        body = {"settings": _SETTINGS, "mappings": {"dynamic": False, "_meta": {META: {"writers": writers}}}}
        path = f"/{path_of(self._hold)}?wait_for_active_shards=0"
        answer = self._server.ask("PUT", path, body, accepted=[_BAD_REQUEST])
        if answer.status == _BAD_REQUEST:
            raise SinkRefused(
                "the index that keeps the writer waiting cannot be made",
                where=f"{self._server.where}, {self._hold}",
                mend="choose another state_index, with a shorter name",
            )
        if not self._server.told(answer, _Made).acknowledged:
            raise SinkUnavailable("some nodes of the search server have not heard of a hold", where=self._server.where)
        if self._found().keys() - {self._hold}:
            self._server.ask("DELETE", f"/{path_of(self._hold)}", accepted=[NOT_FOUND])
            what = "another `walbus rebuild` is just swapping this sink, or dropping the copy"
            raise SinkUnavailable(what, where=self._server.where)
        stands = added(self._hold, f"{self._hold}%taken", hidden=True)  # else nothing is taken away
        self._server.move([stands, *(removed(index, writer) for index, writer in writers.items())])

    def release(self) -> None:
        """Gives the aliases back, if the hold is this process's own and stands yet. Never raises."""
        with suppress(SinkUnavailable, SinkRefused):
            if own := self._own():
                self._give_back(own)

    def settle(self) -> None:
        """Returns when nobody's swap is under way: one that was broken off is ended, after some seconds.

        Raises:
            SinkUnavailable, SinkRefused
        """
        met: dict[str, float] = {}
        while found := self._found():
            now = time.monotonic()
            met = {hold: met.get(hold, now) for hold in found}
            left = self._own() or {hold: meta for hold, meta in found.items() if now - met[hold] > HELD_AT_MOST}
            if left:
                self._give_back(left)
            elif self._stopping():
                raise SinkUnavailable("a rebuilt copy is about to take the sink's place", where=self._server.where)
            else:
                time.sleep(_LOOK_SECONDS)

    def _own(self) -> dict[str, dict[str, Any]]:
        return {hold: meta for hold, meta in self._found().items() if hold == self._hold}

    def _found(self) -> dict[str, dict[str, Any]]:
        """The meta data of all holds that stand."""
        answer = self._server.ask("GET", f"/{path_of(f'{self._holds}*')}?expand_wildcards=all", accepted=[NOT_FOUND])
        if answer.status == NOT_FOUND:
            return {}
        return {hold: told.meta or {} for hold, told in self._server.told(answer, dict[str, FoundIndex]).items()}

    def _give_back(self, holds: dict[str, dict[str, Any]]) -> None:
        """Ends holds, all in one request, and gives back what they took; nothing is done if one has ended meanwhile."""
        writers: dict[str, str] = {}
        for hold, meta in holds.items():
            if not _are_aliases(meta.get("writers")):
                raise SinkRefused(
                    "there is an index of this name that is none of Walbus's",
                    where=f"{self._server.where}, {hold}",
                    mend="remove it",
                )
            writers |= meta["writers"]
        for attempt in range(_RELEASES):
            there = [index for index in writers if self._is_live(index)]
            self._server.clear([writers[index] for index in there])
            ended = [deleted(hold) for hold in holds]
            try:
                self._server.move([*ended, *(added(index, writers[index], hidden=True) for index in there)])
            except (IndexGone, SinkRefused):
                if holds.keys() - self._found().keys():
                    return  # ended by another, or by the swap
                if attempt == _RELEASES - 1:
                    raise
            else:
                return

    def _is_live(self, index: str) -> bool:
        """Whether it is there, and not replaced since: another's swap may have been between a look and a hold."""
        answer = self._server.ask("GET", f"/{path_of(index)}", accepted=[NOT_FOUND])
        if answer.status == NOT_FOUND:
            return False
        told = self._server.told(answer, dict[str, FoundIndex])
        return not any(alias.endswith(OLD) for one in told.values() for alias in one.aliases)


def _are_aliases(writers: object) -> bool:
    return isinstance(writers, dict) and all(isinstance(alias, str) and alias for alias in writers.values())


__all__ = ["HELD_AT_MOST", "Swaps"]
