"""Indices that are filled beside the live ones, and take their place by one request for all of them.

The copy of `public.orders` is the next index of that name, `public.orders~2`, under the hidden alias
`public.orders%new`; it has a checkpoint of its own (`Swaps.key`). A swap keeps the live writer waiting, has the copy
take what it lacks, and then moves all at once:

    hold: take the aliases that the live indices are written by ──► windows up to the log's end ──► refresh ──►
    the copy's checkpoint ──► one request: the aliases that are read, the number of the swap, the hold's end

Killed before that request, the live indices are the live ones, and get their aliases for writing back from whoever
looks next; behind it all is done. What an older process still sends goes to an alias that is no more.

A copy is one process's own (`ConsumerState`), which looks once more behind the hold whether it is. Dropping one takes
the hold as well: so none is dropped while it is swapped, and none that was dropped is swapped.

Searches of the live indices may find what its checkpoint does not tell. It was in the log when the writer was stopped,
so the copy is brought to where the log ended then.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self

from walbus.consumers.checkpoint import Checkpoint, dump_checkpoint, last_done_of
from walbus.consumers.sinks.base import SinkPlace
from walbus.consumers.sinks.opensearch import OpenSearchSink
from walbus.consumers.sinks.opensearch_options import OpenSearchOptions
from walbus.consumers.sinks.opensearch_server import NOT_FOUND, IndexGone, OpenSearchServer, path_of
from walbus.consumers.sinks.opensearch_state import (
    drop_claimed,
    drop_documents,
    read_checkpoint,
    read_document,
)
from walbus.consumers.sinks.opensearch_swaps import Swaps
from walbus.consumers.sinks.opensearch_table_index import (
    ASIDE,
    NEW,
    OLD,
    Action,
    FoundIndex,
    IndexChoice,
    TableIndex,
    added,
    note_in,
    removed,
)
from walbus.errors import SinkRefused, SinkUnavailable

_ATTEMPTS = 20  # to drop a copy whose checkpoint moves: its runner waits longer than that between two commits


@dataclass(frozen=True, slots=True)
class LiveIndex:
    """An index that is read, and written by a consumer.

    Attributes:
        name: its own.
        writer: the alias that it is written by.
        alias: that it is read by.
        oid: of its table.
        others: aliases that an operator gave it, as the server tells them.
    """

    name: str
    writer: str
    alias: str
    oid: int
    others: Mapping[str, Mapping[str, object]]

    @classmethod
    def of(cls, name: str, told: FoundIndex, choice: IndexChoice) -> Self:
        """One that the server tells.

        Raises:
            SinkRefused: what the consumer has noted in its mapping is not as it was written.
        """
        layout = note_in(name, told).layout
        writer, alias = choice.writers + name, choice.template.alias(layout.table)
        aside = [one for one in told.aliases if ASIDE in one]
        alias = aside[0] if aside else alias
        if alias not in told.aliases:  # its table was renamed, and the alias has not moved yet
            alias = name.rpartition("~")[0]
        others = {one: as_it_is for one, as_it_is in told.aliases.items() if one not in {writer, alias}}
        return cls(name, writer, alias, layout.oid, others)


class LiveSide:
    """What a consumer's live indices are, and where its checkpoint is.

    Args:
        server: that has them.
        options: the sink's.
        place: whose they are.
    """

    def __init__(self, server: OpenSearchServer, options: OpenSearchOptions, place: SinkPlace) -> None:
        self.swaps = Swaps(server, options.state_index, place.consumer, place.stopping)
        self._server, self._consumer = server, place.consumer
        self._state_index, self._choice = options.state_index, options.choice()

    def checkpoint(self) -> Checkpoint | None:
        """As of a moment ago."""
        return read_checkpoint(self._server, self._state_index, self.swaps.key(self.swaps.number()))

    def written(self) -> list[LiveIndex]:
        """The live indices that are written now; those of a copy are not among them."""
        found = self.found(f"{self._choice.writers}*")
        live = ((name, told) for name, told in found.items() if not any(one.endswith(NEW) for one in told.aliases))
        return [LiveIndex.of(name, told, self._choice) for name, told in live]

    def found(self, pattern: str) -> dict[str, FoundIndex]:
        """The consumer's indices that have such an alias."""
        answer = self._server.ask("GET", f"/{path_of(pattern)}?expand_wildcards=all", accepted=[NOT_FOUND])
        if answer.status == NOT_FOUND:
            return {}
        told = self._server.told(answer, dict[str, FoundIndex])
        return {name: one for name, one in told.items() if one.consumer == self._consumer}

    def drop(self, indices: Mapping[str, FoundIndex]) -> None:
        """Deletes indices, by their names."""
        for name in indices:
            self._server.ask("DELETE", f"/{path_of(name)}", accepted=[NOT_FOUND])
            self._server.clear([self._choice.writers + name])

    def copied(self) -> dict[str, FoundIndex]:
        """The indices of a copy."""
        broken_off = {  # another layout of the copy's, which was not whole
            name: told
            for name, told in self.found(f"{self._choice.writers}*").items()
            if list(told.aliases) == [self._choice.writers + name]
        }
        return self.found(f"*{NEW}") | broken_off

    def drop_copy(self) -> bool:
        """Drops a copy; tells whether there was one. Whoever fills it is refused from then on.

        Its checkpoint goes first, while a hold keeps it from being swapped; if that has moved meanwhile, it is looked
        at anew.

        Raises:
            SinkUnavailable: it is just being swapped, or the hold has ended meanwhile.
            SinkRefused
        """
        self.swaps.settle()
        try:
            self.swaps.take({})
            for _ in range(_ATTEMPTS):
                key = self.swaps.key(self.swaps.number() + 1)
                checkpoint, copied = read_document(self._server, self._state_index, "checkpoint", key), self.copied()
                if not self.swaps.is_own():
                    break
                if checkpoint is None or drop_claimed(self._server, self._state_index, key, checkpoint):
                    self.swaps.release()
                    self.drop(copied)
                    return checkpoint is not None or bool(copied)
        finally:
            self.swaps.release()
        what = "the copy is written too quickly to be dropped, or the search server too slow"
        raise SinkUnavailable(what, where=self._server.where)

    def drop_kept(self) -> bool:
        """Drops what the last copy has replaced; tells whether there was anything.

        The documents go last: they tell that there may be more.
        """
        number = self.swaps.number()
        if number == 0:
            return False
        kept = self.found(f"*{OLD}")
        self.drop(kept)
        return drop_documents(self._server, self._state_index, self.swaps.key(number - 1)) or bool(kept)

    def has(self, number: int) -> bool:
        """Whether there is a checkpoint of the copy of this number."""
        return read_document(self._server, self._state_index, "checkpoint", self.swaps.key(number)) is not None


