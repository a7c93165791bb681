"""A member of a group whose work is tasks: the same wherever the parts come from."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

import walbus
from support.group_rig import Group
from support.waiting import wait_for
from walbus.consumers import AsyncLeasedSubscription
from walbus.consumers.checkpoint import Part

_ROWS = 30


async def taken_by_tasks(group: Group, folder: Path) -> tuple[list[int], int]:
    """What tasks took of 30 rows in two parts, and how many parts they had; the member has left by itself then.

    Another member is cancelled, and has left too.
    """
    group.source.write(_ROWS)
    taken: list[int] = []
    held: set[Part] = set()

    async def work(subscription: AsyncLeasedSubscription) -> None:
        async for window in subscription:
            taken.extend(change.key["id"] for change in window)
            held.add(subscription.part)
            await window.commit()
            if len(taken) == _ROWS:
                return

    async with walbus.aconnect(group.url, folder=folder) as bus:
        await bus.join("public.*", name="orders", parts=2, start="earliest").run(work)
        assert group.held() == {}
        waits = asyncio.ensure_future(bus.join("public.*", name="orders", parts=2).run(work))
        await asyncio.to_thread(wait_for, group.held, 60, what="it to be a member")
        waits.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waits
        assert group.held() == {}, "it has left"
    return taken, len(held)
