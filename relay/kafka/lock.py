"""One process at a time: who has a lock is the member of a consumer group, whose broker notices when it is gone.

The writer's lock is a courtesy: it keeps a second capture from taking the log away from one that lives. What keeps a
log whole is fencing: whoever begins to write under the transactional id ends the transactions of the writer before it
for good. So a writer that was stopped for longer than its session, and comes back, is told so by its next commit.

A process that stood still for longer than its session joins the group again by itself, beside the one that has the
lock by then: so whoever works under a lock for long asks whether it is `held`, and lets go of it if not.
"""

from __future__ import annotations

import os
import socket
import time
from typing import TYPE_CHECKING

from walbus.errors import LogBusy
from walbus.relay.kafka.cluster import ClusterClients, error_of

if TYPE_CHECKING:
    from confluent_kafka import Consumer, Message
    from confluent_kafka.admin import MemberDescription

#: Members that this process was: a cluster that went away before it heard that one left counts it until its session
#: is over.
_released: set[str] = set()


class GroupLock:
    """Held from its making to `release`, or until the broker has not heard of this process for the session's time.

    Args:
        clients: of the cluster.
        group: whose member has it.
        session_seconds: after so long a process that died, or stands still, may be followed.
        does: what the one does that has it, as in "writes this log".
        mend: what to do about another one.

    Raises:
        LogBusy: another process has it; says which.
        LogUnreachable: the cluster does not answer, or takes nobody into the group in `answer_seconds`.
    """

    def __init__(self, clients: ClusterClients, group: str, session_seconds: float, *, does: str, mend: str) -> None:
        self.group = group  #: whose member has it
        self._clients, self._does, self._mend = clients, does, mend
        self._was_assigned = self._lost = False
        self._member: Consumer | None = None
        died = self._refuse_if_held()
        self._member = clients.member(self.group, own_name(), session_seconds)
        try:
            self._member.subscribe([clients.settings.meta])
            self._member.poll(0)
            if not died:  # else the group waits for its session to end, and nobody else has to
                self._await_membership(self._member)
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Lets the next one in."""
        if self._member is not None:
            if member := self._member.memberid():
                _released.add(member)
            self._member.close()
            self._member = None

    def held(self) -> bool:
        """Whether it is had still; once it is not, it is to be released. To be asked every few seconds."""
        if self._member is None:
            return False
        self._member.poll(0)
        assigned = bool(self._member.assignment())
        self._lost = self._lost or (self._was_assigned and not assigned)
        self._was_assigned = assigned
        return not self._lost

    def note(self, topic: str, offset: int, text: str) -> None:
        """Keeps an offset of a topic, and a text beside it, under the name of the group.

        Raises:
            LogUnreachable: the cluster did not take it; as while the group waits for one that died.
            LogError: this process may not.
        """
        from confluent_kafka import TopicPartition  # noqa: PLC0415

        if self._member is None:
            raise ValueError("the lock was released")
        untold, needs = f"the group {self.group} keeps no offset", f"{_reading(self.group)}, and on the topic {topic}"
        with self._clients.asking(untold, needs):
            kept = self._member.commit(offsets=[TopicPartition(topic, 0, offset, text)], asynchronous=False)
        for one in kept or ():
            if one.error is not None:
                raise self._clients.told(untold, one.error, needs)

    def _refuse_if_held(self) -> bool:
        """Whether one died that the group still counts; LogBusy if one lives."""
        own = self._member.memberid() if self._member is not None else None
        members = [one for one in members_of(self._clients, self.group) if one.member_id != own]
        alive = [one for one in members if not (_is_dead(one.client_id) or one.member_id in _released)]
        if alive:
            raise self._busy(_called(alive[0]))
        return bool(members)

    def _await_membership(self, member: Consumer) -> None:
        deadline = time.monotonic() + self._clients.settings.answer_seconds
        while not member.assignment():
            self._heed(member.poll(0.02))
            if time.monotonic() > deadline:
                self._refuse_if_held()  # by another process that came at the same time
                raise self._clients.unreachable(f"the group {self.group} takes no member")
        self._was_assigned = True

    def _heed(self, message: Message | None) -> None:
        """Sees whether the cluster says that this process may not be a member."""
        from confluent_kafka import KafkaError  # noqa: PLC0415

        error = None if message is None else message.error()
        if error is not None and error.code() == KafkaError.GROUP_AUTHORIZATION_FAILED:
            raise self._clients.told(f"the group {self.group} takes no member", error, _reading(self.group))

    def _busy(self, who: str) -> LogBusy:
        return LogBusy(f"another process {self._does}: {who}", where=f"group {self.group}", mend=self._mend)


def _reading(group: str) -> str:
    return f"Read on the group {group}"


class WriterLock(GroupLock):
    """The right to write a log; see `GroupLock`."""

    def __init__(self, clients: ClusterClients, session_seconds: float) -> None:
        mend = "stop the other capture; the log is free some seconds after one died"
        super().__init__(clients, clients.settings.writer_group, session_seconds, does="writes this log", mend=mend)


def members_of(clients: ClusterClients, group: str) -> list[MemberDescription]:
    """Those of a group; none where there is no such group.

    Raises:
        LogError, LogUnreachable: it is not told.
    """
    from confluent_kafka import KafkaError, KafkaException  # noqa: PLC0415

    seconds = clients.settings.answer_seconds
    deadline = time.monotonic() + seconds
    with clients.asking(f"the members of the group {group} are not told", f"Describe on the group {group}"):
        while True:
            asked = clients.admin.describe_consumer_groups([group], request_timeout=seconds)
            try:
                return list(asked[group].result().members)
            except KafkaException as error:
                told = error_of(error)
                if told is not None and told.code() == KafkaError.GROUP_ID_NOT_FOUND:
                    return []
                if told is None or told.code() not in passing() or time.monotonic() > deadline:
                    raise
            time.sleep(0.05)


def passing() -> tuple[int, ...]:
    """Codes of a cluster that is about to have the group's coordinator."""
    from confluent_kafka import KafkaError  # noqa: PLC0415

    return (
        KafkaError._WAIT_COORD,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError.NOT_COORDINATOR,
    )


def holders_of(clients: ClusterClients, group: str) -> list[str]:
    """Who has a lock now, as `NAME at HOST`; whoever died on this machine does not count.

    Raises:
        LogError, LogUnreachable: it is not told.
    """
    members = members_of(clients, group)
    return [_called(member) for member in members if not _is_dead(member.client_id)]


def _called(member: MemberDescription) -> str:
    return f"{member.client_id} at {member.host.lstrip('/')}"


def own_name() -> str:
    """What a process calls itself, by which the next one on this machine sees whether it lives."""
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
