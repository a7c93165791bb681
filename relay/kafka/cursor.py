"""A place in the log that moves forward: committed records, message by message."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TypeVar

from walbus.errors import DamagedRecord, PositionTrimmed, PositionUnknown
from walbus.position import ORIGIN, Position
from walbus.records import RecordHeader, read_header
from walbus.relay.copied_run import CopiedRun, copied_runs
from walbus.relay.kafka.cluster import ClusterClients
from walbus.relay.kafka.mark import REFERENCE, Mark, parse_range
from walbus.relay.kafka.partition import Partition, Places, Received, ends_of
from walbus.relay.kafka.view import View
from walbus.relay.scan import is_done, place_of_seq, split_records

_T = TypeVar("_T")

_MEND = "read a snapshot from the bootstrap server, or read from `earliest`"


class KafkaCursor:
    """A cursor over the log's topic (`walbus.log.LogCursor`); not thread-safe.

    Args:
        clients: of the cluster.
        places: of the log's messages.
        view: gives the log as it is now.
    """

    def __init__(self, clients: ClusterClients, places: Places, view: Callable[[], View]) -> None:
        self._clients, self._places, self._view = clients, places, view
        self._log = Partition(clients, clients.settings.topic)
        self._large: _LargeTransaction | None = None
        self._end = 0  # offset up to which the log is known to be committed
        self._ready: deque[bytes] = deque()  # read, and not given out yet
        self._parts: list[bytes] = []  # of records whose last part was not read yet
        self._behind: Position | None = None  # the message that was read last, by what it says
        self.done = ORIGIN  #: position of the last record that was given out or passed over

    def seek(self, after: Position) -> None:
        """Stands before the first record that is not done at `after`.

        Raises:
            PositionTrimmed: what comes after `after` is no longer held.
            PositionUnknown: `after` is past the end.
        """
        self._untrimmed(lambda view: self._seek(view, after))

    def _seek(self, view: View, after: Position) -> None:
        if after < view.base.tip.position:
            raise PositionTrimmed(
                f"the log no longer holds what comes after {after}",
                where=f"trimmed up to {view.base.tip.position}",
                mend=_MEND,
            )
        end = view.tip.tip.position
        if after > end:
            raise PositionUnknown(f"position {after} is past the log's end", where=f"end {end}")
        self._go(view, lambda mark: mark.behind.tip.position >= after, lambda header: is_done(after, header))
        self.done = max(self.done, after) if not self._ready else self.done

    def seek_time(self, microseconds: int) -> None:
        """Stands before the first record with a commit time of at least this, or at the end if there is none.

        Raises:
            PositionTrimmed: some of what was committed from then on is no longer held.
        """
        self._untrimmed(lambda view: self._seek_time(view, microseconds))

    def _seek_time(self, view: View, microseconds: int) -> None:
        if view.base.tip.position > ORIGIN and view.base.max_time >= microseconds:
            what = "the log no longer holds all that was committed since that time"
            raise PositionTrimmed(what, where=f"it begins behind {view.base.tip.position}", mend=_MEND)
        self._go(
            view, lambda mark: mark.behind.max_time >= microseconds, lambda header: header.commit_time < microseconds
        )  # fmt: skip

    def seek_seq(self, seq: int) -> Position:
        """Stands before the record that holds the first change with a seq of at least this; "last done" before it.

        Raises:
            PositionTrimmed: the log no longer holds the change of this seq.
            PositionUnknown: the seq is more than one past the end.
        """
        return self._untrimmed(lambda view: self._seek_seq(view, seq))

    def _seek_seq(self, view: View, seq: int) -> Position:
        base, last = view.base.tip, view.tip.tip.last_seq
        if seq > last + 1:
            raise PositionUnknown(f"seq {seq} is past the log's end", where=f"last seq {last}")
        if seq <= base.last_seq and base.position > ORIGIN:
            where = f"it begins behind {base.last_seq}"
            raise PositionTrimmed(f"the log no longer holds seq {seq}", where=where, mend=_MEND)
        self._go(view, lambda mark: mark.behind.tip.last_seq >= seq, lambda header: header.last_seq < seq)
        return place_of_seq(read_header(self._ready[0]), seq, self.done) if self._ready else self.done

    def _untrimmed(self, seek: Callable[[View], _T]) -> _T:
        """Seeks again where the log was trimmed meanwhile: what was looked at on the way may be what went."""
        while True:
            view = self._view()
            try:
                return seek(view)
            except PositionTrimmed:
                if self._view().ends.first == view.ends.first:
                    raise

    def read(self, max_bytes: int) -> list[bytes]:
        """The next whole records; see `walbus.log.LogCursor.read`."""
        if not self._ready:
            self._fill()
        given: list[bytes] = []
        size = 0
        while self._ready and (not given or size + len(self._ready[0]) <= max_bytes):
            given.append(self._ready.popleft())
            size += len(given[-1])
            if not self._ready and size < max_bytes and self._is_behind():
                self._fill()
        if given:
            self.done = read_header(given[-1]).last
        return given

    @property
    def found(self) -> RecordHeader | None:
        """Of the record that will be read next, if it is at hand: behind `seek`, wherever there is one."""
        return read_header(self._ready[0]) if self._ready else None

    def read_bytes(self, max_bytes: int) -> tuple[bytes, RecordHeader] | None:
        """As `read`, in one block, with the last record's header; None at the end."""
        records = self.read(max_bytes)
        return (b"".join(records), read_header(records[-1])) if records else None

    def read_to_copy(self, max_bytes: int) -> list[CopiedRun | bytes]:
        """As `read`; whole transactions that lie in a message by themselves come as runs."""
        given: list[CopiedRun | bytes] = []
        size = 0
        while size < max_bytes and (not given or self._ready or self._is_behind()):
            if self._ready:
                size += sum(map(len, self._ready))
                given += self._ready
                self._ready.clear()
                continue
            message = self._next()
            if message is None:
                break
            runs = self._runs(message)
            given += runs
            size += len(message.value) if runs else 0
            if not runs:
                self._take(message)
        if given:
            last = given[-1]
            self.done = last.last if isinstance(last, CopiedRun) else read_header(last).last
        return given

    def _runs(self, message: Received) -> list[CopiedRun]:
        mark = message.mark
        if mark.form == REFERENCE or mark.parts > 1 or not mark.whole or self._large is not None:
            return []
        return copied_runs(message.value)

    def close(self) -> None:
        """Frees its connections."""
        self._log.close()
        if self._large is not None:
            self._large.close()
            self._large = None

    def _go(self, view: View, wanted: Callable[[Mark], bool], done: Callable[[RecordHeader], bool]) -> None:
        """Stands before the first record that is not done, in the first message that is wanted or behind it."""
        self.close()
        self._ready.clear()
        self._parts, self._behind = [], None
        self._end = view.ends.stable
        found = self._places.first(view.ends, wanted)
        if found is None:
            self._log.seek(view.ends.stable)
            self.done = view.tip.tip.position
            return
        self._log.seek(found[0])
        self.done = found[1].before.tip.position
        while self._ready or self._fill():
            header = read_header(self._ready[0])
            if not done(header):
                return
            self._ready.popleft()
            self.done = header.last

    def _fill(self) -> bool:
        """Reads the records of the next messages; whether there are any."""
        while not self._ready:
            message = self._next()
            if message is None:
                return False
            self._take(message)
        return True

    def _is_behind(self) -> bool:
        """Whether more is known to be committed; asks nobody."""
        return self._large is not None or self._log.next < self._end - 1

    def _next(self) -> Received | None:
        if self._large is not None:
            message = self._large.next()
            if message is not None:
                return message
            self._large.close()
            self._large = None
        message = self._log.read(self._end)
        if message is None:
            self._end = ends_of(self._clients, self._clients.settings.topic)[0].stable
            message = self._log.read(self._end)
        if message is not None:
            self._check_order(message)
        return message

    def _check_order(self, message: Received) -> None:
        """Sees that a message follows the one before it: else something between them was lost, or is another log's."""
        mark = message.mark
        before = mark.before.tip.position
        if mark.part == 0 and self._behind is not None and before != self._behind:
            what = f"what lies between {self._behind} and {before} is lost"
            raise DamagedRecord(what, where=message.where, mend=_MEND)
        self._behind = mark.behind.tip.position

    def _take(self, message: Received) -> None:
        mark = message.mark
        if mark.form == REFERENCE:
            first, end = parse_range(message.value, message.where)
            self._large = _LargeTransaction(self._clients, first, end, mark.attempt)
            return
        if mark.part != len(self._parts):
            raise DamagedRecord("a part of a record is missing", where=message.where, mend=_MEND)
        self._parts.append(message.value)
        if len(self._parts) < mark.parts:
            return
        data = message.value if mark.parts == 1 else b"".join(self._parts)
        self._parts = []
        self._ready.extend(_records(data, message.where))


class _LargeTransaction:
    """The messages of a transaction in TOPIC.large."""

    def __init__(self, clients: ClusterClients, first: int, end: int, attempt: int) -> None:
        self._partition = Partition(clients, clients.settings.large)
        self._partition.seek(first)
        self._end, self._attempt = end, attempt

    def next(self) -> Received | None:
        """The next message; None behind the last one. Those of tries that came to nothing are passed over."""
        while (message := self._partition.read(self._end)) is not None:
            if message.mark.attempt == self._attempt:
                return message
        return None

    def close(self) -> None:
        self._partition.close()


def _records(data: bytes, where: str) -> list[bytes]:
    """All the records of a message, each with a checksum that holds."""
    records: list[bytes] = []
    while data:
        try:
            found, used = split_records(data)
        except DamagedRecord as error:
            raise DamagedRecord(error.what, where=where, mend=_MEND) from error
        if not found:
            raise DamagedRecord("a record reaches past the end of its message", where=where, mend=_MEND)
        records += found
        data = data[used:]
    return records