class OpenSearchCopy(OpenSearchSink):
    """See `walbus.consumers.sinks.copies.SinkCopy`."""

    shows_uncommitted = True

    def __init__(self, options: OpenSearchOptions, place: SinkPlace) -> None:
        super().__init__(options, place, NEW)
        self._is_hidden = bool(options.settings.get("index.hidden"))
        self._live = LiveSide(self._server, options, place)
        self._held: list[LiveIndex] | None = None  # whose writer is kept waiting

    def checkpoint(self) -> Checkpoint | None:
        """See `Sink.checkpoint`. What is there without one was broken off before its first commit, or is dropped."""
        checkpoint = super().checkpoint()
        if checkpoint is None:
            self._live.drop(self._live.found(f"*{NEW}"))
            self._indices.load(())
        return checkpoint

    def furnish(self) -> None:
        """See `SinkCopy.furnish`: aliases come with the swap; what is searchable by now need not be made so then."""
        self._server.refresh([index.name for index in self._indices.all()])

    def hold(self) -> Checkpoint | None:
        """See `SinkCopy.hold`."""
        self._held = self._live.written()
        self._swaps.take({index.name: index.writer for index in self._held})
        self._require_still()
        self._state.require_own()
        return self._live.checkpoint()

    def swap(self, checkpoint: Checkpoint) -> None:
        """See `SinkCopy.swap`."""
        self._flush()
        copies, live = self._indices.all(), self._held or []
        self._server.refresh([copy.name for copy in copies])
        copy_of = {index.name: _copy_of(index, copies) for index in live}
        staying = [index for index in live if copy_of[index.name] is None]
        self._state.set_aliases(self._indices.aliases, tuple(index.alias for index in staying))
        self._state.store(dump_checkpoint(checkpoint))
        actions: list[Action] = [self._swaps.ended, *self._swaps.counted(self._swaps.number() + 1)]
        actions += [added(index.name, index.writer, hidden=True) for index in staying]
        for index in live:
            copy = copy_of[index.name]
            if copy is not None:
                self._server.hide(index.name, hidden=True)  # wildcards meet it by its alias alone from here on
                actions += _put_aside(index, copy)
        for copy in copies:
            alias = copy.alias.removesuffix(NEW)
            actions += [removed(copy.name, copy.alias), added(copy.name, alias, hidden=copy.is_aside)]
        self._require_still()
        try:
            self._server.move(actions)
        except IndexGone:
            what = "the live indices were kept waiting for too long, and are written again"
            raise SinkUnavailable(what, where=self._server.where) from None
        self._held, self._done = None, last_done_of(checkpoint)
        with suppress(SinkUnavailable, SinkRefused):  # the consumer sees to that too
            for copy in copies:
                if not copy.is_aside and not self._is_hidden:
                    self._server.hide(copy.name, hidden=False)

    def rollback(self) -> None:
        """See `Sink.rollback`; the live indices are written again."""
        super().rollback()
        if self._held is not None:
            self._held = None
            self._swaps.release()

    def _require_still(self) -> None:
        if self._live.written():
            what = "the live side has got another index while its writer was to wait"
            raise SinkUnavailable(what, where=self._server.where)


