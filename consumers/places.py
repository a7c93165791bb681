"""Places of the log by which a consumer is told where to begin and where to end: positions, times, `seq:N`, words.

A beginning is found by asking the relay for the first record from the place on that concerns the consumer, without
following; what is before that record need not be read. An end is known when it is met: the relay is not asked to end
the stream there, so that a reading that is interrupted, or goes through a snapshot first, ends at the same place.

A time in the past ends a reading at the first transaction that committed later, or where the log was once the time was
over for everybody's clock: an idle log has no later transaction.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Final, Literal, TypeAlias

from walbus.consumers.addresses import Relays
from walbus.consumers.checkpoint import Checkpoint, Following, Marks, Point
from walbus.consumers.clock import Clock
from walbus.consumers.record_stream import StreamEnded
from walbus.errors import PositionTrimmed, PositionUnknown, UsageError
from walbus.events import Window
from walbus.position import ORIGIN, Position
from walbus.records import Kind, RecordHeader, located_changes
from walbus.relay.stream_query import AtSeq, AtTime, parse_stream_query

#: A position, its text, a time (with a zone), `seq:N`, `earliest` or `latest`.
Place: TypeAlias = Position | datetime | str

Parsed: TypeAlias = Position | AtTime | AtSeq | Literal["earliest", "latest"]

#: Seconds by which this machine's clock and the source's are taken to differ at most.
_CLOCKS_AGREE: Final = 2.0


def parse_place(place: Place, where: str, clock: Clock | None = None) -> Parsed:
    """What a place says.

    Args:
        place: as it was given.
        where: the argument's name, for the error.
        clock: of a beginning: a time that is still to come is refused by it.

    Raises:
        UsageError: it is none.
    """
    if isinstance(place, datetime):
        if place.tzinfo is None:
            raise UsageError("the time has no zone", where=where, mend="give one, as in datetime.now(UTC)")
        place = place.astimezone(UTC).isoformat()
    try:
        parsed = parse_stream_query({"until": str(place)}, {}).until
    except UsageError as error:
        raise UsageError(error.what, where=where, mend=error.mend) from None
    if parsed is None:
        raise UsageError("there is no place", where=where)
    if clock is not None and isinstance(parsed, AtTime) and parsed.time > clock.wall() + _CLOCKS_AGREE:
        raise UsageError(
            "the time is still to come", where=where, mend="start at latest to read what commits from now on"
        )
    return parsed


def found_place(
    relays: Relays, place: Parsed, tables: tuple[str, ...], narrowing: Mapping[str, str], before: Following | None
) -> Following:
    """The checkpoint of a consumer that begins at a place.

    Args:
        relays: that have the log.
        place: where its first change is.
        tables: patterns of what it reads.
        narrowing: further parameters of the relay's stream.
        before: where it was, if it was anywhere.

    Raises:
        PositionTrimmed: the log does not hold the place any more.
        PositionUnknown: the place is behind the log's end, or the log is another one than before.
        RelayUnavailable: the relay does not answer now.
    """
    log = (relays.info("", ORIGIN) if before is None else relays.info(before.log_id, before.point.last_done)).log
    if before is not None and before.log_id != log.log_id:
        raise PositionUnknown("the relay serves another log than the consumer follows", where=relays.url)
    match place:
        case "earliest":
            at = log.trimmed
        case "latest":
            at = log.end
        case Position():
            at = Position(place.epoch, place.commit_lsn, max(0, place.ordinal - 1))
        case AtTime() | AtSeq():
            at = _found(relays, place, tables, narrowing) or log.end
    if at > log.end:
        mend = "write a position that the log has, or latest"
        raise PositionUnknown(f"the log ends at {log.end}", where=str(place), mend=mend)
    if at < log.trimmed:
        mend = "begin with a snapshot, or at earliest"
        raise PositionTrimmed(f"the log begins behind {log.trimmed}", where=str(place), mend=mend)
    there = Point(at, 0)
    return Following(log.log_id, Marks(0, 0), there) if before is None else replace(before, point=there)


def _found(
    relays: Relays, place: AtTime | AtSeq, tables: tuple[str, ...], narrowing: Mapping[str, str]
) -> Position | None:
    """The position behind which a place's first change comes; None if there is none up to the log's end."""
    text = f"seq:{place.seq}" if isinstance(place, AtSeq) else datetime.fromtimestamp(place.time, UTC).isoformat()
    stream = relays.stream_from(text, tables, narrowing)
    try:
        while not (records := stream.records(_WAIT_SECONDS)):
            pass
        return _behind(*records[0], place)
    except StreamEnded:
        return None
    finally:
        stream.close()


_WAIT_SECONDS: Final = 1.0


def _behind(header: RecordHeader, record: bytes, place: AtTime | AtSeq) -> Position:
    if header.kind != Kind.TRANSACTION:
        return header.last  # nothing for the consumer up to here; an event at this position is told behind it again
    if isinstance(place, AtSeq):
        for position, raw in located_changes(header, record):
            if header.first_seq + raw.seq_delta >= place.seq:
                return Position(position.epoch, position.commit_lsn, position.ordinal - 1)
    return Position(header.epoch, header.commit_lsn, max(0, header.first_ordinal - 1))


@dataclass
class Until:
    """Where a reading ends: behind the transaction that holds a place, or before the first one that committed later.

    Args:
        place: a place, parsed.
    """

    place: Parsed
    _end: Position | None = field(default=None, init=False)  # of the log, when the place was known to be in it

    def needs_end(self, now: float) -> bool:
        """Whether `log_ended_at` has something to learn; `now` is in Unix seconds."""
        if self._end is not None:
            return False
        return self.place == "latest" or (isinstance(self.place, AtTime) and now > self.place.time + _CLOCKS_AGREE)

    def log_ended_at(self, end: Position) -> None:
        """The log's end, as of now."""
        self._end = end

    def passed_by(self, window: Window) -> bool:
        """Whether a window is behind the end."""
        late = isinstance(self.place, AtTime) and window.commit_time.timestamp() > self.place.time
        return late and window.kind == Kind.TRANSACTION and window.begins

    def may_end_in(self, checkpoint: Checkpoint) -> bool:
        """Whether the end may lie before a checkpoint of a run of transactions, or has to be looked for meanwhile."""
        unknown = self.place == "latest" and self._end is None
        return unknown or isinstance(self.place, AtTime) or self.reached_at(checkpoint)

    def reached_at(self, checkpoint: Checkpoint | None) -> bool:
        """Whether everything up to the end has come once a checkpoint holds."""
        if not isinstance(checkpoint, Following):
            return False
        if self._end is not None and checkpoint.point.last_done >= self._end:
            return True
        match self.place:
            case Position():
                return checkpoint.point.last_done >= self.place
            case AtSeq():
                return checkpoint.point.seq >= self.place.seq
            case "earliest":
                return True
            case _:
                return False
