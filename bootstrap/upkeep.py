"""Keeps the change index in proportion to the rows, and drops tombstones that are too old for any delta.

Folding writes blindly, so each change of a key leaves the key's earlier place in the index behind. A place whose seq is
not its entry's is stale, and stays so forever (seqs only rise): it can be dropped at any later time, without a look at
what is folded meanwhile. A pass over the index begins when as many changes have come as the last pass left places, so
that the work is a constant part of folding, and the index at most a few times the size of what it has to hold. A pass
packs what it keeps into full pages, and counts tombstones on its way.

A portion of a pass is as many pages as hold the places of some thousands of keys, and goes on as long as the pages that
follow are mostly of keys that it has. Of a key that stands in it more than once only the last place is looked up: the
others are stale whatever its entry says. So the places that a hot key leaves cost a pass next to nothing, and it keeps
up with a load of updates of few keys.

Below the horizon (`walbus.bootstrap.horizon`) places say nothing any more, and tombstones go with them. Whenever the
horizon has moved, the pages before it are taken off the front of each table's index. A tombstone is removed under the
ledger's lock and only if it is still there, for an event may have brought its key back; and only where a table is not
being seeded, for a chunk may still bring the row that it shuts out.

Pages are read from the store as it is, without the lock: the applier adds pages behind all others and touches none. If
a table's rows go meanwhile (TRUNCATE, another generation), what was read of it is thrown away.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import structlog

from walbus.bootstrap.change_index import Place, pages_of, places_of, take
from walbus.bootstrap.entry import is_tombstone, seq_of
from walbus.bootstrap.horizon import HORIZON, MARKS, Horizon, Mark, Marks, seq_for_limit
from walbus.bootstrap.ledger import Ledger
from walbus.bootstrap.runs import TableRun
from walbus.bootstrap.state import Applied, decode, encode
from walbus.bootstrap.store import WriteSet

log = structlog.get_logger(__name__)

_SMALLEST_PASS = 50_000
_PAGES = 32  # that are read together
#: A portion that has so many keys ends with the next pages that are mostly of others; or it has so many places.
_KEYS, _PLACES = 10_000, 200_000
#: Pages are written anew where at least this part of their places goes, or half of the pages.
_WORTH_IT = 0.1


@dataclass(frozen=True, slots=True)
class Retention:
    """How long, and how many, tombstones are kept: seconds, and a number over all tables."""

    seconds: float
    limit: int


@dataclass(slots=True)
class _Pass:
    """One pass over the index.

    Attributes:
        waiting: the tables that are still to come; the last one is at work.
        after: key of the last page that was looked at.
        kept: how many places.
        tombstones: (seq, how many up to it) of each portion.
    """

    waiting: list[TableRun]
    after: bytes = b""
    kept: int = 0
    tombstones: list[tuple[int, int]] = field(default_factory=list)


class _Portion:
    """Pages that follow each other.

    Attributes:
        pages: by key.
        places: how many they have.
        latest: the seq of the last place of each key, in the order of the seqs.
    """

    def __init__(self) -> None:
        self.pages: list[tuple[bytes, bytes]] = []
        self.places = 0
        self.latest: dict[bytes, int] = {}

    def add(self, pages: list[tuple[bytes, bytes]]) -> None:
        """Takes the pages that come next."""
        self.pages += pages
        for _, page in pages:
            self.places += take(self.latest, page)


class IndexUpkeep:
    """One pass after the other, a little at a time. Belongs to one thread, but for `tombstones`."""

    def __init__(
        self, ledger: Ledger, clock: Callable[[], float], wall_clock: Callable[[], float], retention: Retention
    ) -> None:
        """Upkeep that goes on where the store stands.

        Args:
            ledger: whose index it is.
            clock: seconds, for the length of the work.
            wall_clock: Unix seconds, for the age of tombstones.
            retention: of tombstones.
        """
        self.tombstones = 0  #: held, as of the last pass
        self._ledger = ledger
        self._clock = clock
        self._wall_clock = wall_clock
        self._retention = retention
        self._pass: _Pass | None = None
        self._next_at = 0
        self._marks = Marks("")
        self._purged = 0  # the seq up to which every table's pages are gone

    def work(self, seconds: float) -> int:
        """Goes on for about so long; returns how many places were dropped."""
        applied = self._ledger.applied
        if applied is None:
            return 0
        self._mark(applied)
        until = self._clock() + seconds
        dropped = 0
        while self._clock() < until:
            done = self._purge() or self._sweep(applied)
            if done is None:
                break
            dropped += done
        return dropped

    # The horizon.

    def _mark(self, applied: Applied) -> None:
        """Notes what is applied now, and moves the horizon to what is old enough."""
        if self._marks.log_id != applied.log_id:
            content = self._ledger.store.document(MARKS)
            stored = Marks("") if content is None else decode(content, Marks)
            self._marks = stored if stored.log_id == applied.log_id else Marks(applied.log_id)
            self._pass, self._purged = None, 0
        seconds, limit = self._retention.seconds, self._retention.limit
        now = self._wall_clock()
        marks = self._marks.with_applied(applied, now, seconds=seconds, changes=max(1, limit // 20))
        if marks is not self._marks:
            self._marks = marks
            with self._ledger.lock:
                if self._ledger.applied is not None and self._ledger.applied.log_id == marks.log_id:
                    self._ledger.store.write(WriteSet(documents={MARKS: encode(marks)}))
        self._move_to(self._marks.older_than(now - seconds))

    def _move_to(self, mark: Mark | None) -> None:
        """Moves the horizon to a mark, if that lies behind it."""
        current = self._horizon()
        if mark is None or (current is not None and mark.seq <= current.seq):
            return
        horizon = self._marks.horizon(mark)
        self._marks = self._marks.since(mark.seq)
        with self._ledger.lock:
            applied = self._ledger.applied
            if applied is None or applied.log_id != horizon.log_id:
                return
            self._ledger.store.write(WriteSet(documents={HORIZON: encode(horizon), MARKS: encode(self._marks)}))
        log.info("tombstone_horizon", position=str(horizon.position), seq=horizon.seq)

    def _horizon(self) -> Horizon | None:
        content = self._ledger.store.document(HORIZON)
        horizon = None if content is None else decode(content, Horizon)
        return horizon if horizon is not None and horizon.log_id == self._marks.log_id else None

    def _purge(self) -> int | None:
        """Takes a portion off the front of an index; None where nothing lies below the horizon."""
        horizon = self._horizon()
        if horizon is None or horizon.seq <= self._purged:
            return None
        for run in self._ledger.folding():
            if run.seeding:
                continue
            pages = self._ledger.store.pages(run.space, b"", _PAGES)
            old = [
                (key, page) for key, page in pages if next(places_of(page), (horizon.seq + 1, b""))[0] <= horizon.seq
            ]
            if old:
                portion = _Portion()
                portion.add(old)
                return self._drop(run, portion, horizon.seq)
        if not any(run.seeding for run in self._ledger.folding()):
            self._purged = horizon.seq
        return None

    # Passes.

    def _sweep(self, applied: Applied) -> int | None:
        """A portion of the pass under way, or of a new one if it is time for it."""
        if self._pass is None:
            if applied.last_seq < self._next_at:
                return None
            self._pass = _Pass(self._ledger.folding())
        current = self._pass
        if not current.waiting:
            self._end(current, applied)
            return None
        run = current.waiting[-1]
        portion = self._portion(run, current.after)
        if not portion.pages:
            current.waiting.pop()
            current.after = b""
            return 0
        current.after = portion.pages[-1][0]
        return self._drop(run, portion, 0, current)

    def _portion(self, run: TableRun, after: bytes) -> _Portion:
        portion = _Portion()
        while portion.places < _PLACES:
            keys, places = len(portion.latest), portion.places
            pages = self._ledger.store.pages(run.space, after, _PAGES)
            portion.add(pages)
            mostly_new = 2 * (len(portion.latest) - keys) > portion.places - places
            if len(pages) < _PAGES or (keys >= _KEYS and mostly_new):
                break
            after = pages[-1][0]
        return portion

    def _end(self, done: _Pass, applied: Applied) -> None:
        self._pass = None
        self._next_at = applied.last_seq + max(_SMALLEST_PASS, done.kept)
        self.tombstones = sum(count for _, count in done.tombstones)
        seq = seq_for_limit(done.tombstones, self._retention.limit)
        if seq:
            self._move_to(self._marks.at_least(seq))

    def _drop(self, run: TableRun, portion: _Portion, horizon: int, tally: _Pass | None = None) -> int:
        """Drops what is stale or not above the horizon from pages that follow each other; how many places."""
        truncated = run.state.truncated_seq
        entries = self._ledger.store.get_many([run.space + key for key in portion.latest])
        kept: list[Place] = []
        gone: dict[bytes, bytes] = {}
        tombstones = 0
        last = 0
        for (key, seq), entry in zip(portion.latest.items(), entries, strict=True):
            last = seq
            if entry is None or seq_of(entry) != seq:
                continue
            if seq > horizon:
                kept.append((seq, key))
                tombstones += is_tombstone(entry)
            elif is_tombstone(entry):
                gone[run.space + key] = entry
        if tally is not None:
            tally.kept += len(kept)
            tally.tombstones.append((last, tombstones))
        dropped, packed = portion.places - len(kept), pages_of(run.space, kept)
        if not horizon and dropped < _WORTH_IT * portion.places and 2 * len(packed) > len(portion.pages):
            return 0
        now: dict[bytes, bytes | None] = {**dict.fromkeys(key for key, _ in portion.pages), **packed}
        with self._ledger.lock:
            current = any(one is run for one in self._ledger.folding())
            if current and run.state.truncated_seq == truncated and not (gone and run.seeding):
                self._ledger.store.write(WriteSet(entries=self._still(gone), pages=now))
        return dropped

    def _still(self, gone: dict[bytes, bytes]) -> dict[bytes, bytes | None]:
        """Those of the tombstones that are there, as they are removed."""
        found = self._ledger.store.get_many(list(gone))
        return {key: None for (key, entry), now in zip(gone.items(), found, strict=True) if now == entry}