def _copy_of(index: LiveIndex, copies: list[TableIndex]) -> TableIndex | None:
    """The one that takes a live index's place: that of the same alias, or of the same table under another name."""
    of_alias = (copy for copy in copies if copy.alias == index.alias + NEW)
    of_table = (copy for copy in copies if copy.layout.oid == index.oid)
    return next(of_alias, None) or next(of_table, None)


def _put_aside(index: LiveIndex, copy: TableIndex) -> list[Action]:
    """A live index is kept under another alias; the aliases that an operator gave it are the copy's."""
    actions = [removed(index.name, index.alias), added(index.name, index.alias + OLD, hidden=True)]
    for alias, as_it_is in index.others.items():
        given = {"add": {"index": copy.name, "alias": alias, **as_it_is}}
        actions += [removed(index.name, alias), given]
    return actions


class OpenSearchCopies:
    """See `walbus.consumers.sinks.copies.SinkCopies`."""

    def __init__(self, options: OpenSearchOptions, place: SinkPlace) -> None:
        self._options, self._place = options, place
        self._server = OpenSearchServer(options.access(place))
        self._live = LiveSide(self._server, options, place)

    @classmethod
    def copies(cls, options: Mapping[str, Any], place: SinkPlace) -> Self:
        """See `SwappableSinkType.copies`."""
        found = cls(OpenSearchOptions.read(options, place), place)
        try:
            found._server.check()
        except BaseException:
            found.close()
            raise
        return found

    def live(self) -> Checkpoint | None:
        """See `SinkCopies.live`."""
        return self._live.checkpoint()

    def kept(self) -> bool:
        """See `SinkCopies.kept`."""
        number = self._live.swaps.number()
        return number > 0 and self._live.has(number - 1)

    def beside(self) -> OpenSearchCopy:
        """See `SinkCopies.beside`."""
        return OpenSearchCopy(self._options, self._place)

    def discard(self) -> bool:
        """See `SinkCopies.discard`."""
        return self._live.drop_copy()

    def drop_kept(self) -> bool:
        """See `SinkCopies.drop_kept`."""
        return self._live.drop_kept()

    def close(self) -> None:
        """See `SinkCopies.close`."""
        self._server.close()


__all__ = ["OpenSearchCopies", "OpenSearchCopy"]
