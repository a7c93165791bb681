"""A sink before which rows that it refuses are set aside: skipped, or parked as dead letters, while all others go on.

A refusal undoes what was accepted, since many sinks cannot take half of it back: the row is noted, `Rewound` is raised,
and the runner reads again behind the sink's checkpoint. When the row comes again it is tried again, until it was
refused `attempts` times; from then on it is left out, and only now parked, for only now it is certain that the letter
is durable before any checkpoint passes the row. Where a sink cannot say which row it was, what was refused is handed
over in ever smaller pieces when it comes again, down to single changes (`refused_search`).

What is read, of a snapshot or a delta, need not come again at once: the log may go on first, and its checkpoints end
nothing. And it may come as another version, of a row that changed meanwhile: that is tried on, not anew.

Under `dead-letter` later changes of a key that has a letter are parked behind it. What came before the first letter of
its key is not: it was undone together with the row. Letters that are asked for are handed over between two commits, as
deltas, for which a sink compares the row's own version alone; the checkpoint stays. They wait while a snapshot is read.
A letter that was taken is deleted when a power failure cannot take the row back any more: the log would not bring it.

Under `skip` a row may be missing that a later update leaves values out of. The sink then has its table read again once:
if the row is refused there too, such updates are skipped, until a whole row of that key comes.

A TRUNCATE makes the letters of its table void, and they go when it is committed: it may yet be refused itself.

An error that is about no row (`SinkRefused`) passes through, and so do those of a sweep and of a commit that name none.
A sink that finds out only when it commits, and so can name none, watches what comes again (`WatchfulSink`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby

import structlog

from walbus.consumers.checkpoint import Checkpoint, Following, Marks, Snapshotting
from walbus.consumers.dead_letters import DeadLetters
from walbus.consumers.letter_file import DeadLetter, Voiding
from walbus.consumers.letter_index import Held, held_by, touches
from walbus.consumers.refused_rows import RefusedRow, RowRefused
from walbus.consumers.refused_search import RefusedSearch
from walbus.consumers.sinks import Sink
from walbus.consumers.sinks.base import Batching, SettlingSink, WatchfulSink
from walbus.consumers.steps import Sweep
from walbus.errors import SinkUnavailable
from walbus.events import Change, Window
from walbus.records import Kind, Op

_log = structlog.get_logger(__name__)

_ROW_OPS = frozenset({int(op) for op in (Op.INSERT, Op.UPDATE, Op.DELETE, Op.TRUNCATE)})
_READ = frozenset({Kind.SNAPSHOT, Kind.DELTA})
_LOOK_SECONDS = 1.0  # between two looks for letters that are to be tried again
_MOST_MISSING = 100_000  # keys of skipped rows that are remembered; a table is read again for others
_TRY_SECONDS = 0.25  # that letters are tried at a time


class Rewound(Exception):  # noqa: N818  # no error: what was accepted is to come again
    """A row was refused, and what was accepted is to be read again behind `checkpoint()`.

    Attributes:
        pause: whether the row is to be tried again, which is better done a moment later.
    """

    def __init__(self, error: RowRefused, *, pause: bool) -> None:
        super().__init__(str(error))
        self.pause = pause


@dataclass
class _Fault:
    error: RowRefused
    read: bool  # whether it came with a snapshot or a delta
    attempts: int = 0


class SiftedSink:
    """See the module, and `walbus.consumers.sinks.base.Sink`.

    Args:
        sink: where all else goes.
        row_of: the row of a change, as the sink's errors name it: a mapping may give it another key.
        letters: where refused changes are parked; None: they are skipped.
        attempts: how often a row is tried.
        consumer: its name, for the log.
        monotonic: gives seconds.

    Attributes:
        log_id: gives that of the log that is read; set by whoever reads.
        skipped: how many changes were left out for good.
    """

    def __init__(  # noqa: PLR0913, PLR0917  # what it stands between
        self,
        sink: Sink,
        row_of: Callable[[Change], RefusedRow],
        letters: DeadLetters | None,
        attempts: int,
        consumer: str,
        monotonic: Callable[[], float],
    ) -> None:
        self._sink, self._row_of, self._letters = sink, row_of, letters
        self._attempts, self._consumer, self._monotonic = attempts, consumer, monotonic
        self.log_id: Callable[[], str] = lambda: ""
        self.skipped = 0
        self._faults: dict[RefusedRow, _Fault] = {}
        self._read: dict[tuple[object, ...], RefusedRow] = {}  # of them, those that were read, by relation and key
        self._reading = False  # whether rows that were read are accepted, and not committed
        self._met: set[RefusedRow] = set()  # of them, those that came again since the last commit: left out, or tried
        self._left_out: list[
            dict[str, object]
        ] = []  # what is to be told of changes that are skipped by the next commit
        self._missing: dict[tuple[int, bytes], RowRefused] = {}  # rows that were skipped when their table was read
        self._searches = {False: RefusedSearch(), True: RefusedSearch()}  # of the log, and of what is read
        self._committed: Checkpoint | None = None
        self._look_at = float("-inf")
        self._relations: dict[str, int] = {}  # OIDs of tables, by what the layouts say

    @property
    def batching(self) -> Batching:
        """See `Sink.batching`."""
        return self._sink.batching

    def checkpoint(self) -> Checkpoint | None:
        """See `Sink.checkpoint`."""
        self._rewound()
        committed = self._committed = self._sink.checkpoint()
        if self._letters is not None:
            for table, void in self._letters.settle(committed).items():
                self._tell_void(table, void)
        return committed

    def write(self, windows: Sequence[Window], marks: Marks) -> None:
        """See `Sink.write`.

        Raises:
            Rewound: a row was refused.
            DeadLettersFull: and cannot be parked.
        """
        for read, run in _runs(windows):
            self._reading = self._reading or read
            search = self._searches[read]
            for call in search.calls(run):
                count = sum(len(window.changes) for window in call)
                left = [self._sifted(window, marks) for window in call] if self._is_sifting else call
                try:
                    self._sink.write(left, marks)
                except RowRefused as error:
                    changes = [change for window in left for change in window.changes]
                    raise self._noted(error, changes, partial(search.refused, count)) from None
                search.took(count)

    def sweep(self, sweep: Sweep) -> None:
        """See `Sink.sweep`; letters of rows that it took away are void.

        Raises:
            Rewound: a row that was written before it was refused only now.
        """
        try:
            self._sink.sweep(sweep)
        except RowRefused as error:
            raise (error if error.row is None else self._noted(error)) from None
        if self._letters is not None:
            relation = self._relations.get(sweep.table)
            self._tell_void(sweep.table, self._letters.swept(sweep, self.log_id(), relation))

    def commit(self, checkpoint: Checkpoint) -> None:
        """See `Sink.commit`.

        Raises:
            Rewound: a row was refused.
        """
        try:
            self._sink.commit(checkpoint)
        except RowRefused as error:
            if error.row is None and isinstance(self._sink, WatchfulSink) and self._sink.watch():
                raise Rewound(error, pause=False) from None
            raise self._noted(error) from None
        is_read = self._reading or isinstance(self._committed, Snapshotting)
        self._committed = checkpoint
        for search in self._searches.values():
            search.committed()
        if self._letters is not None:
            for table, void in self._letters.committed().items():
                self._tell_void(table, void)
        for told in self._left_out:
            _log.warning("consumer.change_skipped", **told)
        self.skipped += len(self._left_out)
        self._left_out.clear()
        self._forget_faults(checkpoint, is_read=is_read and not isinstance(checkpoint, Snapshotting))
        self._reading = False

    def rollback(self) -> None:
        """See `Sink.rollback`."""
        self._rewound()
        self._met.clear()  # they come again
        self._left_out.clear()
        self._sink.rollback()

    def incomplete(self) -> tuple[str, ...]:
        """See `Sink.incomplete`."""
        return self._sink.incomplete()

    def close(self) -> None:
        """See `Sink.close`."""
        self._sink.close()
        if self._letters is not None:
            self._letters.close()

    @property
    def parked(self) -> int:
        """How many letters there are."""
        return 0 if self._letters is None else len(self._letters)

    def _rewound(self) -> None:
        self._reading = False
        for search in self._searches.values():
            search.rewound()

    # What is refused

    def _noted(
        self, error: RowRefused, changes: Sequence[Change] = (), refused: Callable[[], None] = lambda: None
    ) -> Exception:
        """What is to be raised for a refusal of one of these changes, or of one that the error names.

        Args:
            error: the refusal.
            changes: of the call that was refused.
            refused: has one of them looked for.
        """
        row = error.row
        if row is None and len(changes) == 1 and changes[0].raw.op in _ROW_OPS:
            row = self._row_of(changes[0])
        if row is not None:
            fault = self._faults.setdefault(row, _Fault(error, self._reading))
            fault.attempts += 1
            if fault.read:
                self._read[row[:2]] = row
            if error.row is None:
                refused()  # it is found by itself once more
            if fault.attempts > self._attempts:  # it was left out, and is refused all the same
                return error
            return Rewound(error, pause=fault.attempts < self._attempts)
        if len(changes) < 2:  # nothing to look for it in
            return error
        refused()
        return Rewound(error, pause=False)

    def _forget_faults(self, checkpoint: Checkpoint, *, is_read: bool) -> None:
        """Faults of rows that were left out, or taken at another try, or that do not come again.

        Args:
            checkpoint: that is committed.
            is_read: whether all that was to be read is.
        """
        done = checkpoint.point.seq if isinstance(checkpoint, Following) else -1
        left = {r: fault for r, fault in self._faults.items() if r not in self._met}
        self._faults = {r: fault for r, fault in left.items() if (not is_read if fault.read else r.seq > done)}
        self._read = {r[:2]: r for r, fault in self._faults.items() if fault.read}
        self._met.clear()

    def _fault_of(self, row: RefusedRow, window: Window) -> _Fault | None:
        """That of a row, or of the version of it that was read before."""
        fault = self._faults.get(row)
        before = self._read.get(row[:2]) if fault is None and window.kind in _READ else None
        if before is not None:
            self._faults[row] = fault = self._faults.pop(before)
            self._read[row[:2]] = row
        return fault

    # What is set aside

    @property
    def _is_sifting(self) -> bool:
        return bool(self._faults) or bool(self._missing) or self._letters is not None

    def _sifted(self, window: Window, marks: Marks) -> Window:
        if window.kind == Kind.SCHEMA:
            self._relations |= {
                change.table: change.raw.table for change in window.changes if change.schema is not None
            }
        if not self._faults and not self._missing and not self.parked:
            return window
        left = [change for change in window.changes if not self._is_set_aside(change, window, marks)]
        return window if len(left) == len(window.changes) else replace(window, changes=left)

    def _is_set_aside(self, change: Change, window: Window, marks: Marks) -> bool:
        if change.raw.op not in _ROW_OPS:
            return False
        row = self._row_of(change)
        fault = self._fault_of(row, window)
        if fault is not None:
            self._met.add(row)
            fault = fault if fault.attempts >= self._attempts else None
        if self._letters is None:
            return self._is_skipped(change, window, fault)
        log_id = self.log_id()
        waits = self._letters.holds(change) and not self._letters.comes_before(change, window, log_id)
        if waits and self._letters.park_behind(change, window, log_id, generation=marks.generation):
            return True
        if fault is not None:
            why = log_id, fault.error, fault.attempts
            if self._letters.park(change, window, *why, generation=marks.generation):
                _log.warning("consumer.change_parked", **self._told(change, fault))
            return True
        if change.raw.op == Op.TRUNCATE:
            self._letters.truncating(Voiding(change.raw.table, change.table, log_id, change.seq))
        return False

    def _is_skipped(self, change: Change, window: Window, fault: _Fault | None) -> bool:
        raw = change.raw
        if fault is not None and raw.key is not None and window.kind == Kind.SNAPSHOT:
            self._missing[raw.table, raw.key] = fault.error
            if len(self._missing) > _MOST_MISSING:
                del self._missing[next(iter(self._missing))]
        elif fault is None and self._missing:
            fault = self._without_its_row(change)
        if fault is not None:
            self._left_out.append(self._told(change, fault))
        return fault is not None

    def _without_its_row(self, change: Change) -> _Fault | None:
        """Why a change is skipped that leaves values out which nobody has; others bring their row, or take it away."""
        raw = change.raw
        if raw.op == Op.TRUNCATE:
            self._missing = {place: error for place, error in self._missing.items() if place[0] != raw.table}
        places = [(raw.table, key) for key in (raw.old_key, raw.key) if key is not None]
        error = self._missing.get(places[0]) if places else None
        for place in places:
            self._missing.pop(place, None)
        if error is None or not raw.unchanged:
            return None
        self._missing[places[-1]] = error
        return _Fault(error, read=False)

    # What is tried again

    def try_letters(self) -> None:
        """Hands letters over that are asked for, if it is time to look; nothing may be accepted and not committed.

        It takes a moment's worth of them, so that whoever runs this sees a stop, and goes on at the next call.

        Raises:
            SinkUnavailable, SinkRefused: letters that were taken, and not settled, are tried again.
        """
        committed, letters = self._committed, self._letters
        if letters is None or not isinstance(committed, Following) or self._monotonic() < self._look_at:
            return
        began = self._monotonic()
        self._look_at = began + _LOOK_SECONDS
        failed: set[Held] = set()
        taken: list[DeadLetter] = []
        for number, letter in enumerate(letters.asked()):
            if number and self._monotonic() - began > _TRY_SECONDS:
                self._look_at = began
                break
            if letter.log_id != committed.log_id:  # another log's rows have come since, and with them this one's key
                letters.resolved(letter)
                self._tell_void(letter.change.table, 1)
            elif touches(letter.change, failed):
                letters.failed_again(letter, None)
                failed.update(held_by(letter.change))  # its other key as well, if it moves a row
            elif error := self._tried(letter, committed):
                letters.failed_again(letter, error)
                failed.update(held_by(letter.change))
            else:
                taken.append(letter)
        self._resolve(letters, taken)

    def _resolve(self, letters: DeadLetters, taken: Sequence[DeadLetter]) -> None:
        """Deletes letters that the sink has committed, once it keeps them over a power failure too."""
        if taken and isinstance(self._sink, SettlingSink):
            self._sink.settle()
        for letter in taken:
            letters.resolved(letter)
            told = {"table": letter.change.table, "position": str(letter.change.position)}
            _log.info("consumer.letter_resolved", consumer=self._consumer, **told)

    def _tried(self, letter: DeadLetter, committed: Following) -> RowRefused | None:
        window = replace(letter.window, kind=Kind.DELTA)
        try:
            self._sink.write([window], committed.marks)
            self._sink.commit(committed)
        except RowRefused as error:
            self._sink.rollback()
            if self._sink.checkpoint() != committed:  # emptied, or written by another process: begin from what it has
                raise SinkUnavailable("it has another checkpoint than was stored last") from None
            return error
        return None

    def _told(self, change: Change, fault: _Fault) -> dict[str, object]:
        told = {"table": change.table, "position": str(change.position), "reason": str(fault.error)}
        return {"consumer": self._consumer, "attempts": fault.attempts, **told}

    def _tell_void(self, table: str, void: int) -> None:
        if void:
            _log.warning("consumer.letters_void", consumer=self._consumer, table=table, letters=void)


def _runs(windows: Sequence[Window]) -> Iterator[tuple[bool, Sequence[Window]]]:
    """Windows that follow each other and are of the log, or were read."""
    if len({window.kind in _READ for window in windows}) > 1:
        yield from ((read, list(run)) for read, run in groupby(windows, lambda window: window.kind in _READ))
    else:
        yield bool(windows) and windows[0].kind in _READ, windows
