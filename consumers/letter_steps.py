"""What the callbacks' loop does with dead letters: parks changes, takes out what is void, hands over what is asked for.

Each is a piece of the loop's steps (`callback_effects`). A letter that is tried again is a window of its own, between
two others: `on_window_start`, `on_change`, `on_window_end`, `on_checkpoint`; `on_rollback` where any of them raises.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from functools import partial
from typing import TypeAlias

import structlog

from walbus.consumers.callback_effects import Effects, Feed, Step, Steps
from walbus.consumers.callbacks import AsyncCallbacks, Callbacks
from walbus.consumers.dead_letters import DeadLetters
from walbus.consumers.deliveries import Delivery
from walbus.consumers.letter_file import DeadLetter, Voiding
from walbus.consumers.letter_index import Held, held_by, touches
from walbus.consumers.steps import Sweep
from walbus.events import Change
from walbus.records import Kind, Op

_log = structlog.get_logger(__name__)

_LOOK_SECONDS = 1.0  # between two looks for letters that are to be tried again

Report: TypeAlias = Callable[[Exception, Change | None], Steps]


@dataclass
class LetterSteps:
    """The letters of one run.

    Attributes:
        letters: the store.
        calls, feed, effects: the loop's.
        report: tells the consumer of an error.
        monotonic: gives seconds.
    """

    letters: DeadLetters
    calls: Callbacks | AsyncCallbacks
    feed: Feed
    effects: Effects
    report: Report
    monotonic: Callable[[], float]
    _look_at: float = field(default=float("-inf"), init=False)
    _relations: dict[str, int] = field(default_factory=dict, init=False)  # OIDs of tables, by what the layouts say

    @property
    def due(self) -> bool:
        """Whether it is time to look for letters that are to be tried again."""
        return self.monotonic() >= self._look_at

    @property
    def waiting(self) -> bool:
        """Whether there is any, so that a change may have to wait behind it."""
        return len(self.letters) > 0

    def layouts_of(self, delivery: Delivery) -> None:
        """Learns which table has which OID."""
        if delivery.kind == Kind.SCHEMA:
            self._relations |= {change.table: change.raw.table for change in delivery if change.schema is not None}

    def park(self, change: Change, delivery: Delivery, error: Exception, attempts: int) -> Steps:
        """Keeps a change that was refused; raises DeadLettersFull."""
        park = partial(self.letters.park, generation=delivery.generation)
        yield self.effects.call, (park, change, delivery.window, self.feed.log_id, error, attempts)
        told = {"consumer": self.feed.name, "table": change.table, "position": str(change.position)}
        _log.warning("consumer.change_parked", **told, error=type(error).__name__, attempts=attempts)

    def park_behind(self, change: Change, delivery: Delivery) -> Generator[Step, bool, bool]:
        """Keeps a change that is to wait behind a letter, if it is; raises DeadLettersFull."""
        if not self.letters.holds(change) or self.letters.comes_before(change, delivery.window, self.feed.log_id):
            return False
        park = partial(self.letters.park_behind, generation=delivery.generation)
        return (yield self.effects.call, (park, change, delivery.window, self.feed.log_id))

    def taken(self, change: Change) -> Steps:
        """A change was dealt with: a TRUNCATE makes its table's letters void, as soon as it is committed."""
        if change.raw.op == Op.TRUNCATE:
            voiding = Voiding(change.raw.table, change.table, self.feed.log_id, change.seq)
            yield self.effects.call, (self.letters.truncating, voiding)

    def committed(self) -> Steps:
        """What was dealt with is committed."""
        void: dict[str, int] = yield self.effects.call, (self.letters.committed,)
        self._tell_all_void(void)

    def settle(self) -> Steps:
        """The run begins, or what was dealt with since the stored checkpoint comes again."""
        void: dict[str, int] = yield self.effects.call, (self.letters.settle, self.feed.checkpoint)
        self._tell_all_void(void)

    def swept(self, sweep: Sweep) -> Steps:
        """A sweep was dealt with: letters of rows that it took away are void."""
        relation = self._relations.get(sweep.table)
        void: int = yield self.effects.call, (self.letters.swept, sweep, self.feed.log_id, relation)
        self._tell_void(sweep.table, void)

    def asked(self) -> Generator[Step, list[DeadLetter], list[DeadLetter]]:
        """Those that are to be handed over now, in order by key."""
        self._look_at = self.monotonic() + _LOOK_SECONDS
        return (yield self.effects.call, (self.letters.asked,))

    def hand_over(self, asked: list[DeadLetter]) -> Generator[Step, object, int]:
        """Tries letters again, each as a window of its own, until the run is stopped; how many were dealt with."""
        failed: set[Held] = set()
        resolved = 0
        for letter in asked:
            if self.feed.stopped:
                break
            waits = touches(letter.change, failed)
            error = None if waits else (yield from self._try(letter))
            if error is None and not waits:
                resolved += 1
                yield self.effects.call, (self.letters.resolved, letter)
            else:
                failed.update(held_by(letter.change))
                yield self.effects.call, (self.letters.failed_again, letter, error)
        return resolved

    def _try(self, letter: DeadLetter) -> Generator[Step, object, Exception | None]:
        window = self.feed.again(letter.window)
        try:
            yield self.calls.on_window_start, (window,)
            yield self.calls.on_change, (window.changes[0], window)
            yield self.calls.on_window_end, (window,)
            yield self.calls.on_checkpoint, (self.feed.stored,)
        except BaseException as error:
            try:
                if isinstance(error, Exception):
                    yield from self.report(error, letter.change)
            finally:
                yield self.calls.on_rollback, (self.feed.stored,)
            if isinstance(error, Exception):
                return error
            raise
        return None

    def _tell_all_void(self, letters: dict[str, int]) -> None:
        for table, void in letters.items():
            self._tell_void(table, void)

    def _tell_void(self, table: str, void: int) -> None:
        if void:
            _log.warning("consumer.letters_void", consumer=self.feed.name, table=table, letters=void)
