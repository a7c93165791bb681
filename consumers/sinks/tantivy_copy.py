"""A search index that is filled beside the live one, and takes its place.

The copy is the next generation (`tantivy_folders`): an index in a folder of its own, with rows, layouts and checkpoint
of its own. A swap is its last commit, and then one rename, by which readers and the consumer find it where they found
the live one. Since the checkpoint lies in the index, it goes with the rows. From `hold` on the live one's writer waits
for the lock that it commits under; the kernel frees that lock should this process be killed.

Killed before the rename, the copy is one that has a commit more, and the next rebuild goes on with it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from pathlib import Path
from typing import Any, Self

from walbus.consumers.checkpoint import Checkpoint, Marks
from walbus.consumers.sinks.base import SinkPlace
from walbus.consumers.sinks.tantivy import TantivySink
from walbus.consumers.sinks.tantivy_documents import IndexedRow, columns_of, indexed_row, is_row, table_of
from walbus.consumers.sinks.tantivy_errors import index_errors
from walbus.consumers.sinks.tantivy_folders import IndexFolders
from walbus.consumers.sinks.tantivy_index import IndexView, RowIndex
from walbus.consumers.sinks.tantivy_live import let_go
from walbus.consumers.sinks.tantivy_options import TantivyOptions, path_of
from walbus.consumers.sinks.tantivy_state import IndexState, read_state
from walbus.errors import SinkRefused, SinkUnavailable


class LiveView:
    """What the live index has, read beside its writer.

    Args:
        folders: of the index.
    """

    def __init__(self, folders: IndexFolders) -> None:
        self._folders = folders
        self._opened: tuple[Path, IndexView] | None = None

    def now(self) -> tuple[IndexView, IndexState] | None:
        """The live index as of its last commit, and its state; None: there is none.

        Raises:
            SinkUnavailable, SinkRefused
        """
        folder = self._folders.live
        if folder is None:
            return None
        with index_errors(folder):
            if self._opened is None or self._opened[0] != folder:
                view = IndexView.open(folder)
                if view is None:
                    return None
                self._opened = folder, view
            view = self._opened[1]
            view.reload()
            return view, read_state(view, folder)

    def checkpoint(self) -> Checkpoint | None:
        """Its checkpoint; raises as `now`."""
        now = self.now()
        return None if now is None else now[1].checkpoint


class _CopysIndex:
    """See `OpenedIndex`: it is this process's own, as long as that has `IndexFolders.one_rebuild`.

    Args:
        folder: it lies in.
        heap_bytes: memory of the writer.
        mend: what helps if its files are damaged.
    """

    def __init__(self, folder: Path, heap_bytes: int, mend: str) -> None:
        self.folder, self._mend = folder, mend
        with self.errors():
            self.rows = RowIndex(folder, heap_bytes)

    def errors(self) -> AbstractContextManager[None]:
        """See `OpenedIndex.errors`."""
        return index_errors(self.folder, self._mend)

    def turn_to_live(self) -> None:
        """See `OpenedIndex.turn_to_live`: nothing takes its place."""

    def require_mine(self) -> None:
        """See `OpenedIndex.require_mine`."""

    def while_mine(self) -> AbstractContextManager[None]:
        """See `OpenedIndex.while_mine`."""
        return nullcontext()

    def close(self) -> None:
        """See `OpenedIndex.close`."""
        let_go(self.rows)


class TantivyCopy(TantivySink):
    """See `walbus.consumers.sinks.copies.SinkCopy`."""

    shows_uncommitted = True  # parts of a large transaction

    def __init__(
        self, index: _CopysIndex, folders: IndexFolders, live: LiveView, options: TantivyOptions, place: SinkPlace
    ) -> None:
        self._folders, self._live = folders, live
        self._hold = ExitStack()
        self._swapped = False
        super().__init__(index, options, place)

    def incomplete(self) -> tuple[str, ...]:
        """See `Sink.incomplete`. What a carried row lacks it lacks in the live index too, and nobody can read it."""
        return tuple(table for table in super().incomplete() if table not in self._carried)

    def furnish(self) -> None:
        """See `SinkCopy.furnish`: the rows of tables that the bootstrap has no more are carried over.

        What can be merged is merged here, lest much be left of that in the moment of the swap.
        """
        now = self._live.now()
        with self._errors():
            if now is not None:
                self._carry(*now)
            self._index.settle()

    def hold(self) -> Checkpoint | None:
        """See `SinkCopy.hold`."""
        with self._errors():
            self._hold.enter_context(self._folders.alone())
        return self._live.checkpoint()

    def swap(self, checkpoint: Checkpoint) -> None:
        """See `SinkCopy.swap`."""
        with self._hold:
            self.commit(checkpoint)
            try:
                self._folders.point_to(self._opened.folder)
            except OSError as error:
                what = f"the link cannot be replaced: {error.strerror}"
                raise SinkUnavailable(what, where=str(self._folders.path)) from None
            self._swapped = True
            with suppress(ValueError):  # then the end of this process does it
                self._index.hand_over()

    def rollback(self) -> None:
        """See `Sink.rollback`; the live one's writer goes on."""
        self._hold.close()
        if not self._swapped:
            super().rollback()

    def close(self) -> None:
        """See `Sink.close`."""
        self._hold.close()
        super().close()

    def _carry(self, live: IndexView, state: IndexState) -> None:
        """Rows of tables of which nothing has come here, though the sink is sent them and the log knows them."""
        before, own = state.checkpoint, self._checkpoint
        if before is None or own is None or before.log_id != own.log_id:
            return
        tables = {layout.table for layout in self._layouts.values()}
        lacking = [one for one in state.layouts.values() if one.oid not in self._layouts and one.table not in tables]
        for layout in lacking:
            for row in _rows_of(live, layout.table, before.marks, own.marks):
                self._index.put(row)
            self._lacking |= {row_id for row_id in state.lacking if table_of(row_id) == layout.table}
            self._carried.add(layout.table)
            self._layouts[layout.oid], self._layouts_stored = layout, False
        if lacking:
            self._log_generation = own.marks.log_generation
            self._commit()
            self._highest = self._index.highest_seq()


