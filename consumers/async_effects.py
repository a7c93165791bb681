"""How the callbacks' loop is driven in asyncio: the subscription's thread calls what blocks, the rest is awaited."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from inspect import isawaitable
from typing import Any, ParamSpec, TypeVar

from walbus.consumers.callback_effects import Handed, Steps
from walbus.consumers.callbacks import AsyncCallbacks
from walbus.consumers.deliveries import Delivered, Delivery
from walbus.events import Change

_Parameters = ParamSpec("_Parameters")
_Given = TypeVar("_Given")

_TURN_SECONDS = 0.005  # for which windows are handed over before other tasks have their turn


class SubscriptionThread(ThreadPoolExecutor):
    """The thread of a subscription; it tells whether it has anything to do."""

    def __init__(self) -> None:
        super().__init__(1, "walbus-subscription")
        self._counting = threading.Lock()
        self._under_way = 0

    @property
    def idle(self) -> bool:
        """Whether nothing is under way."""
        return not self._under_way

    def submit(
        self, fn: Callable[_Parameters, _Given], /, *args: _Parameters.args, **kwargs: _Parameters.kwargs
    ) -> Future[_Given]:
        """As of any executor."""
        with self._counting:
            self._under_way += 1
        try:
            future = super().submit(fn, *args, **kwargs)
        except BaseException:
            self._ended()
            raise
        future.add_done_callback(self._ended)
        return future

    def _ended(self, _: object = None) -> None:
        with self._counting:
            self._under_way -= 1


@dataclass(frozen=True)
class Awaited:
    """What blocks, called by the thread of a subscription."""

    next: Callable[[float], Awaitable[Delivery | None]]
    further: Callable[[], Delivery | None]
    rewind: Callable[[], Awaitable[None]]
    thread: ThreadPoolExecutor

    async def call(self, function: Callable[..., Any], *arguments: Any) -> Any:  # noqa: ANN401  # whatever it is
        """What a function gives."""
        called = partial(function, *arguments)
        try:
            future = self.thread.submit(called)
        except RuntimeError:  # the subscription was closed, and its thread does nothing any more
            return await asyncio.get_running_loop().run_in_executor(None, called)
        return await asyncio.wrap_future(future)

    async def each(
        self, on_change: Callable[..., Awaitable[None]], changes: Sequence[Change], window: Delivered
    ) -> tuple[int, Exception | None]:
        """Calls a consumer for one change after another: how many it took, and what it raised at the next one."""
        taken = 0
        try:
            for change in changes:
                await on_change(change, window)
                taken += 1
        except Exception as error:  # whatever a consumer's code raises
            return taken, error
        return taken, None

    async def windows(self, calls: AsyncCallbacks, delivery: Delivery, may_go_on: Callable[[], bool]) -> Handed:
        """Hands over a whole window, and those of its run that come behind it while that may go on."""
        clock = asyncio.get_running_loop().time
        turn = clock()
        whole: Delivery | None = None
        coming: Delivery | None = delivery
        while coming is not None:
            at: int | None = None
            try:
                await calls.on_window_start(coming)
                for at, change in enumerate(coming.window.changes):  # noqa: B007  # told where it raises
                    await calls.on_change(change, coming)
                at = None
                await calls.on_window_end(coming)
            except Exception as error:  # whatever a consumer's code raises
                return Handed(whole, coming, at, error)
            whole = coming
            if clock() - turn > _TURN_SECONDS:
                await asyncio.sleep(0)
                turn = clock()
            coming = self.further() if may_go_on() else None
        return Handed(whole)


async def drive(steps: Steps) -> None:
    """Takes the steps in this task."""
    try:
        call, arguments = next(steps)
        while True:
            try:
                given = call(*arguments)
                if isawaitable(given):
                    given = await given
            except BaseException as error:
                call, arguments = steps.throw(error)
            else:
                call, arguments = steps.send(given)
    except StopIteration:
        pass
