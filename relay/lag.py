"""How far behind the log's end a position is: in changes, in bytes, in seconds, and in hours until it is gone.

Changes are counted by seq, so they include what a consumer's filter leaves out. The gaps that new writers of the log
leave in the seqs are found (`walbus.relay.seq_gaps`) and do not count; no more than one change a byte is ever told.
Bytes lie between the position's place in the segments and the end. Seconds are the age of the oldest transaction that
is not done, so a consumer at the end is not behind however old the end is.

Near the end, where nearly all consumers are, places are known from samples of the end that were taken as it moved: one
a tenth of a second, for ten minutes. A place further back is looked up by the index of its segment, exactly, and
remembered, for it never changes; beyond so many look-ups in one go a place is told by its segment alone, which is too
much by less than a segment. Blocking, for some reads; thread-safe.
"""

from __future__ import annotations

import threading
from bisect import bisect_left, bisect_right
from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import NamedTuple

from walbus.errors import DamagedRecord, PositionTrimmed, PositionUnknown
from walbus.position import Position
from walbus.relay.cursor import Located
from walbus.relay.reader import FileLogReader
from walbus.relay.segment import HEADER_SIZE
from walbus.relay.seq_gaps import Gap
from walbus.relay.view import LogView

_SAMPLE_SECONDS = 0.1
_SAMPLES = 6000
_REMEMBERED = 8192
_LOOKUPS = 64  # in one go


@dataclass(frozen=True, slots=True)
class Lag:
    """How far behind the log's end a consumer is.

    Attributes:
        changes: not done, at most; tables that the consumer does not read count too.
        bytes: of the log, not done.
        seconds: age of the oldest transaction that is not done; 0 at the end.
        leaves_in_hours: until retention drops what comes next, about; None at the end, where nothing can be lost.
        gone: whether it has been dropped: only a snapshot helps.
    """

    changes: int
    bytes: int
    seconds: float
    leaves_in_hours: float | None
    gone: bool


@dataclass(frozen=True, slots=True)
class KeptFor:
    """How long the log is kept.

    Attributes:
        hours: since the commit.
        bytes: of the whole log; None: no such bound.
    """

    hours: float
    bytes: int | None


class Place(NamedTuple):
    """Where a consumer is: the position of the last change that it has done, and the last seq given by then."""

    last_done: Position
    seq: int


class _Sample(NamedTuple):
    position: Position
    segment: int
    offset: int
    seq: int
    commit_time: int


