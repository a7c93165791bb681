"""The hold of a bootstrap that reads the log from the cluster: the committed offset of a group, `TOPIC.bootstrap`.

Messages of the log's topic from this offset on are kept, whatever their age and however many they are (`trimming`). The
text beside the offset is the position behind which the log is needed. Any tool for Kafka shows both, and the lag; and
lets go of the hold by deleting the group.

One process has it at a time: it is the group's member (`lock`). Two that moved one hold in turns would each lose what
the other one has read. Brokers forget the offsets of a group without a member after `offsets.retention.minutes`, which
are seven days unless they are told otherwise, so that a hold that everybody forgot ends by itself; while its process
lives it is written again every minute, whether or not it moves.

What talks to the cluster is a thread of its own. Its owner goes on while the cluster is away, and a hold that lags
holds more.
"""

from __future__ import annotations

import threading
import time
from contextlib import closing
from pathlib import Path

import structlog

from walbus.errors import Directive, LogError, LogMissing, LogUnreachable, PositionTrimmed, directive_of
from walbus.position import Position
from walbus.relay.kafka.cluster import ClusterClients, ClusterSettings
from walbus.relay.kafka.engine import LEASE_SECONDS, open_kafka_reader
from walbus.relay.kafka.lock import GroupLock
from walbus.relay.kafka.reader import KafkaLogReader
from walbus.relay.kafka.topics import describe_topics

_log = structlog.get_logger(__name__)

_TICK_SECONDS = 1.0
_AGAIN_SECONDS = 60.0  #: after which an offset that has not moved is written again
_TOPIC_SECONDS = 10.0  #: so often it is seen whether the topic is still the same
_PAUSE_SECONDS = 2.0
_FIRST_SECONDS = 5.0  #: the first answer is waited for so long at a time
_CLOSE_SECONDS = 3.0
_LATE_SECONDS = 30.0  #: a hold that has not moved for so long for want of the cluster is told


class ClusterHold:
    """See `walbus.log.RetentionHold`.

    Args:
        cluster: where the log is.
        session_seconds: after so long another process may follow one that died, or stands still.
        replaces: the file of a hold of this bootstrap that is not needed any more once there is one on the cluster.

    Raises:
        ConfigError: confluent-kafka is not installed.
    """

    def __init__(
        self, cluster: ClusterSettings, *, session_seconds: float = LEASE_SECONDS, replaces: Path | None = None
    ) -> None:
        self._clients = ClusterClients(cluster)
        self._cluster, self._session_seconds, self._replaces = cluster, session_seconds, replaces
        self._stop, self._told = threading.Event(), threading.Event()
        self._problem: LogError | None = None  # why it is not had
        self._failed: BaseException | None = None  # what nobody expected
        self._wanted: tuple[str, Position] | None = None
        self._thread = threading.Thread(target=self._run, name="walbus-hold", daemon=True)
        self._thread.start()

    def require(self) -> None:
        """Returns where it is had; see `walbus.log.RetentionHold.require`."""
        if not self._told.wait(_FIRST_SECONDS):
            raise LogUnreachable("the group that holds the log has not answered yet", where=self._cluster.bootstrap)
        if self._failed is not None:
            raise self._failed
        problem = self._problem
        if problem is not None:
            raise type(problem)(problem.what, where=problem.where, mend=problem.mend)

    def move(self, log_id: str, last_done: Position) -> None:
        """Moves it within some seconds, if the cluster answers."""
        self._wanted = log_id, last_done

    def close(self) -> None:
        """Leaves the group; what was committed stays."""
        self._stop.set()
        self._thread.join(_CLOSE_SECONDS)

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                try:
                    self._hold()
                except LogError as error:
                    self._tell(error)
                    self._stop.wait(_PAUSE_SECONDS)
        except BaseException as error:
            self._failed = error
            self._told.set()
            if not isinstance(error, Exception):
                raise

    def _tell(self, problem: LogError | None) -> None:
        self._problem = problem
        self._told.set()

    def _hold(self) -> None:
        """Has the lock, and moves the offset, until told to stop.

        Raises:
            LogError: it is not had any more, or was not.
        """
        with closing(open_kafka_reader(self._cluster)) as reader, closing(self._clients):
            mend = "stop one of the two, or let one read the folder of a relay (bootstrap.read_from)"
            lock = GroupLock(
                self._clients,
                self._cluster.hold_group,
                self._session_seconds,
                does="holds this log for a bootstrap",
                mend=mend,
            )
            try:
                self._tell(None)
                self._keep(lock, _Moving(reader, lock, self._cluster.topic), reader)
            finally:
                lock.release()

    def _keep(self, lock: GroupLock, moving: _Moving, reader: KafkaLogReader) -> None:
        seen = time.monotonic()
        while not self._stop.wait(_TICK_SECONDS):
            if not lock.held():
                raise LogUnreachable(
                    "the cluster has not heard of this process for too long, so that another one may have the hold",
                    where=f"group {lock.group}",
                    mend="nothing to do: it is asked for again",
                )
            if time.monotonic() - seen >= _TOPIC_SECONDS:
                seen = time.monotonic()
                _check_same(reader, self._clients)
            if self._wanted is not None and moving.move(*self._wanted) and self._replaces is not None:
                self._replaces.unlink(missing_ok=True)
                self._replaces = None
        if self._wanted is not None:
            moving.move(*self._wanted)


class _Moving:
    """Moves the offset, patiently."""

    def __init__(self, reader: KafkaLogReader, lock: GroupLock, topic: str) -> None:
        self._reader, self._lock, self._topic = reader, lock, topic
        self._committed: Position | None = None
        self._at = 0.0  # when that was
        self._fails_since: float | None = None
        self._said = False

    def move(self, log_id: str, last_done: Position) -> bool:
        """Whether it stands at a position of the log now."""
        now = time.monotonic()
        if last_done == self._committed and now - self._at < _AGAIN_SECONDS:
            return True
        try:
            view = self._reader.view()
            if view.log.log_id != log_id:  # its owner has not seen yet that this is another log
                return False
            found = self._reader.places.first(view.ends, lambda mark: mark.behind.tip.position > last_done)
            self._lock.note(self._topic, view.ends.stable if found is None else found[0], str(last_done))
        except PositionTrimmed:  # while it was looked for: what lies before it goes at the same time
            return False
        except LogError as error:
            if directive_of(error) is not Directive.RETRY:
                raise
            self._lags(now, error)
            return False
        if self._said:
            _log.info("log_hold_moves", last_done=str(last_done))
        self._committed, self._at, self._fails_since, self._said = last_done, now, None, False
        return True

    def _lags(self, now: float, error: LogError) -> None:
        if self._fails_since is None:
            self._fails_since = now
        if now - self._fails_since >= _LATE_SECONDS and not self._said:
            self._said = True
            _log.warning("log_hold_lags", error=str(error), note="the log keeps more meanwhile")


def _check_same(reader: KafkaLogReader, clients: ClusterClients) -> None:
    """Sees that the topic is the one that the reader began with."""
    topic = clients.settings.topic
    try:
        found = describe_topics(clients, [topic]).get(topic)
    except LogUnreachable:
        return
    if found is None or str(found.topic_id) != reader.topic_id:
        where = f"topic {topic} at {clients.settings.bootstrap}"
        raise LogMissing("the log's topic was deleted, or made again", where=where, mend="see what capture says")
