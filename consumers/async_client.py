"""The async twin of the client library: `walbus.aconnect(url)`, `async for window in …`, `await window.commit()`.

    async with walbus.aconnect("http://127.0.0.1:7070") as bus:
        async for window in bus.subscribe("public.orders", name="orders-cache"):
            for change in window:
                ...
            await window.commit()

Each subscription is the very one of `walbus.consumers.client`, with its machine and parsers, on a thread of its own: so
both read alike, and what blocks (sockets, the checkpoint's file) never blocks the event loop. A window that is asked
for when the asking task is cancelled is not lost: the next one who asks gets it. What its thread has read already is
handed over without it, while it has nothing to do.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial, wraps
from pathlib import Path
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from pydantic import SecretStr

from walbus.consumers.async_effects import Awaited, SubscriptionThread, drive
from walbus.consumers.callback_loop import CallbackLoop
from walbus.consumers.callbacks import STOP, AsyncCallbacks, Failures
from walbus.consumers.called_feed import CalledFeed
from walbus.consumers.checkpoint import Part
from walbus.consumers.client import CHECKPOINT_FOLDER, Bus, connect
from walbus.consumers.clock import Clock
from walbus.consumers.deliveries import Delivered, Delivery
from walbus.consumers.group_member import GroupMember
from walbus.consumers.part_lease import LeasedSubscription
from walbus.consumers.places import Place
from walbus.consumers.read_your_writes import ConsumerPlace
from walbus.consumers.subscription import CHECKPOINT_SECONDS, Subscription, closed
from walbus.consumers.subscription_twin import SubscriptionTwin
from walbus.position import Position

_Parameters = ParamSpec("_Parameters")
_Given = TypeVar("_Given")

_POLL_SECONDS = 0.2
_WAITING = 64  # who wait for consumers at a time


@dataclass(frozen=True)
class AsyncDelivery(Delivered):
    """One window, and its commit by the thread of its subscription."""

    _commit: Callable[[], None]
    _thread: ThreadPoolExecutor

    async def commit(self) -> None:
        """Stores that this window, and all before it, have been dealt with; durable when it returns.

        Raises:
            OSError: the checkpoint's file cannot be written.
        """
        loop = asyncio.get_running_loop()
        try:
            committed = loop.run_in_executor(self._thread, self._commit)
        except RuntimeError:  # the subscription was closed, and its thread does nothing any more
            committed = loop.run_in_executor(None, self._commit)
        await committed


class AsyncSubscription(SubscriptionTwin):
    """An endless async iterator of deliveries, in order. Made by `AsyncBus.subscribe`; one task at a time asks it."""

    def __init__(self, subscription: Subscription) -> None:
        super().__init__(subscription)
        self._thread = SubscriptionThread()
        self._asked: Future[Delivery | None] | None = None
        self._closed = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> AsyncDelivery:
        while not self._closed and (self._asked is not None or not self._subscription.ended):
            delivery = await self.next(_POLL_SECONDS)
            if delivery is not None:
                return AsyncDelivery(delivery.window, delivery.phase, delivery.sweep, delivery.commit, self._thread)
        raise StopAsyncIteration

    async def next(self, timeout: float) -> Delivery | None:
        """The next delivery, as `Subscription.next` gives it: its `commit` blocks.

        When the asking task is cancelled, the next one who asks gets it.
        """
        if self._asked is None:
            if self._closed:
                raise closed()
            self._asked = self._read() or self._thread.submit(self._subscription._next, timeout)
        asked = self._asked
        try:
            if asked.done():
                await asyncio.sleep(0)  # other tasks have their turn, though everything may have been read
                delivery = asked.result()
            else:
                delivery = await asyncio.shield(asyncio.wrap_future(asked))
        except asyncio.CancelledError:
            raise  # the future stays
        except BaseException:
            self._asked = None
            raise
        self._asked = None
        return delivery

    def _read(self) -> Future[Delivery | None] | None:
        """What has been asked for, if that has been read."""
        if (further := self._further()) is None:
            return None
        read = Future[Delivery | None]()
        read.set_result(further)
        return read

    def _further(self) -> Delivery | None:
        """The next delivery if it has been read, and nothing is under way that might lead elsewhere."""
        if self._asked is not None or self._closed or not self._thread.idle:
            return None
        return self._subscription._further()

    async def run(
        self, callbacks: AsyncCallbacks, failures: Failures = STOP, *, checkpoint_seconds: float = CHECKPOINT_SECONDS
    ) -> None:
        """Calls a consumer for what comes, as `Subscription.run` does; its callbacks are awaited here.

        What is cancelled meanwhile calls `on_rollback` and `on_stop`, and comes again when it is run anew.
        """
        with CalledFeed(self._subscription, failures) as feed:
            clock = self._subscription._clock.monotonic
            effects = Awaited(self._next_of_run, self._further, self.rewind, self._thread)
            loop = CallbackLoop(callbacks, feed, effects, failures, feed.letters, checkpoint_seconds, clock)
            await drive(loop.steps())

    async def _next_of_run(self, timeout: float) -> Delivery | None:
        """As `next`; None once it is closed too."""
        if self._closed:
            await asyncio.sleep(0)  # a thread ends it
            return None
        return await self.next(timeout)

    async def rewind(self) -> None:
        """Goes back to the stored checkpoint, as `Subscription.rewind` does."""
        await self._moved(self._subscription.rewind)

    async def seek(self, place: Place) -> None:
        """Goes to another place of the log, as `Subscription.seek` does."""
        await self._moved(self._subscription.seek, place)

    async def _moved(self, move: Callable[..., None], *arguments: Any) -> None:  # noqa: ANN401  # those of the twin
        """Has the subscription moved; what was read before for somebody who was cancelled goes."""
        await Awaited(self.next, self._further, self.rewind, self._thread).call(move, *arguments)
        self._asked = None

    async def close(self) -> None:
        """Ends the subscription; the last commit stands."""
        if self._closed:
            return
        self._closed = True
        await asyncio.get_running_loop().run_in_executor(None, self._close)

    def _close(self) -> None:
        self._subscription.stop()  # its thread may wait for the end of a pause
        self._thread.submit(self._subscription.close).result()
        self._thread.shutdown()


class AsyncLeasedSubscription(AsyncSubscription):
    """The subscription of a member of a group to a part that it holds, as `walbus.consumers.LeasedSubscription` is."""

    def __init__(self, subscription: LeasedSubscription) -> None:
        super().__init__(subscription)
        self._part = subscription.part

    @property
    def part(self) -> Part:
        """The part, with the token under which it is held."""
        return self._part


class AsyncGroupMember:
    """A member of a group whose parts are worked on by tasks. Made by `AsyncBus.join`."""

    def __init__(self, member: GroupMember[LeasedSubscription]) -> None:
        self._member = member
        self._thread = ThreadPoolExecutor(1, "walbus-member")

    @property
    def parts(self) -> tuple[Part, ...]:
        """The parts that it works on now, with their tokens."""
        return self._member.parts

    @property
    def waiting_for(self) -> str | None:
        """Why the relay gives it nothing at present; None while it answers."""
        return self._member.waiting_for

    async def run(self, work: Callable[[AsyncLeasedSubscription], Awaitable[object]]) -> None:
        """Works on whatever parts it gets, as `GroupMember.run` does; `work` is awaited here, once for each part.

        When the task is cancelled, the works finish what they have first, and the member leaves.
        """
        loop = asyncio.get_running_loop()

        async def awaited(subscription: LeasedSubscription) -> None:
            twin = AsyncLeasedSubscription(subscription)
            try:
                with self._member.within():
                    await work(twin)
            finally:
                await twin.close()

        def called(subscription: LeasedSubscription) -> None:
            asyncio.run_coroutine_threadsafe(awaited(subscription), loop).result()

        running = loop.run_in_executor(self._thread, self._member.run, called)
        try:
            await asyncio.shield(running)
        except asyncio.CancelledError:
            self._member.stop()
            await running
            raise

    def stop(self) -> None:
        """Has `run` finish what is under way, leave and return."""
        self._member.stop()

    def require_outside(self) -> None:
        """As `GroupMember.require_outside`, of tasks: of a work, and of those that it has begun."""
        self._member.require_outside()

    async def close(self) -> None:
        """Has it stop, and waits until it has left; refused to a work, as `GroupMember.close` is."""
        self.require_outside()
        await asyncio.get_running_loop().run_in_executor(None, self._member.close)
        self._thread.shutdown(wait=False)


def _with_parameters_of(
    twin: Callable[Concatenate[Bus, _Parameters], object],
) -> Callable[[Callable[..., _Given]], Callable[Concatenate[AsyncBus, _Parameters], _Given]]:
    """Gives a method of `AsyncBus` the parameters of its twin of `Bus`, to type checkers and to `help`."""
    return wraps(twin, assigned=(), updated=())


class AsyncBus:
    """A connection to one relay, for asyncio."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._subscriptions: list[AsyncSubscription] = []
        self._members: list[AsyncGroupMember] = []
        self._waiting = ThreadPoolExecutor(_WAITING, "walbus-wait")  # the loop's own are few, and for short work

    @_with_parameters_of(Bus.subscribe)
    def subscribe(self, *tables: Any, **chosen: Any) -> AsyncSubscription:  # noqa: ANN401  # those of `Bus.subscribe`
        """The changes of tables, as `walbus.consumers.client.Bus.subscribe` gives them; a thread calls `on_phase`."""
        subscription = AsyncSubscription(self._bus.subscribe(*tables, **chosen))
        self._subscriptions.append(subscription)
        return subscription

    @_with_parameters_of(Bus.join)
    def join(self, *tables: Any, **chosen: Any) -> AsyncGroupMember:  # noqa: ANN401  # those of `Bus.join`
        """This process as a member of a group, as `walbus.consumers.client.Bus.join` gives it."""
        member = AsyncGroupMember(self._bus.join(*tables, **chosen))
        self._members.append(member)
        return member

    async def wait_for(
        self, name: str, lsn: str | int | None = None, timeout: float = 30.0, *, position: str | Position | None = None
    ) -> ConsumerPlace:
        """Waits until a consumer has done what was committed, as `walbus.consumers.client.Bus.wait_for` does.

        A thread waits; one that nobody waits for any more goes on for at most `timeout` seconds. Of more than 64 at a
        time those that came last wait for a thread first.
        """
        waiting = partial(self._bus.wait_for, name, lsn, timeout, position=position)
        return await asyncio.get_running_loop().run_in_executor(self._waiting, waiting)

    async def close(self) -> None:
        """Ends all subscriptions, and has members of groups leave them; refused to a work, as `Bus.close` is."""
        for member in self._members:
            member.require_outside()
        for member in self._members:
            await member.close()
        for subscription in self._subscriptions:
            await subscription.close()
        self._subscriptions = []
        self._waiting.shutdown(wait=False, cancel_futures=True)
        await asyncio.get_running_loop().run_in_executor(None, self._bus.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()


def aconnect(  # noqa: PLR0913  # those of `connect`
    url: str | Sequence[str],
    *,
    bootstrap: str | None = None,
    folder: Path | str = CHECKPOINT_FOLDER,
    token: str | SecretStr | None = None,
    ca_file: Path | str | None = None,
    kafka_options: Mapping[str, str] | None = None,
    clock: Clock | None = None,
) -> AsyncBus:
    """A bus for asyncio; arguments and errors are those of `walbus.connect`."""
    bus = connect(
        url,
        bootstrap=bootstrap,
        folder=folder,
        token=token,
        ca_file=ca_file,
        kafka_options=kafka_options,
        clock=clock,
    )
    return AsyncBus(bus)
