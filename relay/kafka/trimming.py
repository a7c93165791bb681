"""Which of the log's oldest messages go: by age and by bytes, but none that a hold still needs, and never the last one.

Kafka's own retention is off (`topics`); the writer asks for records to be deleted up to an offset, at which no
transaction is under way. Of TOPIC.large goes what no reference names that is left.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import structlog

from walbus.position import Position
from walbus.relay.kafka.cluster import ClusterClients
from walbus.relay.kafka.mark import Mark
from walbus.relay.kafka.partition import Places, ends_of
from walbus.relay.kafka.reader import KafkaLogReader
from walbus.relay.kafka.view import View
from walbus.relay.retention import Retention, lowest_hold
from walbus.relay.sequence import Place

_log = structlog.get_logger(__name__)


class Trimming:
    """The policy, and how it is carried out.

    Args:
        clients: of the cluster.
        retention: age and bytes.
        holds: folder whose `holds/` other rooms write on this machine.
    """

    def __init__(self, clients: ClusterClients, retention: Retention, holds: Path) -> None:
        self._clients, self._retention, self._holds = clients, retention, holds

    def trim(self, reader: KafkaLogReader, now: float) -> Place:
        """Drops what may go; what is known before the first record that is left.

        Args:
            reader: of the log.
            now: Unix seconds.

        Raises:
            LogUnreachable: the cluster does not answer.
        """
        view = reader.view()
        if view.last < 0:
            return view.base
        offset, mark = self._kept(reader.places, view, now)
        if offset <= view.ends.first or mark.before.offset <= view.base.offset:
            return view.base
        self._delete(self._clients.settings.topic, offset)
        (large,) = ends_of(self._clients, self._clients.settings.large)
        if mark.large > large.first:
            self._delete(self._clients.settings.large, mark.large)
        _log.info("log_trimmed", offset=offset, trimmed=str(mark.before.tip.position))
        return mark.before

    def _kept(self, places: Places, view: View, now: float) -> tuple[int, Mark]:
        """Offset and mark of the first message that stays."""
        oldest = int((now - self._retention.hours * 3600) * 1e6)
        wanted = [places.first(view.ends, lambda mark: mark.behind.max_time >= oldest)]
        limit = self._retention.bytes
        if limit is not None:
            wanted.append(places.first(view.ends, lambda mark: view.tip.offset - mark.before.offset <= limit))
        last = places.last(view.ends)
        assert last is not None  # noqa: S101 - the caller saw that there is one
        kept = max((found or last for found in wanted), key=_offset)
        hold = lowest_hold(self._holds)
        held = None if hold is None else places.first(view.ends, lambda mark: mark.behind.tip.position > hold)
        return self._whole(places, view, kept if held is None else min(kept, held, key=_offset))

    def _whole(self, places: Places, view: View, found: tuple[int, Mark]) -> tuple[int, Mark]:
        """The last message up to this one at which no transaction is under way."""
        while not found[1].whole:
            within = found[1].before.tip.position
            begun = Position(within.epoch, within.commit_lsn, 0)
            earlier = places.first(view.ends, partial(_reaches, begun))
            if earlier is None or earlier[0] >= found[0]:
                break
            found = earlier
        return found

    def _delete(self, topic: str, offset: int) -> None:
        from confluent_kafka import TopicPartition  # noqa: PLC0415

        with self._clients.asking(f"old records of {topic} cannot be dropped"):
            asked = self._clients.admin.delete_records(
                [TopicPartition(topic, 0, offset)], request_timeout=self._clients.settings.answer_seconds
            )  # fmt: skip
            for done in asked.values():
                done.result()


def _reaches(position: Position, mark: Mark) -> bool:
    return mark.behind.tip.position >= position


def _offset(found: tuple[int, Mark]) -> int:
    return found[0]
