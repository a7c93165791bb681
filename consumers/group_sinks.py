"""A sink that the members of a group fill: each process works on the parts that it is given, by a relay or a cluster.

    GroupMember      keeps the leases, and has a thread for each part that it holds
    SinkPart         what such a thread runs: the consumer of one part, with a sink of its own
    GroupStatus      one status file for the process, of all its parts

What is kept beside a sink in a folder would not move with the part: dead letters, and the mapping that a sink was
filled under. So a group has neither.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from walbus.config import ConsumerConfig
from walbus.consumers.clock import Clock
from walbus.consumers.group_member import GroupMember, check_group
from walbus.consumers.group_status import GroupStatus
from walbus.consumers.lessors import Lessor
from walbus.consumers.part_lease import PartLease
from walbus.consumers.progress import STATUS_SECONDS, ConsumerProgress
from walbus.consumers.sinks import SinkPlace, require_fenced
from walbus.errors import ConfigError


@dataclass
class SinkPart:
    """The consumer of a part.

    Attributes:
        lease: of the part.
        lease_seconds: how long it is.
        progress: what it tells of itself.
        stopping: set to have it end.
    """

    lease: PartLease
    lease_seconds: float
    progress: ConsumerProgress
    stopping: threading.Event = field(default_factory=threading.Event)

    def stop(self) -> None:
        """Has it commit what is whole, and end."""
        self.stopping.set()

    def close(self) -> None:
        """Has it end; the lease lets nothing more be committed."""
        self.stopping.set()


def check_group_of_sinks(config: ConsumerConfig, place: SinkPlace) -> None:
    """Sees to it that the parts of a consumer can be had by members of a group.

    Args:
        config: its section of `walbus.toml`, with `parts`.
        place: the consumer's.

    Raises:
        ConfigError: they cannot.
        UsageError: the number of parts, or the lease's length, is none.
    """
    key = f"key consumer.{place.consumer}"
    check_group(config.parts or 0, config.lease_seconds)
    if config.partition is not None:
        what = "a process has the part that it is told (partition), or those that it is given (parts)"
        raise ConfigError(what, where=f"{key}.partition", mend="leave one of the two out")
    if config.on_error == "dead-letter":
        what = "dead letters lie on one machine, and would not go with a part that another member gets"
        raise ConfigError(what, where=f"{key}.on_error", mend='write "stop" or "skip", or leave parts out')
    if config.table:
        what = "a mapping is remembered on one machine, and members could fill a part under two"
        raise ConfigError(what, where=f"{key}.table", mend="leave the mapping or parts out")
    require_fenced(config.sink, config.options, place)


def run_group(  # noqa: PLR0913  # what a member is made of
    name: str,
    config: ConsumerConfig,
    *,
    lessor: Lessor,
    status: GroupStatus,
    run_part: Callable[[SinkPart], None],
    stop: threading.Event,
    clock: Clock,
) -> None:
    """Works on whatever parts this process is given, until `stop` is set.

    Args:
        name: of the consumer, which is the group's.
        config: its section of `walbus.toml`.
        lessor: whom to ask for parts.
        status: of this process.
        run_part: the consumer of one part, until that is stopped.
        stop: set to end it; what is whole is committed then, and the parts are given up.
        clock: time.

    Raises:
        RequestRefused: the group has another number of parts, or the access token may not be its member.
        WalbusError: what ended a part.
    """

    @contextmanager
    def opened(lease: PartLease) -> Iterator[SinkPart]:
        with status.part(lease.part, lease.name) as progress:
            yield SinkPart(lease, config.lease_seconds, progress)

    member = GroupMember(name, config.parts or 0, config.lease_seconds, lessor=lessor, open_part=opened, clock=clock)
    over = threading.Event()

    def watch() -> None:
        try:
            while not over.is_set():
                status.write(member.member, member.waiting_for)
                if stop.wait(STATUS_SECONDS):
                    member.stop()
                    over.wait(STATUS_SECONDS)
        finally:
            member.stop()  # nobody else hears `stop`

    watcher = threading.Thread(target=watch, name=f"{name} status", daemon=True)
    watcher.start()
    try:
        member.run(run_part)
    finally:
        over.set()
        watcher.join()
        status.write(member.member, "stopped")
