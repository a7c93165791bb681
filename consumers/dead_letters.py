"""Dead letters: changes that a consumer's code, or its sink, goes on refusing; on disk, bounded, and in order by key.

    park          a change that was refused, with its layout and what its window said; durable when it returns
    park_behind   a later change of a key that has a letter: it waits behind that one, so that each key keeps its order
    retry, drop   an operator's acts (`walbus dead-letters`), from any process; the consumer notices them within seconds
    asked         the letters that are to be tried again, in order; `resolved` or `failed_again` says how that went

Some letters become void, because what they would do is undone already: those of a table of which a TRUNCATE was dealt
with behind them, and those of rows that a snapshot swept away (`swept`). For the latter a letter has the generation of
the snapshot that it belongs to, or came behind; a row that a snapshot brings gives the letters of its key the
snapshot's. A TRUNCATE is written down when it comes (`truncating`): from then on its table's letters hold nothing, and
they go when it is committed (`committed`), since until then it may come again, with what came before it. Whoever
begins, or goes back, says by the checkpoint which of them were committed (`settle`); the letters of the others hold
again.

What is parked a second time, because a crash came before the checkpoint, is the letter that is there. Beyond `limit`
letters, or `limit_bytes` of changes, nothing more is parked (`DeadLettersFull`): a consumer that parks everything has
not one poison row but another trouble.

The file is read whole when it is opened, and when another process has written to it; in between, `letter_index` knows
what is in it.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from walbus.consumers.checkpoint import Checkpoint
from walbus.consumers.letter_file import DeadLetter, LetterFile, Refused, Voiding, insert, layouts_of, take_out
from walbus.consumers.letter_index import LetterIndex
from walbus.consumers.steps import Sweep
from walbus.errors import DeadLettersFull, UsageError
from walbus.events import Change, Window
from walbus.records import Kind, Op

#: The error of a letter that was not refused itself, but waits behind one that was.
BEHIND: Final = "behind"

_OF_ROWS = ", ".join(str(int(op)) for op in (Op.INSERT, Op.UPDATE, Op.DELETE, Op.TRUNCATE))


class DeadLetters:
    """One consumer's letters. One thread at a time; other processes may open the same file.

    Args:
        path: of the file; made when the first letter is parked.
        limit: letters at most.
        limit_bytes: bytes of their changes at most.
        tries_wait: whether letters that are to be tried again may have to wait for what is read meanwhile; then they do
            not count.
        wall: gives Unix seconds.

    Raises:
        StoreError: the file cannot be opened now.
        StoreDamaged: the file is none of these.
    """

    def __init__(
        self,
        path: Path,
        *,
        limit: int = 10_000,
        limit_bytes: int = 256 << 20,
        tries_wait: bool = False,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._file = LetterFile(path)
        self._limit, self._limit_bytes, self._tries_wait, self._wall = limit, limit_bytes, tries_wait, wall
        self._index = LetterIndex()
        self._voiding: dict[int, Voiding] = {}  # by table: about to be committed
        self._look()

    def __len__(self) -> int:
        return len(self._index)

    # A consumer's side

    def holds(self, change: Change) -> bool:
        """Whether a letter may hold the change's key: then `park_behind` says.

        A TRUNCATE waits behind another one alone: it makes letters of single keys void.
        """
        return self._index.holds(change)

    def comes_before(self, change: Change, window: Window, log_id: str) -> bool:
        """Whether a held change of the log, undone and read again, is older than the first letter of its keys."""
        first = self._index.first(change, log_id) if window.kind == Kind.TRANSACTION else None
        return first is not None and change.seq < first

    def park(  # noqa: PLR0913  # what a letter has
        self, change: Change, window: Window, log_id: str, error: BaseException, attempts: int, *, generation: int = 0
    ) -> bool:
        """Keeps a change that was refused, durably when it returns; False if it is parked already.

        Args:
            change: what was refused.
            window: what it came in.
            log_id: of the log that it is of.
            error: what was raised.
            attempts: how often it was tried.
            generation: that of the snapshot that it belongs to, or came behind (`Sweep.marks`).

        Raises:
            DeadLettersFull: there is no room for it.
        """
        why = Refused(log_id, type(error).__name__, str(error), attempts, self._wall(), generation)
        return self._insert(change, window, why)

    def park_behind(self, change: Change, window: Window, log_id: str, *, generation: int = 0) -> bool:
        """Keeps a change behind a letter that holds its key; False if there is none any more.

        Raises:
            DeadLettersFull: there is no room for it.
        """
        self._look()
        if not self.holds(change):
            return False
        self._insert(change, window, Refused(log_id, BEHIND, "", 0, self._wall(), generation))
        return True

    def truncating(self, voiding: Voiding) -> None:
        """A TRUNCATE comes, and is about to be committed: letters before it do not hold their keys any more."""
        if not len(self):
            return
        with self._writing() as connection:
            row = (voiding.relation, voiding.table, voiding.log_id, voiding.seq)
            connection.execute("INSERT OR REPLACE INTO voiding VALUES (?, ?, ?, ?)", row)
        self._voiding[voiding.relation] = voiding
        self._reread()

    def committed(self) -> dict[str, int]:
        """What was truncated is committed. Gives the number of letters that went with it, by table."""
        return self._take_out_void(lambda _: True) if self._voiding else {}

    def settle(self, checkpoint: Checkpoint | None) -> dict[str, int]:
        """Learns by the stored checkpoint which TRUNCATEs were committed; the others come again. As `committed`."""
        if not self._file.exists or not (self._voiding or self._file.voiding()):
            return {}
        return self._take_out_void(lambda one: one.is_in(checkpoint))

    def _take_out_void(self, is_committed: Callable[[Voiding], bool]) -> dict[str, int]:
        void: dict[str, int] = {}
        with self._writing() as connection:
            for one in self._file.voiding():
                if is_committed(one):
                    which = "relation = ? AND (log_id != ? OR seq < ?)"
                    void[one.table] = len(take_out(connection, which, (one.relation, one.log_id, one.seq)))
            connection.execute("DELETE FROM voiding")
        self._voiding.clear()
        self._reread()
        return void

    def swept(self, sweep: Sweep, log_id: str, relation: int | None = None) -> int:
        """Takes out the letters of rows that a sweep took away: they are gone at the source. Gives their number.

        Those are letters of this log up to the sweep's seq whose key the snapshot did not bring, and all letters of
        other logs of which it did not either.

        Args:
            sweep: that was dealt with.
            log_id: of the log that it is of.
            relation: the table's OID there, if that is known: a letter may know the table by an earlier name.
        """
        if not len(self):
            return 0
        with self._writing() as connection:
            named = ", ".join(map(str, layouts_of(connection, sweep.table)))
            which = (
                f"op IN ({_OF_ROWS}) AND generation < ? AND (layout IN ({named}) OR (log_id = ? AND relation = ?))"
                " AND (log_id != ? OR seq <= ?)"
            )
            gone = take_out(connection, which, (sweep.marks.generation, log_id, relation, log_id, sweep.seq))
        return self._removed(gone)

    def asked(self, most: int = 1_000) -> list[DeadLetter]:
        """The first of the letters that are to be tried again, in order.

        One behind one of its key that is not (it was refused again, and whoever tried it was ended before it told those
        behind it) waits with that one.
        """
        self._look()
        if self._index.behind():
            self._put_off()
        return self._read(self._index.asked(most))

    def resolved(self, letter: DeadLetter) -> None:
        """A letter was dealt with; an operator may have dropped it meanwhile."""
        self._take_out("id = ?", (letter.id,))

    def failed_again(self, letter: DeadLetter, error: BaseException | None) -> None:
        """A letter was refused again, or (None) waits behind one that was; it is not to be tried any more."""
        with self._writing() as connection:
            if error is None:
                done = connection.execute("UPDATE letters SET asked = 0 WHERE id = ?", (letter.id,))
            else:
                done = connection.execute(
                    "UPDATE letters SET asked = 0, attempts = attempts + 1, error = ?, message = ? WHERE id = ?",
                    (type(error).__name__, str(error), letter.id),
                )
        if done.rowcount:
            self._index.ask(letter.id, again=False)

    def _put_off(self) -> None:
        """Letters behind one of their key that is not to be tried again are not either."""
        with self._writing() as connection:
            behind = self._index.behind()
            connection.executemany("UPDATE letters SET asked = 0 WHERE id = ?", [(id_,) for id_ in behind])
        for id_ in behind:
            self._index.ask(id_, again=False)

    # An operator's side

    def letters(self, behind: int = 0, most: int = 1_000) -> list[DeadLetter]:
        """Letters with an id above one, in order."""
        self._look()
        return self._read([id_ for id_ in self._index.ids if id_ > behind][:most])

    def retry(self, ids: Iterable[int] | None = None) -> int:
        """Has letters tried again, with all before them that hold their keys; None means all. Gives their number.

        Raises:
            UsageError: there is no letter of that id.
        """
        wanted = self._known(ids)
        if not wanted:
            return 0
        with self._writing() as connection:
            chosen = self._index.with_those_before(wanted)
            connection.executemany("UPDATE letters SET asked = 1 WHERE id = ?", [(id_,) for id_ in chosen])
        for id_ in chosen:
            self._index.ask(id_, again=True)
        return len(chosen)

    def drop(self, ids: Iterable[int] | None = None) -> int:
        """Takes letters out for good; None means all. Gives their number.

        Raises:
            UsageError: there is no letter of that id.
        """
        wanted = self._known(ids)
        if not wanted:
            return 0
        with self._writing() as connection:
            gone = [one for id_ in wanted for one in take_out(connection, "id = ?", (id_,))]
        return self._removed(gone)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    # The file, and what is known of it

    def _known(self, ids: Iterable[int] | None) -> set[int]:
        self._look()
        there = set(self._index.ids)
        if ids is None:
            return there
        wanted = set(ids)
        if missing := sorted(wanted - there):
            mend = "list them with `walbus dead-letters list`"
            raise UsageError(f"there is no letter {missing[0]}", where=str(self._file.path), mend=mend)
        return wanted

    def _insert(self, change: Change, window: Window, why: Refused) -> bool:
        with self._writing() as connection:
            entry = insert(connection, change, window, why)
            if entry is not None and not self._has_room(entry.size):
                raise DeadLettersFull(
                    f"{len(self)} changes are parked already, and no more may be",
                    where=str(self._file.path),
                    mend="mend what refuses them, then `walbus dead-letters retry` or `drop`",
                )
        if entry is not None:
            self._index.add(entry)
        return entry is not None

    def _has_room(self, size: int) -> bool:
        letters, their_bytes = self._index.left if self._tries_wait else (len(self), self._index.size)
        return letters < self._limit and their_bytes + size <= self._limit_bytes

    def _take_out(self, which: str, parameters: tuple[object, ...]) -> int:
        with self._writing() as connection:
            gone = take_out(connection, which, parameters)
        return self._removed(gone)

    def _removed(self, gone: list[int]) -> int:
        for id_ in gone:
            if id_ in self._index:  # else it was void already
                self._index.remove(id_)
        return len(gone)

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._file.writing() as connection:
            self._look()  # so that the index is in step with what nobody else changes until the end
            yield connection

    def _look(self) -> None:
        """Learns what is there, if another process has changed that."""
        if self._file.exists and self._file.changed():
            self._reread()

    def _reread(self) -> None:
        void = self._voiding.values()
        entries = self._file.entries()
        self._index = LetterIndex(one for one in entries if not any(voiding.voids(one) for voiding in void))

    def _read(self, ids: list[int]) -> list[DeadLetter]:
        return self._file.read(ids) if ids else []
