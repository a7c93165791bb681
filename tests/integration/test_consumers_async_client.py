"""The client library for asyncio against a scripted relay."""

from __future__ import annotations

import asyncio
import inspect
import threading
from pathlib import Path

import pytest

import walbus
from support.model_source import ITEMS, insert
from walbus.consumers import AsyncSubscription
from walbus.consumers.client import Bus
from walbus.errors import ConfigError, UsageError
from walbus.records import Kind

pytestmark = pytest.mark.one_version


async def names(subscription, count: int, *, commit: bool = False) -> list[object]:
    """Names of the next rows; each window is committed if told to."""
    found: list[object] = []
    async with asyncio.timeout(60):
        while len(found) < count:
            window = await anext(subscription)
            found += [change.after["name"] for change in window if change.after]
            if commit:
                await window.commit()
    return found


def test_windows_come_in_order_and_a_restart_goes_on_behind_the_last_commit(source, relay, tmp_path: Path) -> None:
    async def first() -> list[object]:
        async with walbus.aconnect(relay.url, folder=tmp_path) as bus:
            return await names(bus.subscribe(name="reader", start="earliest"), 3, commit=True)

    async def second() -> list[object]:
        async with walbus.aconnect(relay.url, folder=tmp_path) as bus:
            return await names(bus.subscribe(name="reader"), 2)

    for n in range(5):
        source.commit([insert(ITEMS, n, f"n{n}")])
    assert asyncio.run(first()) == ["n0", "n1", "n2"]
    assert asyncio.run(second()) == ["n3", "n4"]


def test_a_task_that_is_cancelled_while_it_waits_loses_no_window(source, relay, tmp_path: Path) -> None:
    async def read() -> list[object]:
        async with walbus.aconnect(relay.url, folder=tmp_path) as bus:
            subscription = bus.subscribe(name="reader", start="earliest")
            await names(subscription, 1)
            waiting = asyncio.ensure_future(anext(subscription))
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            await asyncio.to_thread(source.commit, [insert(ITEMS, 1, "n1")])
            return await names(subscription, 1)

    source.commit([insert(ITEMS, 0, "n0")])
    assert asyncio.run(read()) == ["n1"]


def test_a_window_can_be_committed_when_its_bus_is_closed_as_with_the_other_client(
    source, relay, tmp_path: Path
) -> None:
    async def first() -> None:
        async with walbus.aconnect(relay.url, folder=tmp_path) as bus:
            subscription = bus.subscribe(name="reader", start="earliest")
            async with asyncio.timeout(60):
                windows = [await anext(subscription) for _ in range(2)]
        await windows[-1].commit()

    async def second() -> list[object]:
        async with walbus.aconnect(relay.url, folder=tmp_path) as bus:
            return await names(bus.subscribe(name="reader"), 1)

    for n in range(3):
        source.commit([insert(ITEMS, n, f"n{n}")])
    asyncio.run(first())
    assert asyncio.run(second()) in (["n1"], ["n2"])  # the first window may be a layout


def test_a_window_and_a_subscription_say_what_their_twins_say(source, relay, tmp_path: Path) -> None:
    async def read() -> None:
        async with walbus.aconnect(relay.url, folder=tmp_path) as bus:
            subscription = bus.subscribe(name="reader", start="earliest")
            await names(subscription, 1)
            source.commit([insert(ITEMS, 1, "n1")])
            async with asyncio.timeout(60):
                window = await anext(subscription)
            assert said(type(window)) == said(walbus.consumers.Delivery)
            assert (window.kind, window.last, window.begins, window.ends) == (
                Kind.TRANSACTION, source.end, True, True,
            )  # fmt: skip
            assert said(AsyncSubscription) >= said(walbus.consumers.Subscription) - {"batches"}
            assert subscription.waiting_for is None

    def said(kind: type) -> set[str]:
        return {name for name in dir(kind) if not name.startswith("_")}

    source.commit([insert(ITEMS, 0, "n0")])
    asyncio.run(read())


def test_a_bus_takes_what_its_twin_takes() -> None:
    parameters = inspect.signature(Bus.subscribe).parameters
    assert inspect.signature(walbus.consumers.AsyncBus.subscribe).parameters == parameters
    assert inspect.signature(walbus.consumers.AsyncBus.join).parameters == inspect.signature(Bus.join).parameters


def test_a_subscription_that_was_closed_ends(relay, tmp_path: Path) -> None:
    async def read() -> None:
        async with walbus.aconnect(relay.url, folder=tmp_path) as bus:
            subscription = bus.subscribe(name="reader", start="earliest")
            await subscription.close()
            with pytest.raises(StopAsyncIteration):
                await anext(subscription)
            with pytest.raises(UsageError):
                bus.subscribe(name="no name")

    asyncio.run(read())


def test_an_error_that_only_an_operator_mends_reaches_who_asks(relay, tmp_path: Path) -> None:
    async def read() -> None:
        async with walbus.aconnect(relay.url, folder=tmp_path) as bus, asyncio.timeout(60):
            with pytest.raises(ConfigError, match="names no bootstrap"):
                await anext(bus.subscribe(name="reader"))

    relay.names_bootstrap = False
    asyncio.run(read())


def test_many_who_wait_for_a_consumer_hold_up_nothing_else(relay, tmp_path: Path) -> None:
    """Each takes a thread for as long as the relay lets it wait."""

    async def wait() -> None:
        async with walbus.aconnect(relay.url, folder=tmp_path) as bus:
            waiting = [asyncio.ensure_future(bus.wait_for("reader", "0/1")) for _ in range(40)]
            await asyncio.to_thread(entered.acquire)
            async with asyncio.timeout(30):
                await asyncio.to_thread(int)
            for one in waiting:
                one.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
            async with asyncio.timeout(30):
                await bus.close()

    entered, answer = threading.Semaphore(0), threading.Event()

    def stuck(*_: object, **__: object) -> None:
        entered.release()
        assert answer.wait(90)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Bus, "wait_for", stuck)
        try:
            asyncio.run(wait())
        finally:
            answer.set()
