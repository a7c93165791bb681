"""The async twin of the client library: `walbus.aconnect(url)`, `async for window in …`, `await window.commit()`.

    async with walbus.aconnect("http://127.0.0.1:7070") as bus:
        async for window in bus.subscribe("public.orders", name="orders-cache"):
            for change in window:
                ...
            await window.commit()

Each subscription is the very one of `walbus.consumers.client`, with its machine and parsers, on a thread of its own: so
both read alike, and what blocks (sockets, the checkpoint's file) never blocks the event loop. A window that is asked
for when the asking task is cancelled is not lost: the next one who asks gets it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from pydantic import SecretStr

from walbus.consumers.checkpoint_store import CheckpointStore
from walbus.consumers.client import CHECKPOINT_FOLDER, Bus, Delivery, Subscription, connect
from walbus.consumers.phase_events import PhaseEvent
from walbus.consumers.read_your_writes import ConsumerPlace
from walbus.consumers.session import Clock
from walbus.consumers.steps import Start, Sweep
from walbus.events import Change, Window
from walbus.position import Position

if TYPE_CHECKING:
    import pyarrow as pa

_POLL_SECONDS = 0.2
_WAITING = 64  # who wait for consumers at a time


@dataclass(frozen=True)
class AsyncDelivery:
    """One window as it came; see `walbus.consumers.client.Delivery`, whose attributes these are."""

    delivery: Delivery
    _thread: ThreadPoolExecutor

    def __iter__(self) -> Iterator[Change]:
        return iter(self.delivery)

    def __len__(self) -> int:
        return len(self.delivery)

    @property
    def window(self) -> Window:
        """The changes, and what is said of them."""
        return self.delivery.window

    @property
    def changes(self) -> Sequence[Change]:
        """In commit order."""
        return self.delivery.changes

    @property
    def phase(self) -> str:
        """`snapshot`, `delta`, `catchup` or `online`."""
        return self.delivery.phase

    @property
    def sweep(self) -> Sweep | None:
        """What a table's snapshot did not bring; see there."""
        return self.delivery.sweep

    def to_arrow(self) -> list[pa.RecordBatch]:
        """The changes as Arrow record batches; see there."""
        return self.delivery.to_arrow()

    async def commit(self) -> None:
        """Stores that this window, and all before it, have been dealt with; durable when it returns.

        Raises:
            OSError: the checkpoint's file cannot be written.
        """
        await asyncio.get_running_loop().run_in_executor(self._thread, self.delivery.commit)


class AsyncSubscription:
    """An endless async iterator of deliveries, in order. Made by `AsyncBus.subscribe`; one task at a time asks it."""

    def __init__(self, subscription: Subscription) -> None:
        self._subscription = subscription
        self._thread = ThreadPoolExecutor(1, "walbus-subscription")
        self._asked: Future[Delivery | None] | None = None
        self._closed = False

    @property
    def phase(self) -> str:
        """`starting`, `listing`, `snapshot`, `catchup` or `online`."""
        return self._subscription.phase

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> AsyncDelivery:
        while not self._closed:
            if self._asked is None:
                self._asked = self._thread.submit(self._subscription.next, _POLL_SECONDS)
            try:
                delivery = await asyncio.shield(asyncio.wrap_future(self._asked))
            except asyncio.CancelledError:
                raise  # the next one who asks gets it
            except BaseException:
                self._asked = None
                raise
            self._asked = None
            if delivery is not None:
                return AsyncDelivery(delivery, self._thread)
        raise StopAsyncIteration

    async def close(self) -> None:
        """Ends the subscription; the last commit stands."""
        if self._closed:
            return
        self._closed = True
        await asyncio.get_running_loop().run_in_executor(None, self._close)

    def _close(self) -> None:
        self._thread.submit(self._subscription.close).result()
        self._thread.shutdown()


class AsyncBus:
    """A connection to one relay, for asyncio."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._subscriptions: list[AsyncSubscription] = []
        self._waiting = ThreadPoolExecutor(_WAITING, "walbus-wait")  # the loop's own are few, and for short work

    def subscribe(  # noqa: PLR0913  # those of `Bus.subscribe`
        self,
        *tables: str,
        name: str,
        start: Start = "snapshot",
        checkpoints: CheckpointStore | None = None,
        partition: str | None = None,
        ops: Sequence[str] = (),
        columns: Mapping[str, Sequence[str]] | None = None,
        delta_above: int | None = None,
        on_phase: Callable[[PhaseEvent], object] | None = None,
    ) -> AsyncSubscription:
        """The changes of tables, as `walbus.consumers.client.Bus.subscribe` gives them; a thread calls `on_phase`."""
        subscription = AsyncSubscription(
            self._bus.subscribe(
                *tables,
                name=name,
                start=start,
                checkpoints=checkpoints,
                partition=partition,
                ops=ops,
                columns=columns,
                delta_above=delta_above,
                on_phase=on_phase,
            )
        )
        self._subscriptions.append(subscription)
        return subscription

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
        """Ends all subscriptions."""
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
    clock: Clock | None = None,
) -> AsyncBus:
    """A bus for asyncio; arguments and errors are those of `walbus.connect`."""
    return AsyncBus(connect(url, bootstrap=bootstrap, folder=folder, token=token, ca_file=ca_file, clock=clock))
