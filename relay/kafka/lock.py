"""One writer at a time: who writes is the member of a consumer group, whose broker notices when it is gone.

The lock is a courtesy: it keeps a second capture from taking the log away from one that lives. What keeps a log whole
is fencing: whoever begins to write under the transactional id ends the transactions of the writer before it for good.
So a writer that was stopped for longer than its session, and comes back, is told so by its next commit.
"""

from __future__ import annotations

import os
import socket
import time
from typing import TYPE_CHECKING

from walbus.errors import LogBusy
from walbus.relay.kafka.cluster import ClusterClients, error_of

if TYPE_CHECKING:
    from confluent_kafka import Consumer
    from confluent_kafka.admin import MemberDescription

#: Members that this process was: a cluster that went away before it heard that one left counts it until its session
#: is over.
_released: set[str] = set()


class WriterLock:
    """Held from its making to `release`, or until the broker has not heard of this process for the session's time.

    Args:
        clients: of the cluster.
        session_seconds: after so long a writer that died, or stands still, may be followed.

    Raises:
        LogBusy: another process has it; says which.
        LogUnreachable: the cluster does not answer.
    """

    def __init__(self, clients: ClusterClients, session_seconds: float) -> None:
        self._clients = clients
        self._group = f"{clients.settings.topic}.writer"
        died = self._refuse_if_held()
        self._member: Consumer | None = clients.member(self._group, own_name(), session_seconds)
        try:
            self._member.subscribe([clients.settings.meta])
            self._member.poll(0)
            if not died:  # else the group waits for its session to end, and nobody else has to
                self._await_membership(self._member)
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Lets the next writer in."""
        if self._member is not None:
            if member := self._member.memberid():
                _released.add(member)
            self._member.close()
            self._member = None

    def _refuse_if_held(self) -> bool:
        """Whether a writer died that the group still counts; LogBusy if one lives."""
        members = members_of(self._clients, self._group)
        alive = [one for one in members if not (_is_dead(one.client_id) or one.member_id in _released)]
        if alive:
            raise self._busy(_called(alive[0]))
        return bool(members)

    def _await_membership(self, member: Consumer) -> None:
        deadline = time.monotonic() + self._clients.settings.answer_seconds
        while not member.assignment():
            member.poll(0.02)
            if time.monotonic() > deadline:
                raise self._busy("another process that came at the same time")

    def _busy(self, who: str) -> LogBusy:
        mend = "stop the other capture; the log is free some seconds after one died"
        return LogBusy(f"another process writes this log: {who}", where=f"group {self._group}", mend=mend)


def members_of(clients: ClusterClients, group: str) -> list[MemberDescription]:
    """Those of a group; none where there is no such group.

    Raises:
        LogError, LogUnreachable: they are not told.
    """
    from confluent_kafka import KafkaError, KafkaException  # noqa: PLC0415

    seconds = clients.settings.answer_seconds
    deadline = time.monotonic() + seconds
    with clients.asking(f"the members of the group {group} are not told"):
        while True:
            asked = clients.admin.describe_consumer_groups([group], request_timeout=seconds)
            try:
                return list(asked[group].result().members)
            except KafkaException as error:
                told = error_of(error)
                if told is not None and told.code() == KafkaError.GROUP_ID_NOT_FOUND:
                    return []
                if told is None or told.code() not in _passing() or time.monotonic() > deadline:
                    raise
            time.sleep(0.05)


def _passing() -> tuple[int, ...]:
    """Codes of a cluster that is about to have the group's coordinator."""
    from confluent_kafka import KafkaError  # noqa: PLC0415

    return (
        KafkaError._WAIT_COORD,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError.NOT_COORDINATOR,
    )


def writers_of(clients: ClusterClients) -> list[str]:
    """Who writes a log now, as `NAME at HOST`; whoever died on this machine does not count.

    Raises:
        LogError, LogUnreachable: it is not told.
    """
    members = members_of(clients, f"{clients.settings.topic}.writer")
    return [_called(member) for member in members if not _is_dead(member.client_id)]


def _called(member: MemberDescription) -> str:
    return f"{member.client_id} at {member.host.lstrip('/')}"


def own_name() -> str:
    """What a writer calls itself, by which the next one on this machine sees whether it lives."""
    return f"walbus-{socket.gethostname()}-{_boot()}-{os.getpid()}"


def _is_dead(name: str) -> bool:
    """Whether a process of this machine has this name and is gone."""
    here, _, pid = name.rpartition("-")
    if here != own_name().rpartition("-")[0] or not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _boot() -> str:
    """This start of this machine, and this space of process numbers in it."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as boot:  # noqa: PTH123 - a name of the kernel
            return f"{boot.read(8)}.{os.stat('/proc/self/ns/pid').st_ino}"  # noqa: PTH116
    except OSError:
        return "unknown"