class LagMeter:
    """Tells lags of one log.

    Args:
        reader: the log.
        kept_for: its retention.
    """

    def __init__(self, reader: FileLogReader, kept_for: KeptFor) -> None:
        self._reader = reader
        self._kept_for = kept_for
        self._gaps = reader.seq_gaps()
        self._lock = threading.Lock()
        self._samples: deque[_Sample] = deque(maxlen=_SAMPLES)
        self._sampled_at = float("-inf")
        self._remembered: OrderedDict[Position, Located] = OrderedDict()

    def sample(self, now: float) -> None:
        """Notes where the end is, if it has moved and the last sample is old enough (monotonic seconds)."""
        if now - self._sampled_at < _SAMPLE_SECONDS:
            return
        end = _end_of(self._reader.view())
        with self._lock:
            if not self._samples or self._samples[-1].position < end.position:
                self._samples.append(end)
                self._sampled_at = now

    def lags(self, places: list[Place], now: float) -> dict[Place, Lag]:
        """The lag of each place.

        Args:
            places: any number of them.
            now: Unix seconds.
        """
        view = self._reader.view()
        with self._lock:
            samples = [*self._samples, _end_of(view)]
        lookups = _LOOKUPS
        found: dict[Place, Located] = {}
        for place in places:
            position = place.last_done
            located = self._known(position, samples)
            if located is None and _held(position, view):
                if lookups > 0:
                    lookups -= 1
                    located = self._look_up(position)
                located = located or _by_segment(position, view)
            found[place] = located or _oldest(view)
        behind = [_seq(*one) for one in found.items() if one[0].last_done < view.mark.tip.position]
        gaps = self._gaps.above(view, min(behind)) if behind else []
        return {place: self._lag(place, located, gaps, view, now) for place, located in found.items()}

    def _lag(self, place: Place, located: Located, gaps: list[Gap], view: LogView, now: float) -> Lag:
        tip, position = view.mark.tip, place.last_done
        if position >= tip.position:
            return Lag(0, 0, 0.0, None, gone=False)
        gone = position < view.manifest.trimmed
        ahead = max(_offset(view, view.mark.segment, view.mark.offset) - _offset(view, *located[:2]), 0)
        seq = _seq(place, located)
        unused = sum(max(gap.first - 1 - max(gap.before, seq), 0) for gap in gaps)
        changes = max(min(tip.last_seq - seq - unused, ahead), 0)
        seconds = max(now - located.commit_time / 1e6, 0.0)
        leaves = 0.0 if gone else self._leaves_in(located, ahead, view, now)
        return Lag(changes, ahead, seconds, leaves, gone)

    def _leaves_in(self, located: Located, ahead: int, view: LogView, now: float) -> float:
        hours = self._kept_for.hours - (now - located.commit_time / 1e6) / 3600
        rate = _bytes_an_hour(view)
        if self._kept_for.bytes is not None and rate > 0:
            hours = min(hours, (self._kept_for.bytes - ahead) / rate)
        return max(hours, 0.0)

    def _known(self, position: Position, samples: list[_Sample]) -> Located | None:
        at = bisect_right(samples, position, key=lambda sample: sample.position) - 1
        if 0 <= at < len(samples) - 1:
            sample = samples[at]
            return Located(sample.segment, sample.offset, sample.seq, samples[at + 1].commit_time)
        with self._lock:
            return self._remembered.get(position)

    def _look_up(self, position: Position) -> Located | None:
        try:
            located = self._reader.locate(position)
        except (PositionTrimmed, PositionUnknown, DamagedRecord, OSError):
            return None  # the streams meet it, and tell it
        if located is not None:
            with self._lock:
                self._remembered[position] = located
                if len(self._remembered) > _REMEMBERED:
                    self._remembered.popitem(last=False)
        return located


def _end_of(view: LogView) -> _Sample:
    mark, tip = view.mark, view.mark.tip
    return _Sample(tip.position, mark.segment, mark.offset, tip.last_seq, tip.commit_time)


def _seq(place: Place, located: Located) -> int:
    """The last seq given by a place, at least."""
    return max(located.seq, place.seq)


def _oldest(view: LogView) -> Located:
    """The beginning of the log; nothing is known of what has been dropped."""
    first = view.manifest.sealed[0] if view.manifest.sealed else None
    time = first.max_time if first else view.mark.tip.commit_time
    return Located(view.manifest.numbers[0], HEADER_SIZE, 0, time)


def _held(position: Position, view: LogView) -> bool:
    return view.manifest.trimmed <= position < view.mark.tip.position


def _by_segment(position: Position, view: LogView) -> Located:
    """The beginning of the position's segment: a place before it."""
    manifest = view.manifest
    at = max(bisect_right(manifest.bases, position) - 1, 0)
    if at == 0:
        return Located(manifest.numbers[0], HEADER_SIZE, 0, _oldest_time(view))
    before = manifest.sealed[at - 1]
    return Located(manifest.numbers[at], HEADER_SIZE, before.last_seq, before.max_time or _oldest_time(view))


def _oldest_time(view: LogView) -> int:
    return next((one.max_time for one in view.manifest.sealed if one.max_time), view.mark.tip.commit_time)


def _offset(view: LogView, segment: int, offset: int) -> int:
    """Bytes of the log before a place; of one that has been dropped, 0."""
    numbers, starts = view.manifest.numbers, view.manifest.starts
    at = bisect_left(numbers, segment)
    if at == len(numbers):
        return starts[-1] + offset
    return starts[at] + (offset if numbers[at] == segment else 0)


def _bytes_an_hour(view: LogView) -> float:
    """How fast the log has grown, on average over what is held; 0 if that cannot be said yet."""
    sealed = view.manifest.sealed
    if not sealed or not sealed[0].max_time:
        return 0.0
    hours = (view.mark.tip.commit_time - sealed[0].max_time) / 3.6e9
    grown = _offset(view, view.mark.segment, view.mark.offset) - sealed[0].length
    return grown / hours if hours > 0 else 0.0
