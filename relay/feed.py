"""One reading of the log for all followers that stand at its end and ask for the same.

A follower reads its own way through the log until it has everything. Then its stream joins the feed of its form: the
feed reads what is new, makes it into the form once, frames and compresses it once, and puts the same block into every
member's transport. A member costs no cursor, no task that wakes up and no timer, only its connection.

- A stream joins where its delivery and the feed's stand at the same place of the log, between two transactions, and
  its peer has taken nearly all that it was sent.
- A member whose peer has not taken what it was sent leaves before the feed reads on, with a fork of the feed's delivery
  as its own, and reads on by itself at its peer's pace until it is at the end again. It delays nobody. While a thread
  reads for the feed nobody joins and nobody leaves: the delivery is then ahead of what members were sent.
- After each round the feed rests for as long as sending took, and three times as long where that was long. So rounds
  follow each change while followers are few, and take many changes at once when they are many; and serving a crowd
  leaves at least three quarters of a core to others, of which capture may be one.

Everything here runs on the event loop, save for reads of more than a few kilobytes.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

from walbus.records import Flag
from walbus.relay.content_coding import CodingName
from walbus.relay.delivery import Delivery, Step, StreamForm
from walbus.relay.outlet import LAG_BYTES, Outlet
from walbus.relay.tail import Tail

HEARTBEAT_SECONDS = 1.0

#: A read this small at the log's end is not worth a thread: its bytes have just been written.
INLINE_BYTES = 32 << 10

_SHORT_ROUND = 0.001  # seconds; a shorter one needs no rest behind it
_LONG_ROUND = 0.004  # seconds, of a crowd; the longest rest comes behind three times as much
_MOST_REST = 3.0  # times what the round took
_TRIES = 3  # to meet a stream at one place, while the log moves on

StepOf = Callable[[Delivery], Awaitable[Step]]


@dataclass(frozen=True, slots=True)
class Kind:
    """What streams have in common that may share a feed."""

    form: StreamForm
    coding: CodingName


class Feed:
    """The followers of one kind that stand at the log's end.

    Args:
        delivery: at the log's end; the feed's own.
        tail: tells when the end has moved.
        step: steps a delivery, in a thread if need be.
        stopping: is set when the server stops.
        ended: is told once the last member has left.
    """

    def __init__(
        self, delivery: Delivery, tail: Tail, step: StepOf, stopping: asyncio.Event, ended: Callable[[Feed], None]
    ) -> None:
        self._delivery = delivery
        self._tail = tail
        self._step_of = step
        self._stopping = stopping
        self._ended = ended
        self._members: dict[Outlet, asyncio.Future[Delivery | None]] = {}
        self._asked: set[Outlet] = set()  # of members to whom something may be told out of turn
        self._busy = False  # whether a thread reads
        self._heartbeat_at = 0.0
        self._task: asyncio.Task[None] | None = None

    @property
    def delivery(self) -> Delivery:
        """How far all members are."""
        return self._delivery

    @property
    def members(self) -> int:
        """How many there are."""
        return len(self._members)

    def ask(self, outlet: Outlet) -> None:
        """A member has got an `asked`."""
        self._asked.add(outlet)

    def meets(self, delivery: Delivery, outlet: Outlet) -> bool:
        """Brings a stream and the feed to the same place; False if that is not possible now."""
        if self._busy:
            return False
        self._part_with_laggards()
        for _ in range(_TRIES):
            if max(self._delivery.pending(), delivery.pending()) > INLINE_BYTES:
                return False
            self._send(self._delivery.step().data)
            outlet.put(delivery.step().data)
            if delivery.place is not None and delivery.place == self._delivery.place:
                return True
        return False

    async def follow(self, outlet: Outlet) -> Delivery | None:
        """Makes a stream a member until it falls behind: its delivery from then on; None once the server stops.

        Raises:
            DamagedRecord, PositionTrimmed, OSError: the log cannot be read on.
        """
        loop = asyncio.get_running_loop()
        left: asyncio.Future[Delivery | None] = loop.create_future()
        self._members[outlet] = left
        if outlet.asked:
            self.ask(outlet)
        if self._task is None:
            self._heartbeat_at = loop.time() + HEARTBEAT_SECONDS
            self._task = loop.create_task(self._run())
        try:
            return await asyncio.shield(left)
        except asyncio.CancelledError:
            if left.done() and left.exception() is None and (parted := left.result()) is not None:
                parted.close()
            raise
        finally:
            self._members.pop(outlet, None)
            self._asked.discard(outlet)

    async def _run(self) -> None:
        try:
            while self._members and not self._stopping.is_set():
                await self._round()
        except Exception as error:
            for left in self._members.values():
                _settle(left, error)
        finally:
            self._task = None
            for left in self._members.values():
                _settle(left, None)
            self._delivery.close()
            self._ended(self)

    async def _round(self) -> None:
        loop = asyncio.get_running_loop()
        moved = self._tail.moved()
        self._part_with_laggards()
        step = await self._step()
        data = step.data
        if not data and loop.time() >= self._heartbeat_at:
            data = self._delivery.heartbeat()
        begun = loop.time()
        self._send(data)
        self._answer_asked()
        took = loop.time() - begun
        if (rest := rest_behind(took)) > 0:
            await asyncio.sleep(rest)
        if step.at_end:
            await wait_until(moved, self._heartbeat_at)

    async def _step(self) -> Step:
        self._busy = True
        try:
            return await self._step_of(self._delivery)
        finally:
            self._busy = False

    def _part_with_laggards(self) -> None:
        for outlet, left in self._members.items():
            if outlet.waiting() > LAG_BYTES and not left.done():
                try:
                    left.set_result(self._delivery.fork())
                except OSError as error:  # no descriptors: the others need none
                    left.set_exception(error)

    def _answer_asked(self) -> None:
        """Here the members have been sent all that the delivery has read, and nothing else may say so."""
        for outlet in [*self._asked]:
            left = self._members.get(outlet)
            if left is not None and not left.done() and outlet.take_asked(self._delivery.scanned):
                outlet.put(self._delivery.heartbeat(Flag.ASKED))
            if not outlet.asked:
                self._asked.discard(outlet)

    def _send(self, data: bytes) -> None:
        if not data or not self._members:
            return
        self._heartbeat_at = asyncio.get_running_loop().time() + HEARTBEAT_SECONDS
        block = next(iter(self._members)).framed(data)
        for outlet, left in self._members.items():
            if not left.done():
                outlet.put_framed(block)


def rest_behind(took: float) -> float:
    """Seconds for which a feed rests behind a round that took so many."""
    if took <= _SHORT_ROUND:
        return 0.0
    return took * min(max(took / _LONG_ROUND, 1.0), _MOST_REST)


def _settle(left: asyncio.Future[Delivery | None], outcome: Exception | None) -> None:
    if left.done():
        return
    if outcome is None:
        left.set_result(None)
    else:
        left.set_exception(outcome)


async def wait_until(moved: asyncio.Event, deadline: float) -> None:
    """Waits for an event until a time of the event loop's clock."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout_at(deadline):
            await moved.wait()


