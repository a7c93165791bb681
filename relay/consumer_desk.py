"""Where consumers report, and where it is asked for them: the known consumers of one relay, kept and waited for.

    streams open and close ─┐                       ┌─► consumers_file      over restarts
    reports                 ├─► known_consumers ────┼─► lag                 how far behind
    removals                ─┘          │           └─► consumer_waits      who waits for it
                                        └─► "somebody waits": told on the consumer's own stream

Belongs to the event loop; what blocks runs on the server's threads. Nothing here holds up a stream: a name for which
there is no room, a file that cannot be written, are told and passed over.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Protocol

import structlog

from walbus.config import RelayConfig
from walbus.consumer_reports import CONSUMER_NAME, ConsumerReport
from walbus.errors import WalbusError
from walbus.log import Bounds
from walbus.position import Position
from walbus.relay.consumer_waits import Goal, Waits
from walbus.relay.consumers_file import ConsumersFile, pack_consumers
from walbus.relay.fs import Files
from walbus.relay.keeper_lock import KeeperLock
from walbus.relay.known_consumers import KnownConsumer, KnownConsumers, TooManyConsumers
from walbus.relay.lag import KeptFor, Lag, LagMeter, Place
from walbus.relay.peer import Peer
from walbus.relay.reader import FileLogReader
from walbus.relay.tail import Tail

_log = structlog.get_logger(__name__)

_TURN_SECONDS = 0.5  # between two looks whether the file is to be written
_EXPIRY_SECONDS = 60.0  # between two looks for names that are too old
_FILE: Final = "consumers.json"


class NamedStream(Protocol):
    """An open stream of a consumer."""

    @property
    def scanned(self) -> Position:
        """Up to where the log was looked at for it, and what passes was sent."""

    def ask(self, wanted: list[Position]) -> None:
        """Has the consumer told, once the stream is behind each of these, that somebody waits for it there."""


@dataclass(frozen=True, slots=True)
class Sight:
    """A consumer as it is shown.

    Attributes:
        known: the consumer.
        sent: up to here it was sent everything; None if it has had no stream.
        lag: of its place; None if it has told none, or one of another log.
        streams: how many it has open.
    """

    known: KnownConsumer
    sent: Position | None
    lag: Lag | None
    streams: int


class ConsumerDesk:
    """The known consumers of one relay.

    Args:
        folder: of the log.
        config: retention, and how long names are kept.
        files: the file operations.
        wall, monotonic: clocks, in seconds.
    """

    def __init__(
        self,
        folder: Path,
        config: RelayConfig,
        files: Files | None = None,
        *,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.known = KnownConsumers()
        self.waits = Waits()
        self._file = ConsumersFile(folder / _FILE, files or Files())
        self._lock = KeeperLock(folder)
        self._has_read = False  # what was kept; before that nothing is written over it
        self._kept_for = KeptFor(config.retention_hours, config.retention_bytes)
        self._forget_seconds = config.forget_consumers_hours * 3600
        self._wall, self._monotonic = wall, monotonic
        self._streams: defaultdict[str, set[NamedStream]] = defaultdict(set)
        self._refusing = False  # whether it was told that there is no room for names
        self._attached: tuple[FileLogReader, LagMeter, ThreadPoolExecutor] | None = None
        self._on_keeping: Callable[[], None] | None = None

    @property
    def problem(self) -> str | None:
        """What people should know of how consumers are kept; None if all is well."""
        if self._lock.ours and not self._has_read:
            return "what another relay kept of the consumers is being read"
        return self._lock.problem or self._file.problem

    @property
    def keeps(self) -> bool:
        """Whether this relay keeps what the log's relays share."""
        return self._lock.ours and self._has_read

    async def open(
        self, reader: FileLogReader, threads: ThreadPoolExecutor, on_keeping: Callable[[], None] | None = None
    ) -> None:
        """Reads what was kept; first of all.

        Args:
            reader: the log.
            threads: for blocking work.
            on_keeping: is called, on one of the threads, once this relay keeps what the log's relays share.
        """
        loop = asyncio.get_running_loop()
        self._on_keeping = on_keeping
        if await loop.run_in_executor(threads, self._lock.take) and on_keeping is not None:
            await loop.run_in_executor(threads, on_keeping)
        await loop.run_in_executor(threads, self._file.load, self.known)
        self._has_read = self._lock.ours
        self._attached = reader, LagMeter(reader, self._kept_for), threads

    async def run(self, tail: Tail, stopping: asyncio.Event) -> None:
        """Works until the server stops, and ends all waiting then.

        Raises:
            Exception: the work failed in a way that nobody thought of.
        """
        work = [asyncio.create_task(one) for one in (self._follow_end(tail), self._keep(), _set(stopping))]
        try:
            done, _ = await asyncio.wait(work, return_when=asyncio.FIRST_COMPLETED)
            for ended in done:
                ended.result()
        finally:
            self.waits.close()
            for one in work:
                one.cancel()
            await asyncio.gather(*work, return_exceptions=True)

    async def close(self) -> None:
        """Writes what was not written yet, and lets another relay go on with it."""
        if self._attached is not None and self.known.changes:
            await self.keep_now()
        self._lock.release()

    # --- what happens ---------------------------------------------------------------------------------------------

    def report(self, name: str, report: ConsumerReport, peer: Peer) -> tuple[KnownConsumer, bool]:
        """A consumer says where it is; the consumer, and whether that counts.

        Raises:
            TooManyConsumers: there is no room for another name.
        """
        before = self.known.get(name)
        was = before.report if before is not None else None
        known, counts = self.known.report(name, report, peer, self._wall())
        if counts and was is not None and was.log_id == report.log_id and report.order < was.order:
            _log.info("consumer_was_reset", consumer=name, was=str(was.last_done), last_done=str(report.last_done))
        if counts:
            bounds = self._reader().bounds()
            self.waits.done(name, known.proves(bounds.log_id), bounds)
        return known, counts

    def opened(self, name: str, tables: Iterable[str], peer: Peer, stream: NamedStream) -> None:
        """A stream begins; one without a consumer's name is nobody's."""
        if CONSUMER_NAME.match(name) is None:
            return
        try:
            self.known.opened(name, tables, peer, self._wall())
        except TooManyConsumers:
            self._tell_full(name)
        self._streams[name].add(stream)
        self._ask(name)

    def closed(self, name: str, stream: NamedStream) -> None:
        """A stream has ended."""
        streams = self._streams.get(name)
        if streams is None:
            return
        streams.discard(stream)
        if not streams:
            del self._streams[name]
        self.known.closed(name, stream.scanned, self._wall())

    async def forget(self, name: str) -> bool:
        """Removes a consumer, durably if the disk takes it; False if it was not known."""
        if not self.known.forget(name):
            return False
        self.waits.give_up(name)
        await self.keep_now()
        return True

    async def wait(self, known: KnownConsumer, goal: Goal, timeout: float) -> bool:
        """Waits until a consumer has met a goal; False if it has not within so many seconds, or is known no longer.

        Raises:
            TooManyWaiters: too many wait.
        """
        bounds = self._reader().bounds()
        goal.look(bounds)
        if goal.met_by(known.proves(bounds.log_id), bounds):
            return True
        waiter = self.waits.add(known.name, goal)
        self._ask(known.name)
        try:
            async with asyncio.timeout(timeout):
                return await waiter.outcome
        except TimeoutError:
            return False
        finally:
            self.waits.remove(waiter)

    # --- what is shown --------------------------------------------------------------------------------------------

    async def sights(self, consumers: Iterable[KnownConsumer]) -> list[Sight]:
        """Consumers with their lags, as of now."""
        reader, meter, threads = self._attachment()
        log_id = reader.bounds().log_id
        seen = [replace(known) for known in consumers]  # as they are now: reports come while lags are looked up
        places = {known.name: place for known in seen if (place := _place(known, log_id)) is not None}
        loop = asyncio.get_running_loop()
        lags = await loop.run_in_executor(threads, meter.lags, list(places.values()), self._wall())
        return [self._sight(known, lags.get(places.get(known.name, _NOWHERE))) for known in seen]

    async def lag_of(self, place: Place) -> Lag:
        """How far a place is behind the end, as of now."""
        _, meter, threads = self._attachment()
        found = await asyncio.get_running_loop().run_in_executor(threads, meter.lags, [place], self._wall())
        return found[place]

    def _sight(self, known: KnownConsumer, lag: Lag | None) -> Sight:
        streams = self._streams.get(known.name, ())
        sent = max((stream.scanned for stream in streams), default=known.sent)
        return Sight(known, sent, lag, len(streams))

    # --- loops ----------------------------------------------------------------------------------------------------

    async def _follow_end(self, tail: Tail) -> None:
        reader, meter, _ = self._attachment()
        blind = False
        while True:
            moved = tail.moved()
            try:
                meter.sample(self._monotonic())
                if len(self.waits):
                    self._log_moved(reader.bounds())
            except (OSError, WalbusError) as error:  # no descriptors, say: the log is there again when there are some
                if not blind:
                    _log.error("relay_cannot_look_at_log", error=str(error), note="who waits for consumers waits on")
                blind = True
                await asyncio.sleep(_TURN_SECONDS)
                continue
            blind = False
            await moved.wait()

    def _log_moved(self, bounds: Bounds) -> None:
        for name in self.waits.log_moved(bounds):
            known = self.known.get(name)
            if known is not None:
                self.waits.done(name, known.proves(bounds.log_id), bounds)
            self._ask(name)

    async def _keep(self) -> None:
        expire_at = self._monotonic()
        while True:
            now = self._monotonic()
            if now >= expire_at:
                expire_at = now + _EXPIRY_SECONDS
                self._expire()
            if not self.keeps:
                await self._take_over()
            elif self._file.due(self.known, now):
                await self.keep_now()
            await asyncio.sleep(_TURN_SECONDS)

    async def _take_over(self) -> None:
        """Becomes the keeper if the relay that was it has ended, and knows what that one knew."""
        _, _, threads = self._attachment()
        loop = asyncio.get_running_loop()
        if await loop.run_in_executor(threads, self._lock.take):
            kept = KnownConsumers()
            await loop.run_in_executor(threads, self._file.load, kept)
            self.known.add_missing(kept.dump())
            self._has_read = True
            if self._on_keeping is not None:
                await loop.run_in_executor(threads, self._on_keeping)

    def _expire(self) -> None:
        self.known.seen(self._streams, self._wall())
        for name in self.known.expire(self._wall() - self._forget_seconds):
            _log.info("consumer_forgotten", consumer=name, why="not seen for relay.forget_consumers_hours")
            self.waits.give_up(name)

    async def keep_now(self) -> None:
        """Writes the file, if it is this relay's."""
        _, _, threads = self._attachment()
        if not self.keeps:
            return
        changes, data = self.known.changes, pack_consumers(self.known.dump())
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(threads, self._file.write, data, changes, self._monotonic())

    # --- parts ----------------------------------------------------------------------------------------------------

    def _ask(self, name: str) -> None:
        wanted = self.waits.wanted(name)
        if not wanted:
            return
        for stream in self._streams.get(name, ()):
            stream.ask(wanted)

    def _tell_full(self, name: str) -> None:
        if not self._refusing:
            mend = "remove names that are not needed: DELETE /v1/consumers/NAME"
            _log.warning("relay_knows_too_many_consumers", consumer=name, known=len(self.known), mend=mend)
        self._refusing = True

    def _reader(self) -> FileLogReader:
        return self._attachment()[0]

    def _attachment(self) -> tuple[FileLogReader, LagMeter, ThreadPoolExecutor]:
        if self._attached is None:
            raise RuntimeError("there is no log yet")  # the routes answer 503 until there is
        return self._attached


_NOWHERE = Place(Position(0, 0, 0), -1)


async def _set(event: asyncio.Event) -> None:
    await event.wait()


def _place(known: KnownConsumer, log_id: str) -> Place | None:
    report = known.report
    if report is None or report.last_done is None or report.log_id != log_id:
        return None
    return Place(report.last_done, report.seq)
