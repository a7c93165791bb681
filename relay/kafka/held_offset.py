"""What a bootstrap that reads the cluster holds of the log there, for whoever trims it or looks; see `hold`."""

from __future__ import annotations

import time
from contextlib import closing
from typing import TYPE_CHECKING, NamedTuple

from walbus.relay.kafka.cluster import ClusterClients, error_of
from walbus.relay.kafka.lock import passing

if TYPE_CHECKING:
    from confluent_kafka import Consumer

_LOOK_SECONDS = 0.05


class Held(NamedTuple):
    """What a group holds.

    Attributes:
        offset: of the first message that is kept.
        text: the position behind which the log is needed, by the word of who holds it; anything, if somebody else
            moved the offset.
    """

    offset: int
    text: str


def held_on(clients: ClusterClients, seconds: float) -> Held | None:
    """What the bootstrap holds of the log, whether or not it runs; None if there is no hold.

    Args:
        clients: of the cluster.
        seconds: how long an answer is waited for, about.

    Raises:
        LogError, LogUnreachable: it is not told.
    """
    from confluent_kafka import KafkaException, TopicPartition  # noqa: PLC0415

    group, topic = clients.settings.hold_group, clients.settings.topic
    untold = f"it is not told what the group {group} holds"
    deadline = time.monotonic() + seconds
    needs = f"Describe on the group {group}"
    with clients.asking(untold, needs), closing(clients.asker(group)) as asker:
        while True:
            left = max(deadline - time.monotonic(), _LOOK_SECONDS)
            try:
                (found,) = asker.committed([TopicPartition(topic, 0)], timeout=left)
                break
            except KafkaException as error:
                told = error_of(error)
                if told is None or told.code() not in passing() or time.monotonic() > deadline:
                    _check_refused(asker, clients, untold, needs)
                    raise
            time.sleep(_LOOK_SECONDS)
    if found.error is not None:
        raise clients.told(untold, found.error, needs)
    return None if found.offset < 0 else Held(found.offset, found.metadata or "")


def _check_refused(asker: Consumer, clients: ClusterClients, untold: str, needs: str) -> None:
    """Raises LogError if the group may not be asked for: that is told beside the answer that does not come."""
    from confluent_kafka import KafkaError  # noqa: PLC0415

    message = asker.poll(0)
    error = None if message is None else message.error()
    if error is not None and error.code() == KafkaError.GROUP_AUTHORIZATION_FAILED:
        raise clients.told(untold, error, needs)
