"""The thread that waits for the log's end: it wakes whoever asked, and nobody's asking costs a busy writer nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from support.relay_log import FileEngine, transaction
from walbus.position import Position
from walbus.relay.reader import FileLogReader
from walbus.relay.tail import Tail

pytestmark = pytest.mark.one_version


class CountedReader(FileLogReader):
    """Counts how often the end was found to have moved."""

    woken = 0

    def wait(self, seen: Position, timeout: float) -> bool:
        moved = super().wait(seen, timeout)
        self.woken += moved
        return moved


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[FileEngine]:
    with closing(FileEngine(tmp_path / "log")) as engine:
        yield engine


def test_a_tail_wakes_for_each_look_once_however_often_the_end_has_moved(engine: FileEngine) -> None:
    writer, lsns = engine.open_writer(), iter(range(16, 1 << 20, 16))

    def write(count: int) -> None:
        for _ in range(count):
            writer.append(transaction(next(lsns)))
            writer.sync()

    async def follow() -> None:
        reader = CountedReader(engine.folder)
        tail = Tail(reader)
        try:
            for look in range(1, 6):
                moved = tail.moved()
                assert tail.moved() is moved
                write(1)
                await asyncio.wait_for(moved.wait(), 20)
                write(200)  # nobody asks meanwhile
                assert reader.woken == look
        finally:
            await tail.close()
            reader.close()

    asyncio.run(follow())


def test_a_move_between_asking_and_looking_wakes(engine: FileEngine) -> None:
    """Whoever asks looks afterwards, and what comes behind his look is not passed over."""
    writer = engine.open_writer()

    async def follow() -> None:
        reader = CountedReader(engine.folder)
        tail = Tail(reader)
        done, rounds = Position(0, 0, 0), 0
        writing = asyncio.create_task(asyncio.to_thread(write_all))
        try:
            while done.commit_lsn < 16 * 2000:
                moved = tail.moved()
                end = reader.bounds().end
                if end == done:
                    await asyncio.wait_for(moved.wait(), 20)
                done, rounds = end, rounds + 1
            await writing
        finally:
            await tail.close()
            reader.close()
        assert rounds > 1

    def write_all() -> None:
        for number in range(1, 2001):
            writer.append(transaction(16 * number))
            writer.sync()

    asyncio.run(follow())
