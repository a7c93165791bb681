"""Feeds over a log on disk: who is a member, and who gets what when members come and go while the feed reads."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import cast

import pytest

from support.relay_log import FileEngine, commits, transaction
from walbus.position import Position
from walbus.record_parser import RecordParser
from walbus.records import RecordHeader
from walbus.relay.content_coding import new_coding
from walbus.relay.delivery import Delivery, Step, StreamForm
from walbus.relay.feed import Feeds, Kind
from walbus.relay.fs import Files
from walbus.relay.outlet import LAG_BYTES, Outlet
from walbus.relay.selection import Selection
from walbus.relay.tail import Tail

pytestmark = pytest.mark.one_version

EVERYTHING = Kind(StreamForm(), "identity")


class Peer:
    """An outlet whose client has taken as much as the test says."""

    def __init__(self) -> None:
        self.got = b""
        self.left = 0  # bytes that it has not taken
        self.asked: list[Position] = []

    def put(self, data: bytes) -> None:
        self.got += data

    def put_framed(self, block: bytes) -> None:
        self.got += block

    def framed(self, data: bytes) -> bytes:
        return new_coding("identity").block(data)

    def waiting(self) -> int:
        return self.left

    def take_asked(self, scanned: Position) -> bool:
        del scanned
        return False


def outlet(peer: Peer) -> Outlet:
    return cast(Outlet, peer)


def headers(data: bytes) -> list[RecordHeader]:
    parser = RecordParser()
    parser.feed(data)
    return [header for header, _ in parser.records()]


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[FileEngine]:
    made = FileEngine(tmp_path / "log")
    yield made
    made.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.005)


Scene = Callable[[FileEngine, Feeds, asyncio.Event], Awaitable[None]]


def play(engine: FileEngine, scene: Scene) -> None:
    """Runs a scene with feeds whose steps, like those on a thread, take until an event is set."""

    async def run() -> None:
        reader, stopping, returns = engine.open_reader(), asyncio.Event(), asyncio.Event()
        returns.set()

        async def step(delivery: Delivery) -> Step:
            done = delivery.step()
            await returns.wait()
            return done

        tail = Tail(reader)
        try:
            await scene(engine, Feeds(tail, step, stopping), returns)
        finally:
            await tail.close()

    asyncio.run(run())


def at_end(engine: FileEngine, form: StreamForm = EVERYTHING.form) -> Delivery:
    reader = engine.open_reader()
    return Delivery(reader, reader.bounds().end, form=form)


def test_a_member_that_lags_loses_nothing_when_somebody_joins_while_a_thread_reads(engine):
    writer = engine.open_writer()
    writer.append(transaction(16))
    writer.sync()

    async def scene(engine: FileEngine, feeds: Feeds, returns: asyncio.Event) -> None:
        slow, other = Peer(), Peer()
        before = at_end(engine)
        feed = feeds.meeting(EVERYTHING, before, outlet(slow))
        assert feed is not None
        following = asyncio.ensure_future(feed.follow(outlet(slow)))
        await asyncio.sleep(0)
        returns.clear()
        writer.append(transaction(32))
        writer.sync()
        await until(lambda: feed.delivery.scanned.commit_lsn == 32)  # read, and not sent yet
        slow.left = LAG_BYTES + 1
        joining = at_end(engine)
        joined = feeds.meeting(EVERYTHING, joining, outlet(other))
        returns.set()
        parted = await asyncio.wait_for(following, 60)
        assert parted is not None
        writer.append(transaction(48))
        writer.sync()
        assert commits(headers(slow.got + parted.step().data)) == [32, 48]
        assert joined is None
        for delivery in (before, joining, parted):
            delivery.close()

    play(engine, scene)


def test_nothing_is_kept_of_what_nobody_asks_for_any_more(engine):
    writer = engine.open_writer()
    writer.append(transaction(16))
    writer.sync()

    async def scene(engine: FileEngine, feeds: Feeds, _: asyncio.Event) -> None:
        for number in range(20):
            form = StreamForm("binary", Selection((f"public.t{number}",)))
            delivery, kind, peer = at_end(engine, form), Kind(form, "identity"), outlet(Peer())
            feed = feeds.meeting(kind, delivery, peer)
            assert feed is not None
            delivery.close()
            following = asyncio.ensure_future(feed.follow(peer))
            await asyncio.sleep(0)
            following.cancel()
            with suppress(asyncio.CancelledError):
                await following
        writer.append(transaction(32))  # wakes them, and they find that they are alone
        writer.sync()
        await until(lambda: len(feeds) == 0)

    play(engine, scene)


def test_without_descriptors_a_member_that_lags_is_alone_in_its_trouble(engine, monkeypatch):
    writer = engine.open_writer()
    writer.sync()

    async def scene(engine: FileEngine, feeds: Feeds, _: asyncio.Event) -> None:
        peers, deliveries = [Peer(), Peer()], [at_end(engine), at_end(engine)]
        members = []
        for peer, delivery in zip(peers, deliveries, strict=True):
            feed = feeds.meeting(EVERYTHING, delivery, outlet(peer))
            assert feed is not None
            members.append(asyncio.ensure_future(feed.follow(outlet(peer))))
            await asyncio.sleep(0)
        monkeypatch.setattr(Files, "duplicate", refuse)
        peers[0].left = LAG_BYTES + 1
        writer.append(transaction(16))
        writer.sync()
        with pytest.raises(OSError, match="Too many"):
            await asyncio.wait_for(members[0], 60)
        await until(lambda: commits(headers(peers[1].got)) == [16])
        members[1].cancel()
        deliveries.append(at_end(engine))
        assert feeds.meeting(Kind(StreamForm("json"), "identity"), deliveries[2], outlet(Peer())) is None
        for delivery in deliveries:
            delivery.close()

    play(engine, scene)


def refuse(*_: object) -> int:
    raise OSError(errno.EMFILE, "Too many open files")


def test_who_lags_does_not_join(engine):
    """It would leave at once, and come back at once, with a task and a file each time."""
    engine.open_writer().sync()

    async def scene(engine: FileEngine, feeds: Feeds, _: asyncio.Event) -> None:
        slow, delivery = Peer(), at_end(engine)
        slow.left = LAG_BYTES + 1
        assert feeds.meeting(EVERYTHING, delivery, outlet(slow)) is None
        assert len(feeds) == 0
        delivery.close()

    play(engine, scene)


def test_a_member_keeps_no_filter_of_its_own(engine):
    engine.open_writer().sync()
    member = at_end(engine, StreamForm("binary", Selection(("public.orders",))))
    assert member._filter is not None
    member.close()
    assert member._filter is None
