"""The groups of one relay: asked one at a time, and written to the disk before anyone is told.

Belongs to the event loop; what blocks runs on the server's threads. Only the relay that keeps the log's consumers
(`keeper_lock`) has groups, so that there are no two that give the same part; it takes up what the one before it kept.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import structlog

from walbus.errors import LogFull
from walbus.relay.fs import Files
from walbus.relay.group_leases import Asked, Group
from walbus.relay.group_requests import MAX_LEASE
from walbus.relay.groups_file import groups_path, pack_groups, read_groups, write_groups

_log = structlog.get_logger(__name__)

#: Groups that there are at most.
MAX_GROUPS: Final = 100

#: Seconds behind which no lease of an earlier relay can hold any more, with all margins.
_ALL_OVER: Final = MAX_LEASE * 1.1 + 1.0


class NoGroupsNow(Exception):  # noqa: N818  # it comes right by itself
    """This relay can give nothing at present; `args[0]` says why."""


class TooManyGroups(Exception):  # noqa: N818
    """There is no room for another group."""


class GroupDesk:
    """The groups of one relay.

    Args:
        folder: of the log.
        keeps: whether this relay keeps what the log's relays share.
        files: the file operations.
        wall, monotonic: clocks, in seconds.
    """

    def __init__(
        self,
        folder: Path,
        keeps: Callable[[], bool],
        files: Files | None = None,
        *,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path, self._keeps, self._files = groups_path(folder), keeps, files or Files()
        self._wall, self._monotonic = wall, monotonic
        self._groups: dict[str, Group] = {}
        self._token = 0  # the highest that was ever given
        self._kept: bytes | None = None  # what the file has; None: it was not read yet
        self._blind_until = float("-inf")
        self._damaged = False  # whether the file that is there is to be put aside
        self._turn = asyncio.Lock()
        self._writing = threading.Lock()
        self._closed = False

    async def ask(self, name: str, member: str, asked: Asked, threads: ThreadPoolExecutor) -> Group:
        """The group once a member has asked, durably.

        Raises:
            OtherParts, OtherOwner, TooManyMembers, TooManyGroups, NoGroupsNow
        """
        now = self._monotonic()
        async with self._turn:
            await self._take_up(threads)
            if now < self._blind_until:
                raise NoGroupsNow("what members hold was lost, and is waited out")
            if asked.leaves and name not in self._groups:
                return Group(())
            before = self._groups.get(name) or Group(())
            group = before.asked(member, asked, now, max(self._token + 1, int(self._wall() * 1000)))
            await self._keep({**self._with_room(name, now), name: group}, threads)
            return group

    async def remove(self, name: str, member: str, threads: ThreadPoolExecutor) -> bool:
        """Removes a member, durably; False if there is none."""
        async with self._turn:
            await self._take_up(threads)
            group = self._groups.get(name)
            if group is None or member not in group.members:
                return False
            await self._keep({**self._groups, name: group.left(member)}, threads)
            return True

    async def group(self, name: str, threads: ThreadPoolExecutor) -> Group | None:
        """A group, without those whose lease is over."""
        async with self._turn:
            await self._take_up(threads)
            group = self._groups.get(name)
            return None if group is None else group.without_gone(self._monotonic())

    async def close(self) -> None:
        """Nothing is written from here on."""
        async with self._turn:
            self._closed = True

    def _with_room(self, name: str, now: float) -> dict[str, Group]:
        """The groups; without those that nobody is in, where there is no room for one more."""
        if name in self._groups or len(self._groups) < MAX_GROUPS:
            return self._groups
        groups = {one: group for one, group in self._groups.items() if group.without_gone(now).members}
        if len(groups) >= MAX_GROUPS:
            raise TooManyGroups
        return groups

    async def _take_up(self, threads: ThreadPoolExecutor) -> None:
        """Reads what was kept, the first time that this relay may."""
        if self._closed or not self._keeps():
            raise NoGroupsNow("this relay does not keep the groups: it stops, or another one of the log does")
        if self._kept is not None:
            return
        try:
            kept = await asyncio.get_running_loop().run_in_executor(threads, read_groups, self._path)
        except OSError as error:
            raise self._cannot("read", error.strerror) from None
        now = self._monotonic()
        self._groups = {name: group.taken_up(now) for name, group in kept.groups.items()}
        self._token, self._damaged = kept.token, kept.damaged
        self._blind_until = now + _ALL_OVER if kept.blind else float("-inf")
        self._kept = pack_groups(self._groups, self._token)

    async def _keep(self, groups: dict[str, Group], threads: ThreadPoolExecutor) -> None:
        """Has these be the groups, once that is durable."""
        token = max((self._token, *(group.highest for group in groups.values())))
        data = pack_groups(groups, token)
        if data != self._kept:
            try:
                await asyncio.get_running_loop().run_in_executor(threads, self._write, data)
            except (OSError, LogFull) as error:
                raise self._cannot("write", error.what if isinstance(error, LogFull) else error.strerror) from None
        self._groups, self._token, self._kept = groups, token, data

    def _write(self, data: bytes) -> None:
        with self._writing:  # an earlier one may be under way, for a request that was given up
            write_groups(self._path, self._files, data, damaged=self._damaged)
            self._damaged = False

    def _cannot(self, verb: str, why: str | None) -> NoGroupsNow:
        mend = "free space, or let the relay use the log's folder"
        _log.error("relay_cannot_keep_groups", file=str(self._path), act=verb, why=why, mend=mend)
        return NoGroupsNow(f"the relay cannot {verb} its groups: {why}")