def _rows_of(live: IndexView, table: str, before: Marks, own: Marks) -> Iterator[IndexedRow]:
    """A table's documents, marked as the copy's own; none that somebody else wrote.

    A seq of an earlier log says nothing in this one.
    """
    for together in live.documents_of(table):
        ours = [one for one in together if is_row(one, table) and columns_of(one.source) is not None]
        newest = max(ours, key=lambda one: one.seq or 0, default=None)
        if newest is None or newest.name is None or newest.seq is None or newest.mark is None:
            continue
        seq = newest.seq if newest.mark >= before.log_generation else 0
        yield indexed_row(newest.name, table, seq, own.generation, columns_of(newest.source) or {})


class TantivyCopies:
    """See `walbus.consumers.sinks.copies.SinkCopies`."""

    def __init__(self, options: TantivyOptions, place: SinkPlace) -> None:
        self._options, self._place = options, place
        path = path_of(options, place)
        with index_errors(path):
            self._folders = IndexFolders(path, place.stopping)
            self._mine = self._folders.one_rebuild()
        self._live = LiveView(self._folders)

    @classmethod
    def copies(cls, options: Mapping[str, Any], place: SinkPlace) -> Self:
        """See `SwappableSinkType.copies`.

        Raises:
            SinkRefused: another process has to do with the copies.
        """
        return cls(TantivyOptions.read(options, place), place)

    def live(self) -> Checkpoint | None:
        """See `SinkCopies.live`."""
        return self._live.checkpoint()

    def kept(self) -> bool:
        """See `SinkCopies.kept`."""
        return bool(self._folders.replaced)

    def beside(self) -> TantivyCopy:
        """See `SinkCopies.beside`."""
        path, name = self._folders.path, self._place.consumer
        if self._folders.live == path:
            what = "the index is a folder, and a swap takes a link to one"
            mend = f"start `walbus consume {name}` anew, which makes it one; where the file system cannot do that, by "
            mend += f"hand, while neither it nor a reader runs: mv {path} {path}~1 && ln -s {path.name}~1 {path}"
            raise SinkRefused(what, where=str(path), mend=mend)
        with index_errors(path):
            self._folders.drop(())
            folder = self._folders.beside()
        index = _CopysIndex(folder, self._options.heap_bytes, f"`walbus rebuild {name} --discard` drops this copy")
        return TantivyCopy(index, self._folders, self._live, self._options, self._place)

    def discard(self) -> bool:
        """See `SinkCopies.discard`."""
        return self._drop(self._folders.copies)

    def drop_kept(self) -> bool:
        """See `SinkCopies.drop_kept`."""
        return self._drop(self._folders.replaced)

    def close(self) -> None:
        """See `SinkCopies.close`."""
        os.close(self._mine)

    def _drop(self, folders: list[Path]) -> bool:
        self._folders.drop(folders)
        return bool(folders)


__all__ = ["TantivyCopies", "TantivyCopy"]