class Feeds:
    """The feeds of a server, by what their members have in common.

    Args:
        tail, step, stopping: as of `Feed`.
    """

    def __init__(self, tail: Tail, step: StepOf, stopping: asyncio.Event) -> None:
        self._tail, self._step, self._stopping = tail, step, stopping
        self._feeds: dict[Kind, Feed] = {}

    def meeting(self, kind: Kind, delivery: Delivery, outlet: Outlet) -> Feed | None:
        """The feed that a stream at the log's end may join now; its delivery is not needed any more then."""
        if outlet.waiting() > LAG_BYTES:
            return None
        feed = self._feeds.get(kind)
        if feed is None or not feed.members:
            if delivery.place is None:
                return None
            try:
                own = delivery.fork()
            except OSError:  # no descriptors: it goes on with the one that it has
                return None
            ended = partial(self._forget, kind)
            feed = self._feeds[kind] = Feed(own, self._tail, self._step, self._stopping, ended)
        elif not feed.meets(delivery, outlet):
            return None
        if not delivery.told:
            outlet.put(delivery.heartbeat())
        return feed

    def __len__(self) -> int:
        return len(self._feeds)

    def _forget(self, kind: Kind, feed: Feed) -> None:
        """What streams may ask for has no bound, so nothing is kept of what nobody asks for any more."""
        if self._feeds.get(kind) is feed:
            del self._feeds[kind]
